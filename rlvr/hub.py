"""Tells whether a recipe's path may be a name on the Hugging Face hub or can only be a folder."""

from __future__ import annotations

from pathlib import Path


def may_be_hub_name(path: str, *, with_owner: bool = True) -> bool:
    """True for ``owner/name`` and, unless ``with_owner``, for a bare ``name``; False for what can only be a folder:
    an absolute path, one that starts with ``.`` or ``~``, one of more parts. Looks at no disk and no network."""
    if Path(path).is_absolute() or path.startswith((".", "~")):
        return False
    return path.count("/") == 1 or (not with_owner and "/" not in path)
