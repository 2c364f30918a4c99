"""Import the recurrent models of mcleish7/arithmetic (at 86022a5, arXiv 2405.17399)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from moeut.blocks.attention import AttentionOptions, DenseAttention
from moeut.blocks.feed_forward import DenseFeedForward, FeedForwardOptions, GatedFeedForward
from moeut.blocks.norms import NormPlacement
from moeut.blocks.positions import (
    Abacus,
    Fire,
    Learned,
    NoPosition,
    PositionOptions,
    Rotary,
    Sinusoidal,
)
from moeut.blocks.updates import DeepNorm, Residual
from moeut.config import ModelConfig
from moeut.interop.mapping import RawOptions, TensorMap, load, rename, reshape
from moeut.models import DecoderLM
from moeut.recurrence.injection import (
    AddInjection,
    FeedForwardInjection,
    Injection,
    LinearInjection,
    NoInjection,
)
from moeut.recurrence.schedule import Depth
from moeut.recurrence.start import InputStart, NoiseStart, Start, ZeroStart
from moeut.recurrence.state import State

OWN = "self-attention"
"""The attention that the code has itself, not PyTorch's."""

DIGITS = tuple(range(4, 14))
"""Tokens of the digits 0 to 9."""

_NORMS: dict[str, NormPlacement] = {
    "post": "post",
    "pre": "pre",
    "sandwich": "sandwich",
    "deepnorm": "post",
}
_ACTIVATIONS = {"GELU": "gelu", "SiLU": "silu", "ReLU": "relu"}
_IGNORED = ("*.norm_factor", "*.position_ids", "*.init_L", "*.inv_freq", "*.pe", "*.attention_mask")


def from_arithmetic(options: dict[str, Any], state_dict: dict[str, Tensor]) -> DecoderLM:
    """Return the model that the code makes of ``options`` with ``state_dict``.

    ``options`` are the mapping ``arch`` of that code's configuration.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    state_dict = {name.replace("._orig_mod.", "."): t for name, t in state_dict.items()}
    config = arithmetic_config(options, state_dict)
    tied = ("decoder.weight", "adapter.weight") if config.tie_embeddings else ()
    return load(
        DecoderLM, config, arithmetic_maps(config, options), state_dict, ignore=_IGNORED + tied
    )


def arithmetic_config(options: dict[str, Any], state_dict: Mapping[str, Tensor]) -> ModelConfig:
    """Return the model config of the code's options.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    read = RawOptions(options, source="arithmetic")
    embedding = read.section("embedding")
    read.word("objective_layout", ("TBPTT", "deepthinking"), "TBPTT")
    read.require(
        "sub_normalization", read.boolean("sub_normalization", False), False, default=False
    )
    scheme = read.word("norm_scheme", _NORMS, "post")
    head = read.word("head", ("identity", "ffn", "linear"), "ffn")
    injection = _injection(read)
    # Blocks of one layer each: without an injection before each, as good as one block of them.
    before_each = has_blocks(read) and not isinstance(injection, NoInjection)
    has_norm = embedding.boolean("normalization", True)
    return ModelConfig(
        form="decoder_lm",
        d_model=read.integer("hidden_size"),
        vocabulary_size=embedding.integer("vocab_size"),
        embedding_size=embedding.integer("embedding_dim"),
        head_projection=True,
        depth=Depth(
            group=read.integer("layers_in_recurrent_block"),
            repeats=read.integer("maximal_recurrence"),
        ),
        state=State(
            start=_start(read),
            injection=injection,
            before="layer" if before_each else "repeat",
            output={"identity": "none", "ffn": "feed_forward"}.get(head, "linear"),  # type: ignore[arg-type]
            output_bias=head == "linear" and read.boolean("use_bias", False),
        ),
        attention=_attention(read.section("attention"), read.integer("hidden_size")),
        feed_forward=_feed_forward(read),
        position=_position(read.section("attention"), state_dict),
        input_position=_input_position(embedding),
        norm=_NORMS[scheme],
        norm_kind={"LayerNorm": "layer", "RMSNorm": "rms"}[  # type: ignore[arg-type]
            read.word("norm", ("LayerNorm", "RMSNorm"), "LayerNorm")
        ],
        norm_epsilon=read.number("norm_eps", 1e-12),
        norm_input=has_norm,
        norm_input_weights=has_norm,
        final_norm=read.boolean("final_norm", True),
        update=DeepNorm() if scheme == "deepnorm" else Residual(),
        tie_embeddings=read.boolean("tie_weights", False),
        head_bias=read.boolean("decoder_bias", False),
    )


