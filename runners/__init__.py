"""What is run: ``python -m runners.sweep`` and the other commands, and what they are made of."""
