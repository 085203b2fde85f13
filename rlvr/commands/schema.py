"""`rlvr schema`: the recipe's JSON schema, for editors."""

from __future__ import annotations

import argparse
import json

from rlvr.config import json_schema


def run(arguments: argparse.Namespace) -> None:
    """Print the schema."""
    print(json.dumps(json_schema(), indent=1))
