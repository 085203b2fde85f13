"""`rlvr serve`: a vLLM server for runs elsewhere."""

from __future__ import annotations

import argparse

from rlvr.config import Recipe
from rlvr.engines.make import serve_recipe
from rlvr.run.build import make_accelerator, prepare_model, quiet_libraries
from rlvr.run.versions import check_versions


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Become `vllm serve` for this recipe's runs."""
    check_versions("vllm_servers")
    quiet_libraries()
    prepare_model(recipe, make_accelerator(recipe), print)
    serve_recipe(recipe, arguments.host, arguments.port)
