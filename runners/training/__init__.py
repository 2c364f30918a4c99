"""From a run's config to updated weights."""
