"""`rlvr merge`: the weights of several models into one Hugging Face folder."""

from __future__ import annotations

import argparse

from rlvr.config.merge import MergeConfig
from rlvr.merge import merge


def run(config: MergeConfig, arguments: argparse.Namespace) -> None:
    """Merge, and say what was written."""
    merge(config, arguments.output, print)