def has_blocks(read: RawOptions) -> bool:
    """Return whether each layer is in a block of its own."""
    return read.boolean("forward_only_model_with_skip", False)


def _start(read: RawOptions) -> Start:
    if not read.boolean("initial_hidden_randomized", True):
        return InputStart()
    starts: dict[str, Start] = {
        "normal": NoiseStart(),
        "embed": NoiseStart(deviation=0.02),
        "zero": ZeroStart(),
        "unit": NoiseStart(shape="unit"),
    }
    return starts[read.word("state_init", starts, "embed")]


def _injection(read: RawOptions) -> Injection:
    # The word none of the code is a kind of its own here, and no missing value.
    kind = read.raw("input_injection_type", "add") or "none"
    layer = _feed_forward(read)
    kinds: dict[str, Injection] = {
        "none": NoInjection(),
        "add": AddInjection(),
        "linear": LinearInjection(),
        "ffn": FeedForwardInjection(
            hidden_size=layer.width,
            activation=layer.activation,  # type: ignore[attr-defined]
            gated=isinstance(layer, GatedFeedForward),
            bias=read.boolean("use_bias", False),
        ),
    }
    if not isinstance(kind, str) or kind not in kinds:
        raise read.error("input_injection_type", kind, f"supported are {', '.join(kinds)}")
    return kinds[kind]


