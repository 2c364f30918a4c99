"""What is run: ``python -m runners.sweep`` and the other commands, and what they are made of."""

import sys

if sys.argv[0] == "-m":  # Python is looking for the module of a command, which is imported next
    from runners.process.signals import end_at_interrupt

    end_at_interrupt()
