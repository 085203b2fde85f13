"""Exports runs as one HTML file that needs no server: page, styles, scripts, and the responses to the page's requests.

It contains all curves and a limited number of rollouts per run: first the suspects, then whole steps (first, last and
evenly spaced between). The page says how many of how many rollouts it holds.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlvr.view.queries import PROBLEM_ORDERS, excerpt
from rlvr.view.runs import X_AXES, Run
from rlvr.view.server import STATIC, Api, dump_for_page

PROBLEM_PAGES = 4
"""Pages of each list of problems that the file holds."""
Query = dict[str, str]


def export(runs: Sequence[Run], out: Path, rollouts: int) -> str:
    """Write the file and say in a sentence what it holds. Raises `OSError`."""
    for run in runs:
        run.metrics.follow()
        run.index.catch_up()
    api = Api(runs)
    store: dict[str, Any] = {
        "state": api.state({}),
        "glossary": api.glossary({}),
        "series": {x: {run.label: run.metrics.series(list(run.metrics.keys()), x) for run in runs} for x in X_AXES},
        "runs": {run.label: _run(api, run, rollouts) for run in runs},
    }
    held = ", ".join(
        f"{len(exported['rollouts'])} of {exported['overview']['rollouts']} rollouts of {label}"
        for label, exported in store["runs"].items()
    )
    store["note"] = f"exported: holds {held}"
    text = _page(store)
    out.write_text(text, encoding="utf-8")
    return f"{out}: {len(text.encode()) / 1e6:.1f} MB, {held}"


def _run(api: Api, run: Run, limit: int) -> dict[str, Any]:
    query = {"run": run.label}
    rules = api.suspects(query)
    places = {(row["step"], row["group"], row["sample"]) for rule in rules for row in rule["rows"]}
    places = set(sorted(places)[:limit])
    steps: dict[int, Any] = {}
    for step in _spread_out(_steps(run)):
        groups = api.step(query | {"step": str(step)})
        of_step = {(step, g["group"], s["sample"]) for g in groups["groups"] for s in g["samples"]}
        if len(places | of_step) > limit:
            break
        places |= of_step
        steps[step] = groups
    shown = sorted(steps)
    for place, step in enumerate(shown):  # neighbours within the file
        steps[step]["before"] = shown[place - 1] if place else None
        steps[step]["behind"] = shown[place + 1] if place + 1 < len(shown) else None
    records = [run.rollout(*place) for place in sorted(places)]
    names = dict.fromkeys(record["problem_id"] for record in records)
    overview = api.overview(query)
    if shown:
        overview |= {"first": shown[0], "last": shown[-1]}
    return {
        "recipe": api.recipe(query),
        "overview": overview,
        "suspects": rules,
        "solved": api.solved(query),
        "step": steps,
        "rollouts": [record | {"excerpt": excerpt(record["text"], "")} for record in records],
        "problems": {order: _problems(api, query | {"order": order}) for order in PROBLEM_ORDERS},
        "problem": {name: api.problem(query | {"problem": name}) for name in names},
    }


def _steps(run: Run) -> list[int]:
    with run.index.reading() as database:
        return [row["step"] for row in database.execute("SELECT step FROM step ORDER BY step")]


def _spread_out(steps: Sequence[int]) -> list[int]:
    """First, last, the middle, the middles of the halves, and so on."""
    order = dict.fromkeys([*steps[:1], *steps[-1:]])
    parts = 2
    while len(order) < len(steps):
        order |= dict.fromkeys(steps[round(part * (len(steps) - 1) / parts)] for part in range(1, parts))
        parts *= 2
    return list(order)


def _problems(api: Api, query: Query) -> dict[str, Any]:
    pages: list[dict[str, Any]] = []
    while len(pages) < PROBLEM_PAGES:
        pages.append(api.problems(query | {"offset": str(sum(len(page["rows"]) for page in pages))}))
        if not pages[-1]["rows"]:
            break
    return {"count": pages[0]["count"], "rows": [row for page in pages for row in page["rows"]]}


def _page(store: dict[str, Any]) -> str:
    """The served page with everything that it would load put inside, each script and style by its hash."""
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    text = text.replace(
        '<script src="static/core.js"></script>',
        f'<script type="application/json" id="store">{dump_for_page(store)}</script>\n'
        '<script src="static/core.js"></script>\n<script src="static/exported.js"></script>',
    )
    hashes: dict[str, list[str]] = {"script": [], "style": []}

    def inside(kind: str) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            content = (STATIC / match[1]).read_text(encoding="utf-8")
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            hashes[kind].append(f"'sha256-{digest}'")
            return f"<{kind}>{content}</{kind}>"

        return replace

    text = re.sub(r'<link rel="stylesheet" href="static/([\w.]+)">', inside("style"), text)
    text = re.sub(r'<script src="static/([\w.]+)"></script>', inside("script"), text)
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    tag = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{tag}', 1)
