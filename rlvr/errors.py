"""Base class of all errors that end a command with a message and an exit status instead of a traceback."""

from __future__ import annotations

from typing import ClassVar


class RlvrError(Exception):
    """Something went wrong while a command ran. Errors that do not derive from it are mistakes in rlvr or a plug-in."""

    exit_status: ClassVar[int] = 1
    """What the process exits with."""


class InputError(RlvrError):
    """The input cannot be run: recipe, data, model, plug-in, launch or installed packages."""

    exit_status = 2
