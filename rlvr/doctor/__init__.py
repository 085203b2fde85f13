"""``rlvr doctor``: whether a recipe can learn, before its run; and why a run does not, from its files."""
