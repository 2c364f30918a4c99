"""What a run lives in: its directory, checkpoints, messages, signals, environment and ranks."""
