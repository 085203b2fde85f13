"""The viewer's web server: JSON about runs, and the page that shows it, on the loopback address.

It serves only GET requests that name the loopback address (so no other web page can reach it by a host name of its
own), and the page may load nothing but what this server sends.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvicorn
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rlvr.runlog.console import make_console
from rlvr.runlog.jsonl import encode
from rlvr.view.queries import Filter, NotThere
from rlvr.view.runs import X_AXES, Run
from rlvr.view.suspects import suspects

STATIC = Path(__file__).parent / "static"
FOLLOW_SECONDS = 1.0
"""Pause between two looks at the files of a run."""
HOSTS = ["127.0.0.1", "localhost"]
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


class Api:
    """The page's API by name: each method takes the query's parameters and returns JSON-able data."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = {run.label: run for run in runs}
        # Suspects cost a look at every row: computed once for each state of the index.
        self._suspects = lru_cache(maxsize=16)(lambda label, place: suspects(self.runs[label].rollouts))

    def names(self) -> list[str]:
        """The names of all calls."""
        return [name for name in vars(Api) if not name.startswith("_") and name not in ("names", "ask")]

    def ask(self, name: str, query: dict[str, str]) -> Any:
        """Respond to one question. Raises `NotThere` or `ValueError` for what makes no sense."""
        if name not in self.names():
            raise NotThere(f"no such question: {name}; there are {', '.join(self.names())}")
        return getattr(self, name)(query)

    def state(self, query: dict[str, str]) -> Any:
        """All runs, how far they and their indexes are."""
        return [run.state() for run in self.runs.values()]

    def glossary(self, query: dict[str, str]) -> Any:
        """Every key that was logged, with its meaning and the runs that logged it, in the glossary's order."""
        merged: dict[str, Any] = {}
        for label, run in self.runs.items():
            for key, row in run.metrics.keys().items():
                merged.setdefault(key, row | {"runs": []})["runs"].append(label)
        return dict(sorted(merged.items(), key=lambda item: item[1]["place"]))

    def series(self, query: dict[str, str]) -> Any:
        """Curves of some keys (``keys``, separated by commas) over ``x``, for every run by its label."""
        x = query.get("x", "step")
        if x not in X_AXES:
            raise ValueError(f"x must be one of {', '.join(X_AXES)}, got {x!r}")
        keys = query["keys"].split(",")
        return {label: run.metrics.series(keys, x) for label, run in self.runs.items()}

    def recipe(self, query: dict[str, str]) -> Any:
        """The recipe of a run."""
        return self._run(query).recipe()

    def overview(self, query: dict[str, str]) -> Any:
        """Overview of a run's rollouts."""
        return self._run(query).rollouts.overview()

    def step(self, query: dict[str, str]) -> Any:
        """The groups of a step."""
        return self._run(query).rollouts.step(_integer(query, "step"))

    def rollout(self, query: dict[str, str]) -> Any:
        """One rollout, by step, group and sample."""
        step, group, sample = (int(query[key]) for key in ("step", "group", "sample"))
        return self._run(query).rollout(step, group, sample)

    def search(self, query: dict[str, str]) -> Any:
        """A page of rollouts by filter."""
        types: dict[str, Callable[[str], Any]] = {
            "reward_min": float, "reward_max": float, "tokens_min": int, "tokens_max": int, "step_min": int,
            "step_max": int, "content": int,
        }  # fmt: skip
        names = [field.name for field in fields(Filter)]
        wanted = {name: types.get(name, str)(query[name]) for name in names if query.get(name)}
        return self._run(query).rollouts.search(
            Filter(**wanted), after=_integer(query, "after"), newest_first=query.get("order") == "newest"
        )

    def problems(self, query: dict[str, str]) -> Any:
        """A page of problems."""
        order = query.get("order", "variable")
        return self._run(query).rollouts.problems(order, query.get("search", ""), _integer(query, "offset") or 0)

    def solved(self, query: dict[str, str]) -> Any:
        """The number of groups in each step solved never, sometimes and always."""
        return self._run(query).rollouts.solved()

    def problem(self, query: dict[str, str]) -> Any:
        """All visits of one problem."""
        return self._run(query).rollouts.problem(query["problem"])

    def completions(self, query: dict[str, str]) -> Any:
        """One completion to a problem in each of a few steps."""
        steps = [int(step) for step in query["steps"].split(",")]
        return self._run(query).rollouts.completions(query["problem"], steps, _integer(query, "sample") or 0)

    def suspects(self, query: dict[str, str]) -> Any:
        """Completions that may have fooled the verifier."""
        run = self._run(query)
        return self._suspects(run.label, run.index.progress().place)

    def _run(self, query: dict[str, str]) -> Run:
        label = query.get("run") or next(iter(self.runs))
        if label not in self.runs:
            raise NotThere(f"no run {label!r} is shown; there are {', '.join(self.runs)}")
        return self.runs[label]


