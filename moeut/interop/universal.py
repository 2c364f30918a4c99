"""Import encoders of Universal-Transformer-Pytorch (andreamad8 at e6b0637), which answer bAbI.

Where that code errs, the options here say so: its norm divides by the unbiased deviation, it
activates what the last convolution gives, and its ponder cost has no gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.blocks.attention import DenseAttention
from moeut.blocks.feed_forward import ConvolutionalFeedForward
from moeut.blocks.positions import NoPosition
from moeut.config import ModelConfig
from moeut.interop.mapping import RawOptions, TensorMap, load, matrix_shape, rename, rename_layer
from moeut.ops import linear
from moeut.output import ModelOutput, output_of
from moeut.recurrence.conditioning import Coordinates
from moeut.recurrence.controller import NoHalting
from moeut.recurrence.halting import AdaptiveComputationTime
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.schedule import Depth
from moeut.recurrence.stack import DepthStack

_UNUSED = ("transformer_enc.layer_norm.gamma", "transformer_enc.layer_norm.beta")
_STACK = "transformer_enc"


class BabiTransformer(nn.Module):
    """Reads sentences and a query, each the weighted sum of its words, and names a word.

    ``embedding`` (V, D), ``word_weights`` (longest sentence, D), ``projection`` (D, D) and ``bias``
    (V); the output projection is the embedding.
    """

    def __init__(self, config: ModelConfig, *, longest_sentence: int) -> None:
        super().__init__()
        self.config = config
        d_model = config.d_model
        self.embedding = nn.Parameter(torch.empty(config.vocabulary_size, d_model))
        self.word_weights = nn.Parameter(torch.empty(longest_sentence, d_model))
        self.projection = nn.Parameter(torch.empty(d_model, d_model))
        self.bias = nn.Parameter(torch.empty(config.vocabulary_size))
        self.encoder = DepthStack(config.stacks["encoder"], d_model, causal=False)

    def forward(self, story: Tensor, query: Tensor, *, trace: bool = False) -> ModelOutput:
        """Return logits (B, V) of the answer to ``query`` (B, W) on ``story`` (B, S, W).

        Padding is word 0, which the embedding is not trained for.
        """
        words = torch.cat((story, query.unsqueeze(1)), dim=1)  # (B, S + 1, W)
        embedded = F.embedding(words, self.embedding, padding_idx=0)
        sentences = (embedded * self.word_weights[: words.shape[-1]]).sum(dim=2)
        out = self.encoder(linear(sentences, self.projection), Inputs(trace=trace))
        return output_of(self._read_out, encoder=out)

    def _read_out(self, states: Tensor) -> Tensor:
        return linear(states.mean(dim=1), self.embedding, self.bias)


def from_universal(options: dict[str, Any], state_dict: dict[str, Tensor]) -> BabiTransformer:
    """Return the encoder that the code makes of ``options`` with ``state_dict``.

    ``options`` are the arguments of its ``BabiUTransformer``, with ``threshold`` and
    ``act_loss_weight`` beside them.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    longest, _ = matrix_shape(state_dict, "mask")
    config = universal_config(options)
    make = functools.partial(BabiTransformer, longest_sentence=longest)
    return load(
        BabiTransformer, config, universal_maps(config), state_dict, ignore=_UNUSED, make=make
    )


def universal_config(options: dict[str, Any]) -> ModelConfig:
    """Return the model config of the code's options; each word is a class.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    read = RawOptions(options, source="Universal-Transformer-Pytorch")
    d_model, num_heads = read.integer("hidden_size"), read.integer("heads", least=1)
    key_depth = read.integer("key_depth", d_model)
    # Of unequal widths the code makes no projection, and fails.
    read.require("embedding_size", read.integer("embedding_size"), d_model, default=d_model)
    value_depth = read.integer("value_depth", key_depth)
    halting = NoHalting() if not read.boolean("act", False) else _halting(read)
    return ModelConfig(
        form="encoder_classifier",
        d_model=d_model,
        vocabulary_size=read.integer("vocab"),
        num_classes=read.integer("vocab"),
        depth=Depth(group=1, repeats=read.integer("steps")),
        conditioning=Coordinates(),
        halting=halting,
        attention=DenseAttention(
            num_heads=num_heads,
            head_size=key_depth // num_heads,
            value_head_size=value_depth // num_heads,
        ),
        feed_forward=ConvolutionalFeedForward(
            hidden_size=read.integer("filter_size"), activate_output=True
        ),
        position=NoPosition(),
        norm_kind="unbiased",
        norm_epsilon=1e-6,
        final_norm=False,
    )


def _halting(read: RawOptions) -> AdaptiveComputationTime:
    return AdaptiveComputationTime(
        threshold=read.number("threshold", 0.9),
        loss_weight=read.number("act_loss_weight", 0.001),
        halted="update",
        average="running",
        loss_over="all",
        cost="ponder_without_gradient",
    )


def with_options(model: BabiTransformer, **options: Any) -> BabiTransformer:
    """Return a model with the same weights and other options of its config."""
    config = dataclasses.replace(model.config, **options)
    other = BabiTransformer(config, longest_sentence=len(model.word_weights))
    other.to(model.bias.dtype).load_state_dict(model.state_dict())
    return other


def universal_maps(config: ModelConfig) -> list[TensorMap]:
    """Return where each tensor of the code's state dict belongs."""
    theirs, ours = f"{_STACK}.enc", "encoder.layers.0"
    maps = [
        rename("emb.weight", "embedding"),
        rename("mask", "word_weights"),
        rename("W.bias", "bias"),
        rename(f"{_STACK}.embedding_proj.weight", "projection"),
    ]
    for a, b in {"mha": "attention", "ffn": "feed_forward"}.items():
        norm = f"{theirs}.layer_norm_{a}"
        maps += [
            rename(f"{norm}.gamma", f"{ours}.{b}_norm.weight"),
            rename(f"{norm}.beta", f"{ours}.{b}_norm.bias"),
        ]
    for name in ("query", "key", "value", "output"):
        attention = f"{theirs}.multi_head_attention.{name}_linear.weight"
        maps.append(rename(attention, f"{ours}.attention.{name}.weight"))
    for index, name in enumerate(("up", "down")):
        layer = f"{theirs}.positionwise_feed_forward.layers.{index}.conv"
        maps += rename_layer(layer, f"{ours}.feed_forward.{name}")
    if not isinstance(config.halting, NoHalting):
        maps += rename_layer(f"{_STACK}.act_fn.p", "encoder.controllers.halting")
    return maps
