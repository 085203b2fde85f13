"""``rlvr doctor``: before a run, whether its recipe can learn; afterwards, from its files, why it did not."""
