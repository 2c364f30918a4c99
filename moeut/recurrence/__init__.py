"""How layers are applied in depth: the stack, its schedule and what it keeps for decoding."""
