"""What a layer is made of: attention, feed-forward, positions, norms and routing."""
