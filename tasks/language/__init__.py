"""Language modelling: corpora, tokenizers, packed tokens and the windows that a model sees."""
