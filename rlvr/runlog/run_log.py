"""The log of a run: its folder, its JSON-lines files, the console, and accelerate's trackers.

    OUTPUT/NAME/
        recipe.yaml       the resolved recipe
        metrics.jsonl     one object a step; `rlvr.runlog.glossary` says what each key means
        rollouts.jsonl    one object a rollout, as `rollout_record` makes it
        evaluations/      NAME/rollouts.jsonl: the completions of eval set NAME, as `rlvr view` shows them
        end.json          how the run ended, once it has
        run_id            names the run to trackers, so that a resumed run goes on in the same place
        checkpoints/      see `rlvr.state.checkpoint`

The JSON-lines files are append-only, always hold whole lines, and are truncated to the checkpoint on resume, so that
they have neither gaps nor duplicates. Only the main process writes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from rich.console import RenderableType

from rlvr.config import Recipe
from rlvr.config.dotted import flatten
from rlvr.errors import RlvrError
from rlvr.records import Rollout, RolloutGroup
from rlvr.runlog.console import Display, make_console
from rlvr.runlog.glossary import undocumented
from rlvr.runlog.jsonl import NEWEST_ROLLOUT, JsonLines, read_object

END = "end.json"
"""How the last process of the run ended; not there while one runs, nor after one that was killed."""


class RunLogError(RlvrError, RuntimeError):
    """The log of a run cannot be opened or written; the message says what to do."""


def run_folder(recipe: Recipe) -> Path:
    """The folder of a run of this recipe."""
    return Path(recipe.run.output) / recipe.name


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, in order; a torn last one and what cannot be read are left out."""
    lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
    return [found for line in lines[:-1] if (found := read_object(line)) is not None]


