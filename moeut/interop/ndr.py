"""Import encoder classifiers of the Neural Data Router's code (RobertCsordas/ndr at da20530).

These are its baselines (Universal Transformer, relative positions); copy gate, geometric attention
and adaptive computation time are not among them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moeut.blocks.attention import DenseAttention
from moeut.blocks.feed_forward import DenseFeedForward
from moeut.blocks.positions import PositionOptions, Relative, Sinusoidal
from moeut.config import ModelConfig
from moeut.interop.mapping import RawOptions, TensorMap, load, rename, rename_norm, reshape
from moeut.interop.transformer_generalization import (
    attention_maps,
    distinct_or_shared,
    feed_forward_maps,
    layer_names,
)
from moeut.models import EncoderClassifier

_VARIANTS: dict[str, PositionOptions] = {
    "universal": Sinusoidal(),
    "relative": Relative(learned_scale=True),
    "relative_universal": Relative(learned_scale=True),
}

# Tables, and a bias that the relative attention owns and does not use.
_IGNORE = ("int_seq", "pos.pe", "*.pos_encoding", "*.self_attn.s_bias")


def from_ndr(options: dict[str, Any], state_dict: dict[str, Tensor]) -> EncoderClassifier:
    """Return the encoder classifier that the code makes of ``options`` with ``state_dict``.

    ``options`` are that code's command-line arguments by their dotted names; vocabulary and classes
    are as many as the tensors have rows. Tokens keep their numbers: with n words, the encoder reads
    end = n and start = n + 1.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    for name in ("embedding.weight", "output_map.weight"):
        if name not in state_dict:
            raise ValueError(f"state_dict does not fit the options: missing: {name}")
    config = ndr_config(
        options,
        vocabulary_size=state_dict["embedding.weight"].shape[0],
        num_classes=state_dict["output_map.weight"].shape[0],
    )
    maps = ndr_maps(config, universal="universal" in options["transformer.variant"])
    return load(EncoderClassifier, config, maps, state_dict, ignore=_IGNORE)


def ndr_config(options: dict[str, Any], *, vocabulary_size: int, num_classes: int) -> ModelConfig:
    """Return the model config of the code's options.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    read = RawOptions(options, source="ndr")
    variant = read.word("transformer.variant", _VARIANTS)
    position = _VARIANTS[variant]
    autoregressive = read.boolean("transformer_classifier.autoregressive", False)
    read.require("transformer_classifier.autoregressive", autoregressive, False, default=False)
    read.word("trafo_classifier.out_mode", ("linear",), "linear")
    for name in ("sos", "eos"):
        read.require(name, read.boolean(name, True), True, default=True)
    test_layers = read.integer_or_none("n_test_layers")
    read.require("n_test_layers", test_layers, None, default=None)

    d_model, num_heads = read.integer("state_size", 128), read.integer("transformer.n_heads", 4)
    num_layers = read.integer("transformer.encoder_n_layers", 3)
    dropout = read.number("dropout", 0.0)
    embeddings = {"pytorch": "normal", "xavier": "glorot", "kaiming": "kaiming"}
    chosen = read.word("embedding_init", ("auto", *embeddings), "auto")
    if chosen == "auto":
        chosen = "xavier" if isinstance(position, Relative) else "pytorch"
    return ModelConfig(
        form="encoder_classifier",
        d_model=d_model,
        vocabulary_size=vocabulary_size,
        num_classes=num_classes,
        depth=distinct_or_shared(num_layers, shared="universal" in variant),
        attention=DenseAttention(
            num_heads=num_heads,
            head_size=d_model // num_heads,
            dropout=read.number("transformer.attention_dropout", 0.0),
        ),
        feed_forward=DenseFeedForward(
            hidden_size=int(read.number("transformer.ff_multiplier", 2.0) * d_model)
        ),
        position=position,
        norm="post",
        dropout=dropout,
        pooling=read.word(  # type: ignore[arg-type]
            "transformer_classifier.result_column", ("first", "last"), "first"
        ),
        initialization=embeddings[chosen],  # type: ignore[arg-type]
    )


def ndr_maps(config: ModelConfig, *, universal: bool) -> list[TensorMap]:
    """Return where each tensor of the code's state dict belongs."""
    stack = config.stacks["encoder"]
    maps = [
        rename("embedding.weight", "embedding.weight"),
        rename("output_map.weight", "head.weight"),
        rename("output_map.bias", "head.bias"),
    ]
    for theirs, ours in layer_names("trafo", "encoder", stack, universal=universal):
        maps += attention_maps(f"{theirs}.self_attn", f"{ours}.attention", stack)
        if isinstance(stack.position, Relative):
            scale = f"{ours}.attention.relative.scale"
            maps.append(reshape(f"{theirs}.self_attn.scale", scale, ()))
        maps += rename_norm(f"{theirs}.norm1", f"{ours}.attention_norm")
        maps += rename_norm(f"{theirs}.norm2", f"{ours}.feed_forward_norm")
        maps += feed_forward_maps(theirs, ours)
    return maps
