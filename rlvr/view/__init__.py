"""`rlvr view`: run folders in a browser, while they are written or after. Reads runs, never writes to their files."""