class RunLog:
    """Logs a run: to disk, to trackers, to the console. Use it as a context manager.

    It is stateful: the counts of warnings belong in a checkpoint, or a resumed run would log other numbers.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, accelerator: Accelerator, *, display: Display | None = None
    ) -> None:
        """Make or open the run's folder and take its lock. Raises `RunLogError` if it cannot be had."""
        self.folder, self._recipe, self._accelerator = folder, recipe, accelerator
        self._display = display or Display(make_console())
        self._warnings: dict[str, int] = {}
        self._lock, self._tracking = -1, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(folder / ".lock")
            self._metrics = JsonLines(folder / "metrics.jsonl")
            self._rollouts = JsonLines(folder / "rollouts.jsonl")
            self._evaluations = {
                path.parent.name: JsonLines(path) for path in folder.glob("evaluations/*/rollouts.jsonl")
            }
        except OSError as error:
            raise RunLogError(f"run.output: the run's folder {folder} cannot be written: {error}") from error
        for file in (self._metrics, self._rollouts):
            if file.torn_bytes:
                self.say(f"{file.path.name} ended in a torn line ({file.torn_bytes} bytes, from a crash): cut off")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, done: int | None) -> None:
        """Begin to log after step `done`, the step of the checkpoint that the run goes on from; None starts anew.

        Lines of later steps are removed: the run will write them again. Raises `RunLogError` if a tracker refuses.
        """
        after = -1 if done is None else done
        for file in (self._metrics, self._rollouts, *self._evaluations.values()):
            try:
                removed, unreadable = file.truncate_after(after)
            except OSError as error:
                raise RunLogError(f"lines of {file.path} cannot be set aside: {error}") from error
            if unreadable:
                self.say(
                    f"{file.path.name}: {unreadable} damaged lines after step {after} are set aside in "
                    f"{file.damaged.name}"
                )
            if removed:
                self.say(
                    f"{file.path.name}: {removed} lines after step {after} removed, the run does these steps again"
                )
        last = self._metrics.last_step()
        if done is not None and last != done:
            missing = f"ends at step {last}" if last is not None else "is empty"
            self.say(f"metrics.jsonl {missing}, but the run goes on after step {done}: the lines between are lost")
        text = yaml.safe_dump(self._recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
        self._guarded(lambda: write_whole(self.folder / "recipe.yaml", text))
        (self.folder / END).unlink(missing_ok=True)
        self.start_trackers(done)
        self._display.begin(done or 0, self._recipe.run.steps)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step: a line on disk, a line on the console, the numbers to every tracker.

        A number that is not finite is written as null. Keys that the glossary does not know are warned about.
        """
        if unknown := undocumented(metrics):
            self.warn("undocumented_metric", f"the glossary does not know {', '.join(unknown)}")
        if bad := [key for key, value in metrics.items() if not math.isfinite(value)]:
            self.warn("non_finite_metric", f"not finite at step {step}: {', '.join(bad)}")
        numbers = dict(metrics) | {f"warnings/{name}": float(count) for name, count in self._warnings.items()}
        self._guarded(lambda: self._metrics.append([{"step": step} | numbers]))
        self._accelerator.log({key: value for key, value in numbers.items() if math.isfinite(value)}, step=step)
        self._display.step(step, self._recipe.run.steps, numbers)

    def rollouts(
        self,
        step: int,
        groups: Sequence[RolloutGroup],
        prompts_P: Sequence[str],
        advantages_P_G: Sequence[Sequence[float | None]],
        *,
        token_groups: Collection[int] = (),
        kept_P_G: Sequence[Sequence[Sequence[float] | None]] | None = None,
    ) -> None:
        """Log the rollouts of one step: prompts as the model saw them, and the advantage of each completion (None where
        it was not trained; a greedy completion comes after its group, as sample -1). All lines are written or none;
        does nothing under ``run.log_rollouts: false``.

        For the groups in `token_groups` tokens are written too, with what the learner has kept of their trained tokens
        (`rlvr.learn.logged_logprobs`; None where it has nothing)."""
        if not self._recipe.run.log_rollouts:
            return
        records = []
        for index, (group, prompt, advantages_G) in enumerate(zip(groups, prompts_P, advantages_P_G, strict=True)):
            kept_G = kept_P_G[index] if kept_P_G else [None] * len(group.rollouts)
            completions = list(zip(group.rollouts, advantages_G, kept_G, strict=True))
            if group.greedy is not None:
                completions.append((group.greedy, None, None))
            for rollout, advantage, kept in completions:
                record = rollout_record(step, index, group, rollout, prompt, advantage)
                records.append(record | (token_record(rollout, kept) if index in token_groups else {}))
        self._guarded(lambda: self._rollouts.append(records))

    def evaluation(self, step: int, name: str, groups: Sequence[RolloutGroup], prompts_P: Sequence[str]) -> None:
        """Log the completions of eval set `name` after a step, greedy ones as sample -1; nothing under
        ``run.log_rollouts: false``."""
        if not self._recipe.run.log_rollouts:
            return
        records = [
            rollout_record(step, index, group, rollout, prompt, None)
            for index, (group, prompt) in enumerate(zip(groups, prompts_P, strict=True))
            for rollout in [*group.rollouts, *([group.greedy] if group.greedy is not None else [])]
        ]

        def write() -> None:
            if name not in self._evaluations:
                path = self.folder / "evaluations" / name / "rollouts.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                self._evaluations[name] = JsonLines(path)
            self._evaluations[name].append(records)

        self._guarded(write)

    def warn(self, name: str, message: str) -> None:
        """Print a warning the first time, count it every time: ``warnings/NAME`` in the metrics."""
        self._warnings[name] = self._warnings.get(name, 0) + 1
        if self._warnings[name] == 1:
            self._display.line(f"warning ({name}): {message} [counted as warnings/{name} from here on]", style="yellow")

    def say(self, message: str) -> None:
        """Print a line on the console."""
        self._display.line(message)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or the like on the console."""
        self._display.show(renderable)

    def phase(self, name: str, done: int | None = None, total: int | None = None) -> None:
        """Show what the step is doing, on a terminal."""
        self._display.phase(name, done, total)

    def sync(self) -> None:
        """Put all lines on the disk itself; call it before a checkpoint says that their steps are done."""
        self._guarded(self._metrics.sync)
        for file in (self._rollouts, *self._evaluations.values()):
            self._guarded(file.sync)

    def end(self, step: int, error: BaseException | None) -> None:
        """Write down after which step the run ended, and by which error, if by one; for `rlvr doctor`."""
        how = {"step": step, "error": type(error).__name__ if error else None, "message": str(error or "")}
        try:
            write_whole(self.folder / END, json.dumps(how) + "\n")
        except OSError as why:  # the error itself matters more
            self.say(f"{END} could not be written: {why.strerror or why}")

    def close(self) -> None:
        """End the trackers, the progress bar and the files; safe to call twice."""
        if self._tracking:
            self._tracking = False
            for tracker in self._accelerator.trackers:
                tracker.finish()
        self._display.__exit__(None, None, None)
        self._metrics.close()
        self._rollouts.close()
        for file in self._evaluations.values():
            file.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def state_dict(self) -> dict[str, Any]:
        """Counts of the warnings."""
        return {"warnings": dict(self._warnings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where the checkpoint was."""
        self._warnings = dict(state["warnings"])

    def _guarded(self, write: Callable[[], None]) -> None:
        """Do a write; if the disk refuses, obey ``run.on_disk_full``."""
        try:
            write()
        except OSError as error:
            why = f"{error.strerror or error}; {_free(self.folder)}"
            if self._recipe.run.on_disk_full == "stop":
                raise RunLogError(
                    f"a log line could not be written: {why}. The files end with whole lines. Make room and start the "
                    "same command again: it goes on from the last checkpoint (run.on_disk_full: warn goes on without)"
                ) from error
            self.warn("lost_log_lines", f"{why}; going on without (run.on_disk_full: warn)")

    def start_trackers(self, done: int | None) -> None:
        """Start the trackers, once, to log from after step `done`. Raises `RunLogError` if one refuses: call it before
        anything that takes time."""
        names = self._recipe.run.trackers
        if self._tracking or not names:
            return
        os.environ.setdefault("WANDB_SILENT", "true")  # dozens of lines otherwise; where its run is we say ourselves
        os.environ.setdefault("WANDB_CONSOLE", "off")
        identity = _run_id(self.folder / "run_id")
        options: dict[str, dict[str, Any]] = {
            "wandb": {"name": self._recipe.name, "id": identity, "resume": "allow", "dir": str(self.folder)},
            "tensorboard": {"purge_step": 0 if done is None else done + 1},
        }
        settings = flatten(self._recipe.model_dump(mode="json", by_alias=True))
        flat = {key: value if isinstance(value, str | int | float) else str(value) for key, value in settings}
        try:
            self._accelerator.init_trackers(
                self._recipe.run.project, config=flat, init_kwargs={name: options[name] for name in names}
            )
        except _tracker_errors(names) as error:
            raise RunLogError(
                f"run.trackers: {', '.join(names)} could not start: {str(error).rstrip('.')}. For wandb without a "
                "connection set WANDB_MODE=offline, or run `wandb login` once"
            ) from error
        self._tracking = True
        for tracker in self._accelerator.trackers:
            if tracker.name == "wandb":
                self.say(f"wandb: {tracker.tracker.url or f'offline, in {tracker.tracker.dir}'}")


def rollout_record(
    step: int,
    group_index: int,
    group: RolloutGroup,
    rollout: Rollout,
    prompt: str,
    advantage: float | None,
) -> dict[str, Any]:
    """One line of ``rollouts.jsonl``. ``versions`` and ``loss_mask`` are runs: ``[[value, tokens], ...]``."""
    return {
        "step": step,
        "group": group_index,
        "sample": rollout.sample_index,
        "problem_id": rollout.problem_id,
        "visit": rollout.visit,
        "source": group.problem.source,
        "reference": group.problem.reference,
        "prompt": prompt,
        "text": rollout.text,
        "verdicts": {
            name: {"score": verdict.score, "outcome": verdict.outcome.value, "detail": dict(verdict.detail)}
            for name, verdict in rollout.verdicts.items()
        },
        "reward": rollout.reward,
        "advantage": advantage,
        "finish_reason": rollout.finish_reason,
        "tokens": len(rollout.ids),
        "versions": _runs(rollout.weight_version),
        "loss_mask": _runs(rollout.loss_mask),
        "request_seed": rollout.request_seed,
        "grade_seconds": round(rollout.grade_seconds, 6),
        "schema_version": NEWEST_ROLLOUT,
    }


def token_record(rollout: Rollout, kept: Sequence[float] | None) -> dict[str, Any]:
    """The token fields of a line: ids, and log-probabilities rounded to 5 digits. ``trainer_logprobs`` is None as
    a whole where the learner has kept nothing, and at each token that it did not train."""
    record: dict[str, Any] = {
        "prompt_ids": list(rollout.prompt_ids),
        "ids": list(rollout.ids),
        "behaviour_logprobs": [round(value, 5) for value in rollout.behaviour_logprobs],
        "trainer_logprobs": None,
    }
    if kept and len(kept) == sum(rollout.loss_mask):  # a truncated completion may be masked as a whole
        values = iter(kept)
        record["trainer_logprobs"] = [round(next(values), 5) if trained else None for trained in rollout.loss_mask]
    return record


def _runs(values: Iterable[int]) -> list[list[int]]:
    return [[value, sum(1 for _ in same)] for value, same in groupby(values)]


def _take_lock(path: Path) -> int:
    """A lock that ends with this process, however it ends, and that its children do not hold."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise RunLogError(
                f"another run (process {holder or 'unknown'}) is writing to {path.parent}: wait for it, or choose "
                "another name"
            ) from None
        raise
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step. Raises `OSError`, then the file is as it was."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _run_id(path: Path) -> str:
    """The run's own id, made once."""
    if not path.exists():
        write_whole(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB free in {folder}"
    except OSError:
        return f"the folder {folder} is not there"


def _tracker_errors(names: Sequence[str]) -> tuple[type[Exception], ...]:
    """The exceptions that a tracker raises when it cannot start."""
    if "wandb" not in names:
        return (OSError,)
    import wandb  # a second to import, so only where it is used

    return (OSError, wandb.errors.Error)
