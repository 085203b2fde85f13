"""Sets up a run: everything cheap is checked before anything slow is loaded."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

import rlvr.control as control
from rlvr.config import PlugIn, Recipe, RecipeError
from rlvr.config.algorithm import GivenTextLikelihood
from rlvr.config.groups import EmaBaseline
from rlvr.dtypes import DTYPES
from rlvr.engines.devices import Host, engine_places, learner_share
from rlvr.engines.make import make_engine, most_new_tokens
from rlvr.hosts import name_gloo_interface
from rlvr.learn.advantages import MovingAverage
from rlvr.learn.backend import check_launch
from rlvr.learn.flops import peak_flops
from rlvr.learn.texts import GivenTexts
from rlvr.learn.update import Learner
from rlvr.plugins import load_plugin
from rlvr.problems.data import Data, load_data
from rlvr.problems.sampler import ProblemSampler
from rlvr.problems.templates import load_tokenizer
from rlvr.records import RolloutGroup
from rlvr.rollout.collector import Collector, completions_to_one_prompt
from rlvr.rollout.rollouts import Rollouts
from rlvr.rules.preflight import examine_cheaply, first_prompts, lines, refuse
from rlvr.rules.watch import Watch
from rlvr.run.first_screen import first_screen
from rlvr.run.given import check_model_folder
from rlvr.run.launch import DRIVER, check_gpus
from rlvr.run.memory import num_parameters
from rlvr.run.signals import Preemption
from rlvr.runlog.clock import StepClock
from rlvr.runlog.console import Display, make_console
from rlvr.runlog.run_log import RunLog, run_folder
from rlvr.state import checkpoint
from rlvr.state.register import StateRegister
from rlvr.state.resume import check_recipe, check_unfinished, find_checkpoint, restored
from rlvr.state.saver import Saver
from rlvr.sync.weight_sync import WeightSync


@dataclass(slots=True, kw_only=True)
class Coordinator:
    """The parts of a run that only rank 0, which decides, has."""

    data: Data
    rollouts: Rollouts
    sampler: ProblemSampler
    log: RunLog
    watch: Watch
    average: MovingAverage | None
    """State of ``baseline: ema``; None with any other."""

    def drawn(self) -> dict[str, Any]:
        """Which problems were drawn and what has become of them, for `undraw`."""
        return {"sampler": self.sampler.state_dict(), "rollouts": self.rollouts.state_dict()}

    def undraw(self, before: dict[str, Any]) -> None:
        """Back to what `drawn` said."""
        self.sampler.load_state_dict(before["sampler"])
        self.rollouts.load_state_dict(before["rollouts"])

    def prompts_of(self, groups: Sequence[RolloutGroup]) -> list[str]:
        """The prompt of each group as the model saw it."""
        return [self.data.renderer.render(group.problem).text for group in groups]

    def progress(self, name: str) -> Callable[[int, int], None]:
        """Reports how far a phase is."""
        return lambda done, total: self.log.phase(name, done, total)


@dataclass(slots=True, kw_only=True)
class Run:
    """A run that is set up; used as a context manager, it ends its processes and files."""

    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    learner: Learner
    register: StateRegister
    weights: WeightSync
    clock: StepClock
    saver: Saver
    preemption: Preemption
    done: int
    """Steps that are done."""
    peak_flops: float
    """Operations a second that this run's devices reach together in matrix products."""
    coordinator: Coordinator | None
    """None on all ranks but 0."""

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with ExitStack() as stack:
            if self.coordinator is not None:
                stack.callback(self.coordinator.log.close)
                stack.callback(self.coordinator.log.end, self.done, error)
                stack.callback(self.coordinator.rollouts.close)
            stack.callback(self.saver.close)

    def state_dict(self) -> dict[str, Any]:
        """Steps that are done."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the step of the checkpoint."""
        self.done = state["done"]


def quiet_libraries() -> None:
    """Progress bars and warnings of libraries would hide our lines."""
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it warns of kernels for 4 bits
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # importing datasets for it would take 85 MB


