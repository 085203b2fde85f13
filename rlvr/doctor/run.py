"""``rlvr doctor RUN``: reads a run's metrics, rollouts and end, and names what went wrong, likely causes first."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.config import Recipe, RecipeError, load_recipe
from rlvr.doctor import suspicious
from rlvr.doctor.examples import LoggedRollout, examples, place, read_latest
from rlvr.rules import rules
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.history import History
from rlvr.rules.rule import Rule
from rlvr.runlog.run_log import END, read_metrics
from rlvr.runlog.thresholds import at

SLOW_GRADING = Rule(
    name="slow_grading",
    grade=Grade.SLOWS,
    fires=f"after the last token, graders take {at('grading_share'):g} of the time of the last {at('window'):g} steps",
    advice="Raise rewards.workers up to the cores of the machine, lower rewards.timeout, or make the verifier faster: "
    "`python -m rewards grade` prints the seconds of each completion.",
)
ENDED = Rule(
    name="ended_by_error",
    grade=Grade.STOPS,
    fires="the run's last process ended by an error that no other rule names",
    advice="Its message says what to do; the same command goes on from the last checkpoint.",
)
RULES: tuple[Rule, ...] = (ENDED, SLOW_GRADING, *suspicious.RULES)
"""What only a run's folder shows; the rules of `rlvr.rules.rules` apply to it too."""

_BY_ERROR = {
    "StaleEngineError": "stale_engine",
    "StaleTokens": "stale_engine",
    "EngineMismatchError": "engine_mismatch",
    "NonFiniteError": "non_finite",
    "TooManyUnscored": "unscored",
}
_NO_FAULT = (None, "Interrupted", "KeyboardInterrupt")


def examine(folder: Path) -> list[Finding]:
    """What is wrong with a run, or worth knowing; nothing that stops or slows learning where it is young or healthy.

    Raises `RecipeError` for a folder that is no run's.
    """
    recipe = _recipe_of(folder)
    lines = read_metrics(folder)
    rollouts = read_latest(folder / "rollouts.jsonl")
    findings = [
        *_how_it_ended(folder), *_old_versions(recipe, rollouts), *_replayed(recipe, lines), *_timed(lines),
        *suspicious.look(rollouts, recipe),
    ]  # fmt: skip
    merged: dict[str, Finding] = {}
    for finding in findings:
        merged.setdefault(finding.rule, finding)
    shown = [
        _with_examples(finding, rollouts, recipe)
        for finding in suspicious.causes_of(rules.causes_of([*merged.values()]))
    ]
    return sorted(shown, key=lambda finding: list(Grade).index(finding.grade))


def _recipe_of(folder: Path) -> Recipe:
    for name in ("recipe.yaml", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise RecipeError(f"{folder} is no run's folder: it holds no {name}; give the folder OUTPUT/NAME of a run")
    return load_recipe(folder / "recipe.yaml")


def _how_it_ended(folder: Path) -> list[Finding]:
    """The error that ended the run, under the name of the rule that it belongs to."""
    path = folder / END
    if not path.is_file():
        return []
    how = json.loads(path.read_text(encoding="utf-8"))
    if how["error"] in _NO_FAULT:
        return []
    known = next((rule for rule in rules.RULES if rule.name == _BY_ERROR.get(how["error"])), ENDED)
    message = f"the run ended after step {how['step']} by {how['error']}: {how['message'].splitlines()[0]}"
    finding = known.finding(message, evidence=(how["message"],) if "\n" in how["message"] else ())
    return [dataclasses.replace(finding, grade=Grade.STOPS)]


def _old_versions(recipe: Recipe, rollouts: Sequence[LoggedRollout]) -> list[Finding]:
    """A stale engine by the versions of its tokens, where the schedule has the engine one update behind."""
    steps = {rollout["step"] for rollout in rollouts}
    last = [rollout for rollout in rollouts if rollout["step"] == max(steps)]
    newest = max((version for rollout in last for version, _ in rollout["versions"]), default=0)
    if recipe.rollout.schedule.bound > 0 or len(steps) < at("steps") or newest >= max(steps) - 1:
        return []
    rule = next(rule for rule in rules.RULES if rule.name == "stale_engine")
    message = f"all completions of step {max(steps)} were sampled by weights of version {newest} or older"
    return [
        rule.finding(message, evidence=[f"{place(rollout)}: versions {rollout['versions']}" for rollout in last[:2]])
    ]


def _replayed(recipe: Recipe, lines: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The rules over every step as the loop would have seen it: what holds now, and what held before.

    What held before keeps its grade where something holds now that it explains, or where the reward is still lower than
    it was at the start; else it is history, and a note.
    """
    history = History(recipe)
    before: dict[str, tuple[Finding, list[int]]] = {}
    now: list[Finding] = []
    for line in lines:
        history.add(line["step"], {key: value for key, value in line.items() if key != "step"})
        now = rules.look(history) if line["step"] > 0 else []
        for finding in rules.causes_of(now):
            before.setdefault(finding.rule, (finding, []))[1].append(line["step"])
    current = {finding.rule for finding in now}
    findings = []
    for watcher in rules.WATCHERS:
        name = watcher.rule.name
        if name in current:
            findings.append(next(finding for finding in now if finding.rule == name))
        elif name in before:
            finding, steps = before[name]
            if not current & watcher.explains and history.has_recovered:
                if finding.grade is Grade.NOTE:
                    continue
                finding = dataclasses.replace(
                    finding, grade=Grade.NOTE,
                    message=f"in {len(steps)} steps from {steps[0]} to {steps[-1]}, not any more: {finding.message}",
                )  # fmt: skip
            findings.append(finding)
    return findings


def _timed(lines: Sequence[Mapping[str, Any]]) -> list[Finding]:
    latest = [line for line in lines if line.get("time/grade_wait") is not None and line["step"] > 0]
    latest = latest[-int(at("window")) :]
    whole, waited = sum(line["time/step"] for line in latest), sum(line["time/grade_wait"] for line in latest)
    if len(latest) < at("steps") or waited < at("grading_share") * whole:
        return []
    evidence = [
        f"step {line['step']}: {line['time/grade_wait']:.1f} of {line['time/step']:.1f} s" for line in latest[-3:]
    ]
    message = f"{waited / whole:.0%} of the last {len(latest)} steps was spent waiting for graders"
    return [SLOW_GRADING.finding(message, evidence=evidence)]


def _with_examples(finding: Finding, rollouts: Sequence[LoggedRollout], recipe: Recipe) -> Finding:
    return dataclasses.replace(finding, evidence=(*finding.evidence, *examples(finding.rule, rollouts, recipe)))
