"""Objects named ``module:name``: what is found, and what is said of a name that leads nowhere."""

from pathlib import Path

import pytest

from rewards.names import NameNotFound, load_named, nearest


def test_the_object_and_its_module() -> None:
    found, module = load_named("rewards.names:nearest")
    assert found is nearest
    assert module.__name__ == "rewards.names"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("rewards.names", "'rewards.names' is not of the form 'module:name'"),
        (":nearest", "is not of the form 'module:name'"),
        ("rewards.names:", "is not of the form 'module:name'"),
        ("rewards.naems:nearest", "there is no module 'rewards.naems'; did you mean 'rewards.names'?"),
        ("rewards.names:neerest", "module 'rewards.names' has no function or class 'neerest'; did you mean 'nearest'?"),
        ("rewards.names:__doc__", "has no function or class '__doc__'"),
    ],
)
def test_a_name_that_leads_nowhere(path: str, message: str) -> None:
    with pytest.raises(NameNotFound) as caught:
        load_named(path, only_callable=True)
    assert message in str(caught.value)


def test_what_a_module_itself_fails_to_import_is_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is there and imports one that is not: the author sees the traceback, not "no such module"."""
    (tmp_path / "names_broken.py").write_text("import names_absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="names_absent"):
        load_named("names_broken:anything")
