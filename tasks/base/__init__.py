"""What every task stands on: examples, options, scoring, files and the command line."""
