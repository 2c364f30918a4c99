"""Import TRM, HRM and URM.

The codes are SamsungSAILMontreal/TinyRecursiveModels at e7b6871 (with its variant ``singlez``),
sapientinc/HRM at 42410da and UbiquantAI/URM at 41de2c3. Which of them a checkpoint is of shows in
its tensors; widths of feed-forwards, which the codes round, are theirs too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moeut.blocks.attention.base import AttentionOptions
from moeut.blocks.attention.dense import DenseAttention
from moeut.blocks.embeddings import Prefix
from moeut.blocks.feed_forward.gated import GatedFeedForward
from moeut.blocks.positions import Learned, NoPosition, PositionOptions, Rotary
from moeut.config import ModelConfig
from moeut.encoders import EncoderLabeller
from moeut.interop.mapping import RawOptions, TensorMap, load, matrix_shape, rename
from moeut.recurrence.carry import Carry
from moeut.recurrence.recursion import Recursion, SingleLevel, TwoLevel
from moeut.recurrence.schedule import Depth

_IGNORE = ("puzzle_emb.local_*", "rotary_emb.*")
TENSORS = dict[str, Tensor]


def from_recursive_reasoning(options: dict[str, Any], state_dict: TENSORS) -> EncoderLabeller:
    """Return the model that a code makes of its ``options`` (``arch``) with ``state_dict``.

    The logits at each position are over the tokens that it reads, and ``prefix_numbers`` are puzzle
    identifiers.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    tensors = unwrapped(state_dict)
    config = recursive_config(options, tensors)
    return load(EncoderLabeller, config, recursive_maps(config), tensors, ignore=_IGNORE)


def unwrapped(state_dict: TENSORS) -> TENSORS:
    """Return tensors without the names of what wraps the model: compiler, loss and carry."""
    inside = "embed_tokens.embedding_weight"
    wrappers = [name.removesuffix(inside) for name in state_dict if name.endswith(inside)]
    return {name.removeprefix("".join(wrappers[:1])): t for name, t in state_dict.items()}


