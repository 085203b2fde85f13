"""What a run records: JSON-lines files, console, trackers, plots, and the meaning of every metric."""
