"""From a trained model to scores of splits, texts and benchmarks."""
