"""The server responds to what makes sense, to whom it should, and names what is wrong otherwise."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rlvr.__main__ import main
from rlvr.view.export import export
from rlvr.view.runs import POINTS, Metrics, Run, name_runs
from rlvr.view.server import STATIC, Api, make_app
from tests.runs import ROOT
from tests.view.runs_by_hand import line, write


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of one step."""
    write(tmp_path / "rollouts.jsonl", [line(1), line(1, 1, text="half \ud800")])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 1.0}\n')
    run = Run(tmp_path, "run")
    run.metrics.follow()
    run.index.catch_up()
    return run


@pytest.fixture
def client(run: Run) -> TestClient:
    """Asks as the page does."""
    return TestClient(make_app(Api([run])), base_url="http://127.0.0.1")


@pytest.mark.parametrize(
    ("question", "status", "word"),
    [
        ("nosuch", 404, "no such question: nosuch"),
        ("_run", 404, "no such question"),
        ("search?run=x", 404, "no run 'x' is shown; there are run"),
        ("rollout?step=1", 400, "'group'"),
        ("rollout?step=1&group=9&sample=0", 404, "step 1 has no rollout with group 9 and sample 0"),
        ("rollout?step=one&group=9&sample=0", 400, "'one'"),
        ("search?reward_min=high", 400, "'high'"),
        ("series?keys=reward/mean&x=nosuch", 400, "x must be one of step, samples, tokens, hours, got 'nosuch'"),
        ("problems?order=nosuch", 400, "'nosuch'"),
        ("problem?problem=nosuch", 404, "'nosuch'"),
        (f"rollout?step={2**63}&group=0&sample=0", 400, "too large"),
        (f"step?step={10**30}", 400, "too large"),
        (f"search?tokens_min={10**30}", 400, "too large"),
        (f"problems?offset={10**30}", 400, "too large"),
    ],
)
def test_what_makes_no_sense_is_named(client: TestClient, question: str, status: int, word: str) -> None:
    response = client.get(f"/api/{question}")
    assert response.status_code == status
    assert word in response.json()["error"]


def test_texts_that_utf8_cannot_hold_are_sent(client: TestClient) -> None:
    assert client.get("/api/rollout?step=1&group=1&sample=0").json()["data"]["text"] == "half \ud800"


def test_only_the_loopback_address_is_served(client: TestClient) -> None:
    """A page elsewhere that makes its own name resolve to 127.0.0.1 is refused by that name."""
    assert client.get("/api/state").status_code == 200
    assert client.get("/api/state", headers={"Host": "localhost:8765"}).status_code == 200
    assert client.get("/api/state", headers={"Host": "evil.example"}).status_code == 400
    assert client.post("/api/state").status_code == 405
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/nosuch"):
        assert client.get(path).status_code == 404


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    policy = client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_no_script_of_ours_makes_markup_of_text() -> None:
    for path in STATIC.glob("*.js"):
        if path.name != "uPlot.iife.min.js":
            text = path.read_text()
            for word in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "http://",
                "https://",
            ):
                assert word not in text.replace("http://www.w3.org/2000/svg", ""), f"{path.name}: {word}"


def test_curves_are_sent_in_at_most_so_many_points(tmp_path: Path) -> None:
    """Means of equal shares; samples, tokens and hours are running sums; keys that some lines lack."""
    write(tmp_path / "metrics.jsonl", [
        {"step": n, "reward/mean": float(n), "rollouts/count": 4, "time/step": 1800.0}
        | ({"eval/x": 1.0} if n % 10 == 0 else {})
        for n in range(1, 2 * POINTS + 1)
    ])  # fmt: skip
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.follow()
    found = metrics.series(["reward/mean"], "step")
    assert (len(found["x"]), found["x"][:2], found["reward/mean"][:2]) == (POINTS, [2, 4], [1.5, 3.5])
    assert metrics.series(["reward/mean"], "hours")["x"][-1] == POINTS
    assert metrics.series(["eval/x"], "samples")["x"][:2] == [40, 80]
    assert metrics.series(["nosuch"], "step")["x"] == []


def test_metrics_follow_a_file_that_grows_tears_and_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    assert metrics.follow() is False
    lines: list[Any] = [{"step": n, "reward/mean": float(n)} for n in range(4)]
    write(path, lines[:2])
    with path.open("ab") as file:
        file.write(b'{"step": 2, "rew')
    assert metrics.follow() is True
    assert metrics.series(["reward/mean"], "step")["x"] == [0, 1]
    assert metrics.follow() is False
    with path.open("ab") as file:
        file.write(b'ard/mean": 2.0}\n{no json}\n')
    assert metrics.follow() is True
    assert metrics.series(["reward/mean"], "step")["x"] == [0, 1, 2]
    assert metrics.bad == 1
    write(path, [lines[0], {"step": 1, "reward/mean": 7.0}, lines[2]])
    assert metrics.follow() is True
    assert metrics.series(["reward/mean"], "step")["reward/mean"] == [0.0, 7.0, 2.0]
    assert metrics.bad == 0


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
    assert [one.label for one in name_runs([paths[0], paths[0]])] == ["run"]
    assert [one.label for one in name_runs(paths[:2])] == ["a/run", "b/run"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nosuch"], "nosuch: there is no such folder"),
        (["."], "holds neither metrics.jsonl nor rollouts.jsonl; did you mean"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["view", *arguments]) == 2
    assert word in capsys.readouterr().err


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(run: Run) -> None:
    """The second viewer on one port ends with the fix, not with a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "rlvr", "view", str(run.folder), "--port", str(port), "--no-browser"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"port {port} (--port 0 takes a free one)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_viewer_needs_no_torch(run: Run) -> None:
    """A laptop that only looks at runs imports nothing heavy; what it prints is the run's state."""
    program = (
        "import sys\nclass Block:\n    def find_spec(self, name, path=None, target=None):\n"
        "        heavy = ('torch', 'transformers', 'vllm', 'accelerate', 'datasets')\n"
        "        if name.split('.')[0] in heavy: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import json\nfrom pathlib import Path\nimport rlvr.view.command\nfrom rlvr.view.runs import Run\n"
        f"print(json.dumps(Run(Path({str(run.folder)!r}), 'x').state()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] == "x"


def test_lines_of_metrics_of_the_wrong_type_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "a": 1.0}', '{"step": "b", "a": 2.0}', '{"step": 3, "a": "high"}', "[" * 100_000, "[1]",
             f'{{"step": 4, "a": {10**400}}}', '{"step": true, "a": 1.0}', '{"step": 5, "a": null}']  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    metrics = Metrics(path)
    metrics.follow()
    assert metrics.bad == 6
    assert metrics.series(["a"], "step")["a"] == [1.0]


@pytest.mark.slow
def test_a_run_with_half_a_surrogate_in_a_problems_name_is_exported(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "rollouts.jsonl", [line(2, problem_id="half \ud800")], mode="ab")
    said = export([run], tmp_path / "out.html", 100)
    assert "3 of 3 rollouts of run" in said
    assert "half \\ud800" in (tmp_path / "out.html").read_text(encoding="utf-8")