def recursive_config(options: dict[str, Any], tensors: TENSORS) -> ModelConfig:
    """Return the model config of a code's options and its tensors.

    Raises:
        ValueError: what an option asks for is not supported, or a tensor is missing.
    """
    read = RawOptions(options, source="trm, hrm or urm")
    vocabulary, d_model = matrix_shape(tensors, "embed_tokens.embedding_weight")
    layer = "layers.0" if is_urm(tensors) else "L_level.layers.0"
    up_rows, _ = matrix_shape(tensors, f"{layer}.mlp.gate_up_proj.weight")
    return ModelConfig(
        form="encoder_labeller",
        vocabulary_size=vocabulary,
        num_classes=matrix_shape(tensors, "lm_head.weight")[0],
        d_model=d_model,
        depth=Depth(
            group=read.integer("num_layers" if is_urm(tensors) else "L_layers"),
            repeats=read.integer("H_cycles"),
        ),
        recursion=_recursion(read, tensors),
        carry=_carry(read, tensors),
        prefix=_prefix(read, tensors, d_model),
        attention=_attention(read, tensors, layer),
        feed_forward=_feed_forward(tensors, up_rows // 2),
        position=_position(read, tensors),
        norm="post",
        norm_kind="rms",
        norm_weights=False,
        norm_epsilon=read.number("rms_norm_eps", 1e-5),
        embedding_scale="sqrt_d_model",
        head_bias=False,
        initialization="lecun",
    )


def is_urm(tensors: TENSORS) -> bool:
    """Return whether these are the tensors of URM."""
    return "init_hidden" in tensors


def is_hrm(tensors: TENSORS) -> bool:
    """Return whether these are the tensors of HRM, which has a network for each state."""
    return any(name.startswith("H_level.") for name in tensors)


def _carry(read: RawOptions, tensors: TENSORS) -> Carry:
    if is_urm(tensors):
        return Carry(steps=read.integer("loops"), halting="right")
    learns_value = is_hrm(tensors) or not read.boolean("no_ACT_continue", True)
    steps = read.integer("halt_max_steps")
    return Carry(steps=steps, halting="value" if learns_value else "right")


def _recursion(read: RawOptions, tensors: TENSORS) -> Recursion:
    cycles = read.integer("L_cycles")
    if is_urm(tensors):
        return SingleLevel(low_cycles=cycles)
    if "H_init" not in tensors:
        return SingleLevel(low_cycles=cycles, closes=True)
    if is_hrm(tensors):
        return TwoLevel(
            low_cycles=cycles,
            networks="two",
            high_group=read.integer("H_layers"),
            gradient="last_updates",
        )
    return TwoLevel(low_cycles=cycles)


def _prefix(read: RawOptions, tensors: TENSORS, d_model: int) -> Prefix:
    size = read.integer("puzzle_emb_ndim", 0)
    if size == 0:
        return Prefix()
    is_trm = not is_urm(tensors) and not is_hrm(tensors)
    # Only TRM has the option; 0 stands for as many rows as the numbers fill.
    rows = read.integer("puzzle_emb_len", 16) if is_trm else 0
    rows = rows or -(-size // d_model)
    return Prefix(rows=rows, size=size, count=matrix_shape(tensors, "puzzle_emb.weights")[0])


def _feed_forward(tensors: TENSORS, hidden_size: int) -> GatedFeedForward:
    """Return SwiGLU; that of URM has a convolution over two positions behind the product."""
    convolution = {"short_convolution": 2} if is_urm(tensors) else {}
    return GatedFeedForward.from_dict({"hidden_size": hidden_size, **convolution})


def _attention(read: RawOptions, tensors: TENSORS, layer: str) -> AttentionOptions:
    mixing = f"{layer}.mlp_t.gate_up_proj.weight"
    if mixing in tensors:
        from moeut.blocks.attention.token_mixing import TokenMixing

        hidden, length = matrix_shape(tensors, mixing)
        return TokenMixing(max_length=length, hidden_size=hidden // 2, norm_over="positions")
    return DenseAttention(num_heads=read.integer("num_heads", least=1))


def _position(read: RawOptions, tensors: TENSORS) -> PositionOptions:
    if "embed_pos.embedding_weight" in tensors:
        length, _ = matrix_shape(tensors, "embed_pos.embedding_weight")
        return Learned.from_dict({"max_length": length, "keep_variance": True})
    word = "rope"
    if not is_urm(tensors):  # "none" may be written as a word or as nothing
        given = read.raw("pos_encodings")
        word = "none" if given is None else read.word("pos_encodings", ("rope", "learned"))
    if word != "rope" or any(".mlp_t." in name for name in tensors):
        return NoPosition()
    return Rotary(fraction=1.0, base=read.number("rope_theta", 10000.0))


def recursive_maps(config: ModelConfig) -> list[TensorMap]:
    """Return where each tensor of the code's state dict belongs, ``unwrapped``."""
    recursion = config.recursion
    maps = [
        rename("embed_tokens.embedding_weight", "embedding.weight"),
        rename("lm_head.weight", "head.weight"),
    ]
    if config.carry.halting != "none":
        maps += [rename(f"q_head.{part}", f"halt_head.{part}") for part in ("weight", "bias")]
    if config.prefix.rows:
        maps.append(rename("puzzle_emb.weights", "prefix.weight"))
    if isinstance(config.position, Learned):
        maps.append(rename("embed_pos.embedding_weight", "encoder.position.weight"))
    in_urm = isinstance(recursion, SingleLevel) and not recursion.closes
    maps.append(rename("init_hidden" if in_urm else "L_init", "encoder.initial_low"))
    if recursion.num_states == 2:
        maps.append(rename("H_init", "encoder.initial_high"))
    levels = ["layers"] if in_urm else ["L_level.layers"]
    if isinstance(recursion, TwoLevel) and recursion.networks == "two":
        levels.append("H_level.layers")
    for network, level in enumerate(levels):
        for number, layer in enumerate(recursion.group_of(network, config.depth)):
            maps += _layer_maps(f"{level}.{number}", f"encoder.layers.{layer}", config)
    return maps


def _layer_maps(theirs: str, ours: str, config: ModelConfig) -> list[TensorMap]:
    maps = [
        _split(f"{theirs}.mlp.gate_up_proj.weight", f"{ours}.feed_forward", ("gate", "up")),
        rename(f"{theirs}.mlp.down_proj.weight", f"{ours}.feed_forward.down.weight"),
    ]
    if getattr(config.feed_forward, "short_convolution", 0):
        convolution = f"{ours}.feed_forward.convolution"
        maps += [
            TensorMap(
                f"{theirs}.mlp.dwconv.weight",  # (F, 1, k)
                (f"{convolution}.weight",),
                split=lambda tensor: (tensor.squeeze(1),),
            ),
            rename(f"{theirs}.mlp.dwconv.bias", f"{convolution}.bias"),
        ]
    if isinstance(config.attention, DenseAttention):
        qkv = ("query", "key", "value")
        return [
            *maps,
            _split(f"{theirs}.self_attn.qkv_proj.weight", f"{ours}.attention", qkv),
            rename(f"{theirs}.self_attn.o_proj.weight", f"{ours}.attention.output.weight"),
        ]
    return [
        *maps,
        _split(f"{theirs}.mlp_t.gate_up_proj.weight", f"{ours}.attention", ("gate", "up")),
        rename(f"{theirs}.mlp_t.down_proj.weight", f"{ours}.attention.down.weight"),
    ]


def _split(theirs: str, ours: str, parts: tuple[str, ...]) -> TensorMap:
    """Map a joint projection whose rows are those of the parts, one after the other."""
    return TensorMap(
        theirs,
        tuple(f"{ours}.{part}.weight" for part in parts),
        split=lambda tensor: tuple(tensor.chunk(len(parts), dim=0)),
    )
