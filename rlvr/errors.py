"""The errors that end a run with a message, not a traceback: all others are mistakes in rlvr or in a plug-in."""

from rewards.pool import VerifierSpecError, WorkerStartError
from rlvr.checkpoint import CheckpointError
from rlvr.config import RecipeError
from rlvr.learn.advantages import RewardError
from rlvr.learn.backend import LaunchError
from rlvr.learn.lora import LoraError
from rlvr.learn.policy import PolicyError
from rlvr.learn.update import NonFiniteError
from rlvr.lines import LineWriteError
from rlvr.plugins import PlugInError
from rlvr.rollout.engine import EngineError
from rlvr.rollouts import TooManyUnscored
from rlvr.run_log import RunLogError
from rlvr.sampling import SamplerExhausted
from rlvr.tasks.rows import ProblemError
from rlvr.versions import VersionError

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
