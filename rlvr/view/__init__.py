"""`rlvr view`: browse run folders, during a run or afterwards. Reads their files, never writes to them."""
