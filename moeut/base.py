"""What the forms of a model share: embedding, head, saving."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from moeut.blocks.embeddings import Embedding, Head
from moeut.config import ModelConfig
from moeut.recurrence.stack import DepthStack
from moeut.recurrence.stack_config import StackConfig

if TYPE_CHECKING:
    from moeut.recurrence.exit_rules import ExitRule


class Model(nn.Module):
    """What the three forms share: embedding, saving, and their config."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        """Recompute each layer in the backward pass instead of keeping its activations."""
        self.exit_rule: ExitRule | None = None
        """When tokens leave in evaluation (a decoder's, if there is one); it is not saved."""
        self.embedding = Embedding(config.vocabulary_size, config.embedding_size)
        self.head: Head

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` into ``directory``."""
        from moeut.saving import save

        save(self, directory)

    def _embed(self, embedding: Embedding, tokens: Tensor, name: str) -> Tensor:
        if tokens.dim() != 2 or tokens.dtype.is_floating_point:
            raise ValueError(
                f"{name}: expected whole numbers of shape (rows, columns), got {tokens.dtype} of "
                f"shape {tuple(tokens.shape)}"
            )
        x = embedding(tokens)
        if self.config.embedding_scale == "sqrt_d_model":
            x = x * math.sqrt(self.config.d_model)
        return x

    def _read_out(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the logits of what a stack returned, states (B, T, D)."""
        decoder = getattr(self, "decoder", None)
        return self.head(states, self.embedding.weight, decoder and decoder.adapter)

    def lens(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the logits of a state (B, T, D) of the last stack, as if it were the last one.

        Only final norm and head read it, no layer of the coda. ``mask`` (B, T): real tokens, by
        which a classifier finds its column. The state after the last application gives ``logits``,
        unless a controller makes the result of several states. Of nostalgebraist's logit lens
        (2020).
        """
        stack: Any = getattr(self, "decoder", None) or self.encoder
        norm = stack.final_norm
        return self._read_out(states if norm is None else norm(states), mask)


def build_stack(
    options: StackConfig, d_model: int, *, causal: bool, cross_attention: bool = False
) -> DepthStack:
    """Return the stack that ``options`` describe."""
    kind: type[DepthStack] = DepthStack
    if options.is_recursive:
        # Only a model with a recursion loads its module.
        from moeut.recurrence.recursive_stack import RecursiveStack

        kind = RecursiveStack
    return kind(options, d_model, causal=causal, cross_attention=cross_attention)
