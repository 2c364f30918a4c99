"""Many runs: who executes them, their progress, and the plan of a dry run."""
