"""The ground floor of all tasks: examples, options, scoring, files and the command line."""
