"""`rlvr schema`: the recipe's JSON schema, for editors; with a key, what it means."""

from __future__ import annotations

import argparse
import json

from rlvr.config import json_schema
from rlvr.config.reference import explain


def run(arguments: argparse.Namespace) -> None:
    """Print the schema, or explain the key that was given."""
    print(json.dumps(json_schema(), indent=1) if arguments.key is None else explain(arguments.key).rstrip())