def make_accelerator(recipe: Recipe) -> Accelerator:
    """accelerate, as the launcher set it up; precision is the recipe's business, not the launcher's."""
    if recipe.run.threads is not None and not torch.cuda.is_available():
        torch.set_num_threads(recipe.run.threads)
    longest = recipe.run.process_timeout
    on_gpus = torch.cuda.is_available()
    seconds = min(longest, control.COLLECTIVE_SECONDS) if on_gpus else longest
    timeout = InitProcessGroupKwargs(timeout=timedelta(seconds=seconds))
    folder = run_folder(recipe)
    # gradients lie in the buckets that ranks exchange, instead of beside them: 4 bytes a parameter
    data_parallel = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    name_gloo_interface(os.environ)
    accelerator = Accelerator(
        log_with=list(recipe.run.trackers) or None, project_dir=str(folder), kwargs_handlers=[timeout, data_parallel],
        cpu=not on_gpus,
    )  # fmt: skip
    control.open_group(longest)
    return accelerator


def prepare_model(recipe: Recipe, accelerator: Accelerator, say: Callable[[str], None]) -> PretrainedConfig:
    """Make the model's folder if the recipe knows how, and read its config. Raises `RecipeError`."""
    path = Path(recipe.model.path)
    if recipe.model.prepare is not None and not path.exists() and accelerator.is_main_process:
        say(f"making {path} by {recipe.model.prepare}")
        make = load_plugin(recipe.model.prepare, {}, positional=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(recipe)
    control.wait()
    check_model_folder(recipe.model.path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(recipe.model.path)
        return config
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"model.path: {recipe.model.path!r} is no model that transformers can read: {error}"
        ) from error


@contextmanager
def sampling_only(
    recipe: Recipe,
    *,
    train: bool,
    say: Callable[[str], None] = print,
    ready: Callable[[Data, PreTrainedTokenizerBase, PretrainedConfig], None] = lambda data, tokenizer, config: None,
) -> Iterator[tuple[Rollouts, Data]]:
    """Engine, pool and problems without a learner, for commands that only sample; `train` loads what is trained on.
    `ready` is called when all is loaded and the engine not yet started."""
    quiet_libraries()
    accelerator = make_accelerator(recipe)
    if accelerator.num_processes > 1:
        raise RecipeError(
            f"this command samples from one process, got {accelerator.num_processes}: call it without a launcher"
        )
    config = prepare_model(recipe, accelerator, say)
    model_len = int(config.max_position_embeddings)
    tokenizer = load_tokenizer(recipe.model.path)
    data = load_data(recipe, tokenizer, model_len, train=train)
    try:
        ready(data, tokenizer, config)
        scratch = Path(tempfile.mkdtemp(prefix="rlvr-"))  # nobody else can have made what is written there
        log_file = scratch / "engine.log"
        rollouts = make_rollouts(recipe, data, model_len, log_file, lambda name, message: say(message), say)
    except BaseException:
        data.pool.close()
        raise
    try:
        say("starting the engine")
        rollouts.start()
        yield rollouts, data
        shutil.rmtree(scratch, ignore_errors=True)  # after an error its message names the log
    finally:
        rollouts.close()


def make_rollouts(
    recipe: Recipe, data: Data, model_len: int, log_file: Path,
    warn: Callable[[str, str], None], say: Callable[[str], None],
) -> Rollouts:  # fmt: skip
    """The sampling side of a run, not started yet."""
    needed = min(model_len, data.longest_prompt + most_new_tokens(recipe))
    engine = make_engine(recipe, needed, log_file, warn, say)
    path = recipe.rollout.workflow
    workflow = load_plugin(path, {}, positional=1) if path is not None else completions_to_one_prompt
    collector = Collector(engine, data.pool, data.terms, data.renderer, run_seed=recipe.run.seed, workflow=workflow)
    return Rollouts(recipe, engine, data.pool, collector, data.renderer, data.train, warn)


def check_early(recipe: Recipe, accelerator: Accelerator) -> None:
    """Check what would otherwise fail only after the engine has started, or at the first checkpoint: the launcher's
    settings, and plug-ins that cannot be found. Raises `LaunchError`, `RecipeError` or `PlugInError`."""
    check_gpus(os.environ, cuda=torch.cuda.is_available(), driver=DRIVER.exists())
    check_launch(accelerator, recipe.learner)
    engine_places(recipe.rollout.engine, Host.here())
    if recipe.model.lora is not None and importlib.util.find_spec("peft") is None:
        raise RecipeError("model.lora needs peft, which is not installed; pip install 'rlvr[lora]'")
    algorithm = recipe.algorithm
    slots = [*((shaping, 3) for shaping in algorithm.shaping), (algorithm.baseline, 2), (algorithm.surrogate, 1)]
    for slot, positional in slots:
        if isinstance(slot, PlugIn):
            load_plugin(slot.type, slot.args, positional=positional)
    if recipe.rollout.workflow is not None:
        load_plugin(recipe.rollout.workflow, {}, positional=1)


def build(recipe: Recipe) -> Run:
    """Set up everything, on every rank; the run's folder is locked and its last checkpoint restored."""
    quiet_libraries()
    accelerator = make_accelerator(recipe)
    check_early(recipe, accelerator)
    folder = run_folder(recipe)
    display = Display(make_console()) if accelerator.is_main_process else None
    say: Callable[[str], None] = display.line if display is not None else lambda text: None
    log: RunLog | None = None
    data: Data | None = None
    try:
        if display is not None and folder.exists():  # what is there is another's until the lock is ours
            log = RunLog(folder, recipe, accelerator, display=display)
        config = prepare_model(recipe, accelerator, say)
        model_len = int(config.max_position_embeddings)
        resumed = find_checkpoint(recipe, folder, say, accelerator)
        if resumed is not None:
            check_recipe(recipe, resumed, accelerator, say)
            # it sets links and removes old checkpoints, which a process killed at its end may not have done
            Saver(folder, StateRegister(), accelerator, recipe.run, lambda _, message: say(message)).close()
            check_unfinished(recipe, resumed)
        if display is not None:
            tokenizer = load_tokenizer(recipe.model.path)
            data = load_data(recipe, tokenizer, model_len)
            display.start_screen(f"rlvr: {recipe.name}", first_screen(recipe, accelerator, config, data, folder))
            for note in data.notes:
                say(note)
            seen = first_prompts(data.train, data.renderer, tokenizer)
            findings = examine_cheaply(recipe, data.train, seen, data.pool, data.terms, weights=num_parameters(config))
            for line in lines(findings):
                say(line)
            refuse(recipe, findings)
            log = log or RunLog(folder, recipe, accelerator, display=display)  # a run that is refused leaves nothing
            log.start_trackers(None if resumed is None else resumed.step)
        return _load(recipe, folder, accelerator, resumed, log, data, model_len)
    except BaseException:
        if data is not None:
            data.pool.close()
        if log is not None:
            log.close()
        raise


def _load(
    recipe: Recipe, folder: Path, accelerator: Accelerator, resumed: checkpoint.Checkpoint | None,
    log: RunLog | None, data: Data | None, model_len: int,
) -> Run:  # fmt: skip
    """The part of `build` that takes time: the engine is started, the learner loaded, the checkpoint restored."""
    coordinator = None
    if log is not None and data is not None:
        coordinator = _make_coordinator(recipe, folder, log, data, model_len)
    try:
        if coordinator is not None:
            started = time.perf_counter()
            coordinator.rollouts.start()
            coordinator.log.say(f"the engine is ready after {time.perf_counter() - started:.0f} s")
        control.wait()  # for rank 0, which has read the data and started the engine
        _leave_memory_to_engine(recipe, accelerator)
        run = _make_run(recipe, folder, accelerator, coordinator, last=None if resumed is None else resumed.step)
        _register_state(run)
        _restore(run, resumed)
        return run
    except BaseException:
        if coordinator is not None:
            coordinator.rollouts.close()
        raise


def _make_coordinator(recipe: Recipe, folder: Path, log: RunLog, data: Data, model_len: int) -> Coordinator:
    """What rank 0 alone has; the engine is not started yet."""
    log.say("starting the engine")
    baseline = recipe.algorithm.baseline
    return Coordinator(
        data=data,
        sampler=ProblemSampler(data.train, recipe.problems.sampler, recipe.run.seed),
        log=log,
        rollouts=make_rollouts(recipe, data, model_len, folder / "engine.log", log.warn, log.say),
        watch=Watch(recipe, log.warn),
        average=MovingAverage(baseline) if isinstance(baseline, EmaBaseline) else None,
    )


def _make_run(
    recipe: Recipe, folder: Path, accelerator: Accelerator, coordinator: Coordinator | None, *, last: int | None
) -> Run:
    """The run of one rank, its learner loaded; ``last`` is the step of the newest checkpoint, None without one."""
    algorithm = recipe.algorithm
    data = coordinator.data if coordinator is not None else None
    learner = Learner(
        recipe.model, recipe.learner, algorithm,
        total_updates=recipe.run.steps * algorithm.updates_per_batch * algorithm.epochs,
        temperature=recipe.rollout.temperature, accelerator=accelerator, texts=_given_texts(recipe, data),
    )  # fmt: skip
    probes = []
    if data is not None:
        probes = [data.renderer.render(problem).ids for problem in data.train[: recipe.rollout.probe]]
    rollouts = coordinator.rollouts if coordinator is not None else None
    weights = WeightSync(learner, accelerator, rollouts, probes, keeps_copy=recipe.rollout.schedule.overlaps)
    register = StateRegister()
    warn = coordinator.log.warn if coordinator is not None else _no_warning
    return Run(
        recipe=recipe, folder=folder, accelerator=accelerator, learner=learner, register=register, weights=weights,
        clock=StepClock(), done=0, coordinator=coordinator, peak_flops=_peak_flops(recipe, accelerator),
        preemption=Preemption(control.any_rank),
        saver=Saver(folder, register, accelerator, recipe.run, warn, last=last),
    )  # fmt: skip


def _register_state(run: Run) -> None:
    """Name every owner of state; the names are those of the checkpoint's entries."""
    run.register.add("run", run)
    run.register.add("learner", run.learner)
    run.register.add("weights", run.weights)
    if (coordinator := run.coordinator) is not None:
        run.register.add("sampler", coordinator.sampler)
        run.register.add("rollouts", coordinator.rollouts)
        if coordinator.average is not None:
            run.register.add("baseline", coordinator.average)
        run.register.add("log", coordinator.log)
        run.register.add("watch", coordinator.watch)


def _restore(run: Run, resumed: checkpoint.Checkpoint | None) -> None:
    """Take over a checkpoint, if there is one, and begin the log after it."""
    if resumed is not None:
        run.learner.load_policy(resumed.path)
    state = checkpoint.restore(resumed, run.register, run.accelerator)
    if run.coordinator is not None:
        for line in [] if resumed is None else restored(resumed, state):
            run.coordinator.log.say(line)
        run.coordinator.log.start(run.done if resumed is not None else None)


def _given_texts(recipe: Recipe, data: Data | None) -> GivenTexts | None:
    given = recipe.algorithm.given_text
    if data is None or not isinstance(given, GivenTextLikelihood):
        return None
    return GivenTexts(data.texts, given.rows, recipe.run.seed)


def _peak_flops(recipe: Recipe, accelerator: Accelerator) -> float:
    processes: int = accelerator.num_processes
    if recipe.run.peak_tflops is not None:
        return recipe.run.peak_tflops * 1e12 * processes
    name = recipe.model.dtype if recipe.model.autocast == "none" else recipe.model.autocast
    return peak_flops(accelerator.device, DTYPES[name]) * processes


def _leave_memory_to_engine(recipe: Recipe, accelerator: Accelerator) -> None:
    """Bound what the learner's allocator may fill of a GPU on which an engine runs too."""
    is_first_host = accelerator.process_index == accelerator.local_process_index
    if accelerator.device.type != "cuda" or not is_first_host:
        return
    engine = recipe.rollout.engine
    share = learner_share(engine, engine_places(engine, Host.here()), accelerator.local_process_index)
    if share is not None:
        torch.cuda.set_per_process_memory_fraction(max(share, 0.05), accelerator.device)


def _no_warning(name: str, message: str) -> None:
    """Only rank 0 speaks."""
