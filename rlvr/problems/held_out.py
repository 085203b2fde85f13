"""Decides which generated problems are held out: by a hash of seed and key, the same in every split and run."""

from __future__ import annotations

import hashlib

SPACE = 2**64


def rank(seed: int, name: str) -> int:
    """A number in [0, 2**64) that depends on seed and name alone: uniform over names, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=8).digest(), "big")


def is_held_out(seed: int, key: str, share: float) -> bool:
    """True for about `share` of all keys, however many are asked for."""
    return rank(seed, key) < share * SPACE
