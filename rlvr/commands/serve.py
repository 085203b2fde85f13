"""`rlvr serve`: a vLLM server that runs on other machines can use."""

from __future__ import annotations

import argparse

from rlvr.config import Recipe, RecipeError
from rlvr.engines.make import serve_recipe
from rlvr.engines.servers.guard import reachable_by_others
from rlvr.run.build import make_accelerator, prepare_model, quiet_libraries
from rlvr.run.versions import check_versions


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Become `vllm serve` for this recipe's runs; an address that others reach is refused unless asked for."""
    _check_host(arguments.host, arguments.public)
    check_versions("vllm_servers")
    quiet_libraries()
    prepare_model(recipe, make_accelerator(recipe), print)
    serve_recipe(recipe, arguments.host, arguments.port)


def _check_host(host: str, is_public: bool) -> None:
    """Weights and token travel unencrypted, so a public address must be asked for explicitly."""
    try:
        why = reachable_by_others(host)
    except OSError as error:
        raise RecipeError(f"--host: {host!r} is no address of this machine: {error.strerror or error}") from error
    if why is not None and not is_public:
        raise RecipeError(
            f"--host: {host!r} must be a loopback or private address, {why}: whoever reads the traffic there has the "
            "token, and with it the weights. Name a private address, or add --public where a firewall or a tunnel "
            "keeps others out"
        )
