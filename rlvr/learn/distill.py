"""On-policy distillation: loads the teacher, a second frozen model that scores what the policy samples."""

from __future__ import annotations

from rlvr.config.recipe import Model
from rlvr.learn.policy import Policy, PolicyError


def load_teacher(model: Model, path: str, policy: Policy) -> Policy:
    """The model at `path`, loaded as the recipe's own. Raises `PolicyError` if it cannot be, or if a token id does not
    mean the same to both: its log-probabilities would be those of other tokens."""
    teacher = Policy.load(model.model_copy(update={"path": path, "lora": None}), head_chunk=policy.head_chunk)
    ours, theirs = policy.tokenizer, teacher.tokenizer
    if ours is not None and theirs is not None:
        our_ids, their_ids = ours.get_vocab(), theirs.get_vocab()
        differing = sorted(
            token for token in our_ids.keys() | their_ids.keys() if our_ids.get(token) != their_ids.get(token)
        )
        if differing:
            raise PolicyError(
                f"algorithm.distillation.path: the tokenizer of {path!r} is not the policy's: {len(differing)} tokens "
                f"have other ids or are missing, {differing[0]!r} for one; take a teacher of the same family"
            )
    sizes = policy.model.config.vocab_size, teacher.model.config.vocab_size
    if (ours is None or theirs is None) and sizes[0] != sizes[1]:
        raise PolicyError(
            f"algorithm.distillation.path: {path!r} has {sizes[1]} tokens, the policy {sizes[0]}; take a teacher of "
            "the same family"
        )
    return teacher
