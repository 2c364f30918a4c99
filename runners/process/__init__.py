"""What a run lives in: its directory, checkpoints, lock, signals, environment and ranks."""
