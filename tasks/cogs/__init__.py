"""COGS: the official data, the same rules as a generator, its grammar and its logical forms."""