def make_app(api: Api) -> Starlette:
    """The web application."""

    def respond(request: Request) -> Response:  # not async: starlette gives it a thread, and SQLite may take its time
        try:
            data = api.ask(request.path_params["name"], dict(request.query_params))
        except NotThere as error:
            return _json({"error": str(error)}, 404)
        except KeyError as error:
            return _json({"error": f"the query lacks or does not know {error}"}, 400)
        except (ValueError, OverflowError) as error:  # SQLite holds integers of 64 bits
            return _json({"error": str(error)}, 400)
        return _json(data)

    def page(request: Request) -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html", headers=HEADERS)

    def refuse(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return Response(f"{status}\n", status_code=status, media_type="text/plain", headers=HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/{name}", respond),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(GZipMiddleware)],
        exception_handlers={HTTPException: refuse},
    )


class Follower:
    """A thread that keeps metrics and index of all runs up with their files."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="rlvr-view-follower", daemon=True)
        for run in runs:
            run.metrics.follow()
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.is_set():
            for run in self.runs:
                run.metrics.follow()
                run.index.catch_up(stop=self._stop.is_set)
            self._stop.wait(FOLLOW_SECONDS)

    def close(self) -> None:
        """End the thread; it finishes the batch that it is at."""
        self._stop.set()
        self._thread.join()


def serve(runs: Sequence[Run], port: int, *, open_browser: bool) -> None:
    """Serve until Ctrl-C. Port 0 takes a free one. Raises `OSError` if the port is taken."""
    listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    console = make_console()
    follower = Follower(runs)
    console.print(f"rlvr view: {address}  ({', '.join(run.label for run in runs)}; Ctrl-C ends it)")
    server = uvicorn.Server(
        uvicorn.Config(make_app(Api(runs)), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    )
    # signals stay with the command: a server in a thread takes none
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="rlvr-view-server", daemon=True)
    thread.start()
    if open_browser:
        webbrowser.open(address)
    try:
        show_indexing(runs, console.print)
        while thread.is_alive():
            time.sleep(0.2)
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        follower.close()
        listener.close()


def show_indexing(runs: Sequence[Run], say: Callable[[str], None]) -> None:
    """A bar on a terminal, a line elsewhere, until each index holds its file for the first time."""
    columns = (TextColumn("indexing {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    console = make_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        for run in runs:
            bar = bars.add_task(run.label, total=None)
            began = time.monotonic()
            while not run.index.is_level:
                now = run.index.progress()
                bars.update(bar, completed=now.place, total=now.size)
                time.sleep(0.3)
            if time.monotonic() - began > 1:
                place = run.index.progress().place
                say(f"indexed {run.label}: {place / 1e6:.0f} MB in {time.monotonic() - began:.0f} s")


def _integer(query: dict[str, str], key: str) -> int | None:
    return int(query[key]) if query.get(key) else None


def _json(data: Any, status: int = 200) -> Response:
    body = encode({"data": data} if status == 200 else data)
    return Response(body, status_code=status, media_type="application/json", headers=HEADERS)


def dump_for_page(data: Any) -> str:
    """JSON that can stand inside a script element: no text can end the element."""
    return json.dumps(json.loads(encode({"data": data}))["data"]).replace("<", "\\u003c")