def _feed_forward(read: RawOptions) -> FeedForwardOptions:
    """Return the options of a layer, of which a gated one has both halves in ``intermed_size``."""
    name, width = str(read.raw("nonlin", "GELUglu")), read.integer("intermed_size")
    activation, bias = name.removesuffix("glu"), read.boolean("use_bias", False)
    if activation not in _ACTIVATIONS:
        raise read.error("nonlin", name, f"supported are {', '.join(_ACTIVATIONS)}, also with glu")
    chosen: Any = _ACTIVATIONS[activation]
    if name.endswith("glu"):
        return GatedFeedForward(hidden_size=width // 2, activation=chosen, bias=bias)
    return DenseFeedForward(hidden_size=width, activation=chosen, bias=bias)


def _attention(read: RawOptions, d_model: int) -> AttentionOptions:
    is_own = read.word("type", (OWN, "pytorch", "pytorch-seqfirst"), "pytorch") == OWN
    read.word("sequence_op", ("torch-softmax",), "torch-softmax")
    for name in ("sub_normalization", "skip_output_projection"):
        read.require(name, read.boolean(name, False), False, default=False)
    on_output = read.boolean("bias_in_proj", False)
    on_input = read.boolean("qkv_bias", False) if is_own else on_output
    if not is_own:
        read.require("qkv_bias", read.boolean("qkv_bias", False), False, default=False)
    bias = {(True, True): "all", (True, False): "input", (False, True): "output"}
    num_heads = read.integer("num_attention_heads", least=1)
    return DenseAttention(
        num_heads=num_heads,
        head_size=d_model // num_heads,
        bias=bias.get((on_input, on_output), "none"),  # type: ignore[arg-type]
    )


def _position(read: RawOptions, state_dict: Mapping[str, Tensor]) -> PositionOptions:
    kind = read.raw("rotary_embedding", False)
    if read.raw("type", "pytorch") != OWN:
        return NoPosition()
    if kind == "fire":
        return _fire(state_dict, max_length=read.integer("max_length", 0))
    if kind is not None and not isinstance(kind, bool | int | str):
        raise read.error("rotary_embedding", kind, "supported are true, false and fire")
    is_rotary = kind is not None and read.boolean("rotary_embedding", False)
    return Rotary(fraction=1.0) if is_rotary else NoPosition()


def _fire(state_dict: Mapping[str, Tensor], *, max_length: int) -> Fire:
    """Return FIRE with the fixed length of each layer, of which the magnitude counts."""
    lengths = {n: t for n, t in state_dict.items() if n.endswith("rotary_emb.init_L")}
    by_layer = [abs(float(lengths[name])) for name in sorted(lengths, key=_numbers)]
    if len(set(by_layer)) > 1:
        return Fire(thresholds=tuple(by_layer), max_length=max_length)
    return Fire(threshold=by_layer[0] if by_layer else 512.0, max_length=max_length)


def _numbers(name: str) -> list[int]:
    """Return the numbers in a name, by which layers are in order."""
    return [int(word) for word in name.split(".") if word.isdigit()]


def _input_position(read: RawOptions) -> PositionOptions:
    kind = read.raw("pos_embedding", None) or "none"
    longest = read.integer("max_seq_length", 1024)
    if kind == "abacus":
        offset = read.integer("max_abacus_len", 99)
        return Abacus(max_length=longest - 1 - offset, max_offset=offset, digits=DIGITS)
    kinds: dict[str, PositionOptions] = {
        "none": NoPosition(),
        "learned": Learned(max_length=longest),
        "sinusoidal": Sinusoidal(table="exact"),
    }
    if not isinstance(kind, str) or kind not in kinds:
        raise read.error("pos_embedding", kind, f"supported are abacus, {', '.join(kinds)}")
    return kinds[kind]


# --- tensors ----------------------------------------------------------------------------


def arithmetic_maps(config: ModelConfig, options: dict[str, Any]) -> list[TensorMap]:
    """Return where each tensor of the code's state dict belongs."""
    maps = [rename("encoder.embedding.word_embedding.weight", "embedding.weight")]
    if isinstance(config.input_position, Abacus | Learned):
        theirs = "encoder.embedding.pos_embedding.embedding.weight"
        maps.append(rename(theirs, "decoder.position.weight"))
    if config.norm_input:
        maps += _norm("encoder.embedding.norm", "decoder.input_norm", config)
    if config.embedding_size != config.d_model:
        maps.append(rename("encoder.adapter.weight", "decoder.adapter.weight"))
    if config.final_norm:
        maps += _norm("encoder.final_norm", "decoder.final_norm", config)
    if config.state.output == "feed_forward":
        maps += _feed_forward_maps("encoder.head", "decoder.output.feed_forward", config)
    elif config.state.output == "linear":
        maps += _parts("encoder.head", "decoder.output", bias=config.state.output_bias)
    if not config.tie_embeddings:
        maps.append(rename("decoder.weight", "head.weight"))
        maps.append(rename("adapter.weight", "head.projection"))
    if config.head_bias:
        maps.append(rename("decoder.bias", "head.bias"))
    read = RawOptions(options, source="arithmetic")
    is_own = read.section("attention").raw("type", "pytorch") == OWN
    for index, (block, layer) in enumerate(_places(config, in_blocks=has_blocks(read))):
        maps += _layer_maps(layer, f"decoder.layers.{index}", config, by_head=is_own)
        rule = "decoder.controllers.injection.rule"
        if config.state.before == "layer":
            maps += _injection_maps(block, f"{rule}s.{index}", config)
        elif index == 0:
            maps += _injection_maps(block, rule, config)
    return maps


def _places(config: ModelConfig, *, in_blocks: bool) -> list[tuple[str, str]]:
    """Return what the code calls the block of each layer, and the layer."""
    count = range(config.depth.group)
    if in_blocks:
        blocks = [f"encoder.recurrent_blocks.{index}" for index in count]
        return [(block, f"{block}.layers.0") for block in blocks]
    block = "encoder.recurrent_block"
    return [(block, f"{block}.layers.{index}") for index in count]


def _parts(theirs: str, ours: str, *, bias: bool) -> list[TensorMap]:
    parts = ("weight", "bias") if bias else ("weight",)
    return [rename(f"{theirs}.{part}", f"{ours}.{part}") for part in parts]


def _norm(theirs: str, ours: str, config: ModelConfig) -> list[TensorMap]:
    if config.norm_kind == "rms":
        return [rename(f"{theirs}.learnable_scale", f"{ours}.weight")]
    return _parts(theirs, ours, bias=True)


def _injection_maps(theirs: str, ours: str, config: ModelConfig) -> list[TensorMap]:
    injection = config.state.injection
    if isinstance(injection, LinearInjection):
        return [rename(f"{theirs}.adapter.weight", f"{ours}.weight")]
    if not isinstance(injection, FeedForwardInjection):
        return []
    maps = []
    for part, end in (("weight", ""), ("bias", "_bias"))[: 1 + injection.bias]:
        first, names = f"{theirs}.ffn.dense_in.{part}", (f"{ours}.up{end}",)
        maps.append(
            TensorMap(first, names, _gate_first) if injection.gated else rename(first, *names)
        )
        maps.append(rename(f"{theirs}.ffn.dense_out.{part}", f"{ours}.down{end}"))
    return maps


def _gate_first(tensor: Tensor) -> tuple[Tensor, ...]:
    """Swap the halves of the rows: theirs has the gate in the second."""
    value, gate = tensor.chunk(2)
    return (torch.cat((gate, value)),)


def _feed_forward_maps(theirs: str, ours: str, config: ModelConfig) -> list[TensorMap]:
    options = config.feed_forward
    assert isinstance(options, DenseFeedForward | GatedFeedForward)
    maps = []
    for part in ("weight", "bias")[: 1 + options.bias]:
        first = f"{theirs}.dense_in.{part}"
        if isinstance(options, GatedFeedForward):
            names = (f"{ours}.up.{part}", f"{ours}.gate.{part}")
            maps.append(TensorMap(first, names, lambda tensor: tensor.chunk(2)))
        else:
            maps.append(rename(first, f"{ours}.up.{part}"))
        maps.append(rename(f"{theirs}.dense_out.{part}", f"{ours}.down.{part}"))
    return maps


def _layer_maps(theirs: str, ours: str, config: ModelConfig, *, by_head: bool) -> list[TensorMap]:
    attention = config.attention
    assert isinstance(attention, DenseAttention)
    maps = _feed_forward_maps(f"{theirs}.ffn", f"{ours}.feed_forward", config)
    for number, name in ((1, "attention"), (2, "feed_forward")):
        residual = f"{theirs}.residual{number}"
        maps += _norm(f"{residual}.norm", f"{ours}.{name}_norm", config)
        if config.norm == "sandwich":
            maps += _norm(f"{residual}.norm2", f"{ours}.{name}_second_norm", config)
    inside = f"{theirs}.attn" if by_head else f"{theirs}.attn.attn"
    split = _by_head(attention.num_heads, attention.head_size) if by_head else _thirds
    for part in ("weight", "bias")[: 1 + ("query" in attention.biased)]:
        names = tuple(f"{ours}.attention.{name}.{part}" for name in ("query", "key", "value"))
        maps.append(TensorMap(f"{inside}.in_proj_{part}", names, split))
    has_bias = "output" in attention.biased
    maps += _parts(f"{inside}.out_proj", f"{ours}.attention.output", bias=has_bias)
    if isinstance(config.position, Fire):
        fire, relative = f"{inside}.rotary_emb", f"{ours}.attention.relative"
        maps.append(reshape(f"{fire}.c", f"{relative}.scale", ()))
        maps.append(reshape(f"{fire}.L_multiplier", f"{relative}.factor", ()))
        maps += _parts(f"{fire}.mlp.0", f"{relative}.up", bias=True)
        maps += _parts(f"{fire}.mlp.2", f"{relative}.down", bias=True)
    return maps


def _thirds(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.chunk(3)


def _by_head(num_heads: int, head_size: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return the map of rows laid out as [head, (query, key, value), d]."""

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        blocks = tensor.unflatten(0, (num_heads, 3, head_size))
        return tuple(blocks[:, index].flatten(0, 1) for index in range(3))

    return split
