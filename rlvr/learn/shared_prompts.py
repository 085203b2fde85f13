"""Prompts that are computed once for all the completions to them.

The G completions of a group begin with the same tokens. Here the shared positions stand once in a row, before the
completions that continue them, and every layer that treats positions alone (embedding, projections, norms, MLP: all but
attention) computes them once. Attention reads whole sequences: queries, keys and values are copied into a row for each
sample and one for each prompt, and of its result each position is taken from the row that owns it:

    compact       p p p a a b b b          positions 0 1 2 3 4 3 4 5
    for attention p p p a a .              the queries of a, over the keys of p and a
                  p p p b b b
                  p p p . . .              the prompt's own queries: once

It is the same function of the weights: causal attention would make the copies of a shared position equal, and the
gradient of its key and value is the sum over the rows that read them. With P prompt and T completion tokens, P + G T
positions are computed instead of G (P + T). (The idea is Prefix Grouper's, 2506.05433.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr.records import SharedPrompts


def to_rows(compact: Float[Tensor, "1 H N D"], layout: SharedPrompts, heads: int) -> Float[Tensor, "R L K W"]:
    """What each row reads, padded on the right with some other position's; K key heads, W = D H / K."""
    flat = compact[0].transpose(0, 1).flatten(1)
    return flat.index_select(0, layout.rows.flatten()).view(*layout.rows.shape, heads, -1)


def to_compact(rows: Float[Tensor, "R L K W"], layout: SharedPrompts, width: int) -> Float[Tensor, "1 N H D"]:
    """Each position from the row that owns it; ``width`` is D."""
    return rows.flatten(0, 1).index_select(0, layout.owners).view(1, len(layout.owners), -1, width)


def to_owners(compact: Float[Tensor, "1 N H D"], layout: SharedPrompts, heads: int) -> Float[Tensor, "R L K W"]:
    """The reverse of `to_compact`: each position in the row that owns it, zeros elsewhere."""
    rows = compact.new_zeros(layout.rows.numel(), compact[0, 0].numel())
    rows[layout.owners] = compact[0].flatten(1)
    return rows.view(*layout.rows.shape, heads, -1)


def gathered(rows: Float[Tensor, "R L K D"], layout: SharedPrompts) -> Float[Tensor, "1 K N D"]:
    """The gradient of what `to_rows` copied: a shared position's is the sum over its rows, in float32 at least."""
    compact = to_compact(rows, layout, rows.shape[-1])[0]
    wide = torch.promote_types(rows.dtype, torch.float32)
    for first, end, start, shared, _ in layout.blocks.tolist():
        if shared:
            compact[start : start + shared] += rows[first:end, :shared].sum(0, dtype=wide)
    return compact.transpose(0, 1)[None]
