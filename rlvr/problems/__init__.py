"""Problems: where they come from, when two are the same, and how they become prompts."""

from rlvr.problems.overlap import Overlap, apply_overlap, find_overlap
from rlvr.problems.references import check_references
from rlvr.problems.rows import ProblemError
from rlvr.problems.sources import load_problems
from rlvr.problems.templates import Prompt, Renderer, check_fits

__all__ = [
    "Overlap",
    "ProblemError",
    "Prompt",
    "Renderer",
    "apply_overlap",
    "check_fits",
    "check_references",
    "find_overlap",
    "load_problems",
]
