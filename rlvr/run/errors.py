"""The errors that end a run with a message, not a traceback: all others are mistakes in rlvr or in a plug-in."""

from rewards.pool import VerifierSpecError, WorkerStartError
from rlvr.config import RecipeError
from rlvr.engines.protocol import EngineError
from rlvr.learn.advantages import RewardError
from rlvr.learn.backend import LaunchError
from rlvr.learn.lora import LoraError
from rlvr.learn.policy import PolicyError
from rlvr.learn.update import NonFiniteError
from rlvr.plugins import PlugInError
from rlvr.problems.rows import ProblemError
from rlvr.problems.sampler import SamplerExhausted
from rlvr.rollout.scheduler import TooManyUnscored
from rlvr.run.versions import VersionError
from rlvr.runlog.jsonl import LineWriteError
from rlvr.runlog.run_log import RunLogError
from rlvr.state.checkpoint import CheckpointError

DATA_ERRORS = (
    RecipeError,
    ProblemError,
    PolicyError,
    LoraError,
    PlugInError,
    VerifierSpecError,
    WorkerStartError,
    VersionError,
    LaunchError,
)
"""What was given cannot be run."""

RUN_ERRORS = (
    EngineError, TooManyUnscored, RewardError, NonFiniteError, CheckpointError, RunLogError, LineWriteError,
    SamplerExhausted,
)  # fmt: skip
"""What happened while running."""

PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "rank 0 could not prepare this update")
"""How torch and the learner say that another process of the run has ended."""
