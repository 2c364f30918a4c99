"""Many runs: who executes them, how that is shown, and the plan of a dry run."""
