"""The register of stateful objects: everything that can change the future of a run is listed, saved and restored here.

Each owner of state registers itself once, during set-up; a checkpoint asks the register, never the objects.
"""

from __future__ import annotations

from typing import Any, Protocol


class Stateful(Protocol):
    """Something whose state belongs in a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue as if nothing had happened: JSON values and tensors.

        Tensors may alias live state: copy them if you keep them past the next step.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned."""


class StateRegister:
    """Names of stateful objects, each with the version of its format."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, Stateful]] = {}

    def add(self, name: str, owner: Stateful, *, version: int = 1) -> None:
        """Register `owner` under `name`; a name taken twice is a mistake in the program and raises `ValueError`."""
        if name in self._entries:
            raise ValueError(f"state {name!r} is registered twice: each owner needs a name of its own")
        self._entries[name] = (version, owner)

    def names(self) -> list[str]:
        """Registered names, in the order of registration."""
        return list(self._entries)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """``{name: {"version": v, "state": ...}}`` of every owner."""
        return {name: {"version": v, "state": owner.state_dict()} for name, (v, owner) in self._entries.items()}

    def load_state_dict(self, saved: dict[str, dict[str, Any]]) -> None:
        """Restore every owner, or none: a missing, unknown or newer entry raises `ValueError` before any changes."""
        missing, unknown = set(self._entries) - set(saved), set(saved) - set(self._entries)
        if missing or unknown:
            raise ValueError(
                f"the checkpoint does not fit this run: it lacks {sorted(missing) or 'nothing'} and holds "
                f"{sorted(unknown) or 'nothing'} that this run does not know; was the recipe changed?"
            )
        for name, (version, _) in self._entries.items():
            if saved[name]["version"] != version:
                raise ValueError(
                    f"state {name!r} in the checkpoint has format {saved[name]['version']}, this rlvr reads {version}"
                )
        for name, (_, owner) in self._entries.items():
            owner.load_state_dict(saved[name]["state"])
