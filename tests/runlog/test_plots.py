import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from rlvr.runlog.plots import console_curve, draw_curve, points

KEY = "eval/held_out/pass@1"


def write_run(folder: Path, values: list[float | None]) -> Path:
    folder.mkdir()
    lines = [{"step": 10 * i} | ({} if value is None else {KEY: value}) for i, value in enumerate(values)]
    lines = [
        line | ({f"{KEY}_low": line[KEY] - 0.1, f"{KEY}_high": line[KEY] + 0.1} if KEY in line else {})
        for line in lines
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "torn')
    return folder


def printed(lines: list[dict[str, float]], *, width: int = 100, encoding: str = "utf-8") -> list[str]:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=out, width=width).print(console_curve(lines, [KEY], height=4))
    out.seek(0)
    return out.read().splitlines()


def test_points_are_the_lines_that_have_the_key() -> None:
    lines = [{"step": 0, "x": 1.0}, {"step": 1}, {"step": 2, "x": None}, {"step": 3, "x": 4.0}]
    assert points(lines, "x") == ([0, 3], [1.0, 4.0])


def test_curves_of_several_runs_are_drawn(tmp_path: Path) -> None:
    runs = {"a": write_run(tmp_path / "a", [0.2, None, 0.6, 0.9]), "b": write_run(tmp_path / "b", [0.1, 0.3])}
    out = draw_curve(runs, [KEY], tmp_path / "deep/curve.png")
    with Image.open(out) as picture:
        assert picture.size == (1050, 630)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # a line for each run


def test_a_key_that_no_run_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of eval/x/pass@1 is in the metrics of .*/a"):
        draw_curve({"a": write_run(tmp_path / "a", [0.5])}, ["eval/x/pass@1"], tmp_path / "x.png")


def test_the_console_curve_by_hand() -> None:
    lines = [{"step": 0, KEY: 0.25}, {"step": 5, KEY: 0.5}, {"step": 10, KEY: 1.0}]
    assert printed(lines) == [
        f"{KEY}: 0.250 at step 0, 1.000 at step 10",
        "       1 |        ████",
        "         |        ████",
        "         |    ████████",
        "       0 |████████████",
        "          step 0 step 10",
    ]


def test_the_console_curve_without_unicode() -> None:
    lines = [{"step": 0, KEY: 0.0}, {"step": 5, KEY: 1.0}]
    assert printed(lines, encoding="ascii")[1] == "       1 |    ####"


def test_long_curves_fit_the_console_by_means() -> None:
    lines = [{"step": step, KEY: step / 1000} for step in range(1000)]
    rows = printed(lines, width=80)
    assert max(map(len, rows)) <= 80
    assert rows[4].count("█") > 30
    assert printed([{"step": 0, KEY: 0.5}])[0] == f"{KEY}: 0.500 at step 0, 0.500 at step 0"


def test_constant_and_negative_values_are_drawn() -> None:
    lines = [{"step": step, "update/loss": value} for step, value in enumerate([-1.0, -0.5])]
    out = io.StringIO()
    Console(file=out, width=80).print(console_curve(lines, ["update/loss"], height=2))
    assert out.getvalue().splitlines()[1:3] == ["    -0.5 |    ████", "      -1 |    ████"]
    zero = io.StringIO()
    Console(file=zero, width=80).print(console_curve([{"step": 0, "update/loss": 0.0}], ["update/loss"], height=2))
    assert "update/loss: 0.000" in zero.getvalue()
