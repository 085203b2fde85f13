"""`rlvr export`: the model of a checkpoint as a plain Hugging Face folder."""

from __future__ import annotations

import argparse
import shutil

from transformers import AutoModelForCausalLM

from rlvr.config import RecipeError
from rlvr.dtypes import DTYPES
from rlvr.state.checkpoint import MANIFEST, STATE, newest_whole, verify


def run(arguments: argparse.Namespace) -> None:
    """Copy the model of a verified checkpoint; with --dtype its weights are converted."""
    source, output = arguments.checkpoint, arguments.output
    if (source / "checkpoints").is_dir():
        checkpoint = newest_whole(source, print, "stop")
    else:
        checkpoint = verify(source.resolve()) if (source / MANIFEST).is_file() else None
    if checkpoint is None:
        raise RecipeError(f"checkpoint: {source} is no checkpoint, nor a run's folder that holds one")
    draft = output.with_name(f".{output.name}")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(checkpoint.path, draft, ignore=shutil.ignore_patterns(STATE, MANIFEST))
    if arguments.dtype is not None:
        model = AutoModelForCausalLM.from_pretrained(draft, dtype=DTYPES[arguments.dtype])
        for old in draft.glob("*.safetensors*"):
            old.unlink()
        model.save_pretrained(draft)
    draft.rename(output)
    print(f"{output}: the model of {checkpoint.path}, after step {checkpoint.step}")
