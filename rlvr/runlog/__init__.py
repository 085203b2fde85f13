"""What a run writes down: jsonl files, console, trackers, plots, and what every metric means."""
