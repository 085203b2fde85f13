"""The command-line arguments of ``rlvr view``, separate from its server, which is slow to import."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_view_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, such as runs/quickstart")
    command.add_argument("--port", type=_port, default=8765, help="0 takes a free one (default %(default)s)")
    command.add_argument("--no-browser", action="store_true", help="do not open the page")
    command.add_argument(
        "--export", type=Path, metavar="FILE.html", help="write one file that needs no server, and end"
    )
    command.add_argument(
        "--export-rollouts", type=int, default=1000, metavar="N",
        help="most rollouts that the file holds: suspects and whole steps, evenly (default %(default)s)",
    )  # fmt: skip


def _port(text: str) -> int:
    """A number from 0 to 65535."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, got {text!r}")
    return int(text)
