"""Import looped GPT-2 backbones with the input added again in every loop.

``from_looped_length`` reads truongbuu/looped-tf at 7570c59 ("Looped Transformers for Length
Generalization", arXiv 2409.15647): no positions, logits at every position after every loop.
``from_looped_window`` reads Leiay/looped_transformer at 6b3bdb2 (arXiv 2311.12424): regression in
context, whose positions are added in every loop. In both the backbone's last norm is in the loop.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor, nn

from moeut.blocks.attention.dense import DenseAttention
from moeut.blocks.feed_forward.dense import DenseFeedForward
from moeut.blocks.positions import Learned, NoPosition, PositionOptions
from moeut.config import ModelConfig
from moeut.interop.mapping import (
    RawOptions,
    TensorMap,
    load,
    matrix_shape,
    rename,
    rename_layer,
)
from moeut.models import DecoderLM
from moeut.recurrence.injection import AddInjection, NoInjection
from moeut.recurrence.schedule import Depth
from moeut.recurrence.stack import DepthStack
from moeut.recurrence.start import InputStart, ZeroStart
from moeut.recurrence.state import State

TENSORS = dict[str, Tensor]
_IGNORE = ("_backbone.wte.*", "_backbone.wpe.*", "*.attn.bias", "*.attn.masked_bias")
_IGNORE_WINDOW = ("*.wte.*", "*.lm_head.*", "*.attn.bias")


# --- length generalization --------------------------------------------------------------


def from_looped_length(options: dict[str, Any], state_dict: TENSORS) -> DecoderLM:
    """Return the model that the code makes of its options with ``state_dict``.

    ``options``: ``d_model``, ``layers``, ``heads``, ``injection``, and ``horizon``, the most loops.
    The logits after loop i are ``repeat_logits`` of ``read_repeats=[i - 1]``. A projection of
    one-hot tokens with a bias is an embedding whose rows have the bias added.

    Raises:
        ValueError: an option is missing, or tensors are missing, left over or of another shape.
    """
    tensors = with_embedding(state_dict)
    config = looped_length_config(options, num_tokens=tensors["embedding"].shape[0])
    return load(DecoderLM, config, looped_length_maps(config), tensors, ignore=_IGNORE)


def with_embedding(state_dict: TENSORS) -> TENSORS:
    """Return the tensors with the read-in as ``embedding`` (V, D), whichever of the two it is."""
    tensors = dict(state_dict)
    rows, _ = matrix_shape(tensors, "_read_in.weight")
    weight, bias = tensors.pop("_read_in.weight"), tensors.pop("_read_in.bias", None)
    if bias is None:
        return tensors | {"embedding": weight}
    if not isinstance(bias, Tensor) or bias.shape != (rows,):
        raise ValueError(f"state_dict['_read_in.bias']: expected a vector of {rows} numbers")
    return tensors | {"embedding": weight.T + bias}


def looped_length_config(options: dict[str, Any], *, num_tokens: int) -> ModelConfig:
    """Return the model config of the code's options."""
    read = RawOptions(options, source="looped-tf")
    injects = read.boolean("injection")
    state = State(
        start=ZeroStart() if injects else InputStart(),
        injection=AddInjection() if injects else NoInjection(),
    )
    return _config(
        read,
        form="decoder_lm",
        vocabulary_size=num_tokens,
        position=NoPosition(),
        repeats=read.integer("horizon"),
        state=state,
        repeat_norm=True,
    )


def looped_length_maps(config: ModelConfig) -> list[TensorMap]:
    """Return where each tensor belongs, the read-in being ``with_embedding``."""
    return [
        rename("embedding", "embedding.weight"),
        *rename_layer("_read_out", "head"),
        *rename_layer("_backbone.ln_f", "decoder.repeat_norm"),
        *_backbone_maps("_backbone.h", "decoder.layers", config, is_transposed=True),
    ]


# --- regression in context --------------------------------------------------------------


class LoopedRegressor(nn.Module):
    """Predicts y of each x in a row x₁ y₁ x₂ y₂ …, again after every loop of a backbone.

        z ← backbone(z + e), or backbone(z · e), from 0 or 1

    ``config`` is that of the backbone; ``read_in`` (D, numbers of an x) and ``read_out`` (1, D).
    """

    def __init__(self, config: ModelConfig, *, num_inputs: int, multiplies: bool) -> None:
        super().__init__()
        self.config, self.multiplies = config, multiplies
        self.read_in = nn.Linear(num_inputs, config.d_model)
        self.backbone = DepthStack(config.stacks["decoder"], config.d_model, causal=True)
        self.read_out = nn.Linear(config.d_model, 1)

    def forward(
        self, xs: Tensor, ys: Tensor, *, loops: int, with_gradient: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return predictions (loops, B, N) and the states (B, 2N, D) after each loop.

        Args:
            xs: (B, N, numbers of an x).
            ys: (B, N).
            loops: how often the backbone is applied.
            with_gradient: last loops that gradients flow through; None: all.
        """
        padded = torch.zeros_like(xs)
        padded[..., 0] = ys
        e = self.read_in(torch.stack((xs, padded), dim=2).flatten(1, 2))  # (B, 2N, D)
        z = torch.ones_like(e) if self.multiplies else torch.zeros_like(e)
        first = 0 if with_gradient is None else loops - with_gradient
        states, predictions = [], []
        for loop in range(loops):
            with torch.no_grad() if loop < first else contextlib.nullcontext():
                z = self.backbone(z * e if self.multiplies else z + e).states
                predictions.append(self.read_out(z)[:, ::2, 0])
            states.append(z)
        return torch.stack(predictions), states


def from_looped_window(options: dict[str, Any], state_dict: TENSORS) -> LoopedRegressor:
    """Return the model that the code makes of its options with ``state_dict``.

    ``options``: ``d_model``, ``layers``, ``heads`` and ``loop_func``.

    Raises:
        ValueError: what an option asks for is not supported, or tensors are missing, left over or
            of another shape.
    """
    read = RawOptions(options, source="looped_transformer")
    loop = read.word("loop_func", ("z=f(x+z)", "z=f(x*z)"))
    length, _ = matrix_shape(state_dict, "_backbone.transformer.wpe.weight")
    _, inputs = matrix_shape(state_dict, "_read_in.weight")
    config = _config(
        read,
        form="decoder_lm",
        vocabulary_size=1,
        position=Learned(max_length=length),
        repeats=1,
    )
    make = functools.partial(LoopedRegressor, num_inputs=inputs, multiplies=loop == "z=f(x*z)")
    maps = looped_window_maps(config)
    return load(LoopedRegressor, config, maps, state_dict, ignore=_IGNORE_WINDOW, make=make)


def looped_window_maps(config: ModelConfig) -> list[TensorMap]:
    """Return where each tensor of the code's state dict belongs."""
    theirs = "_backbone.transformer"
    return [
        *rename_layer("_read_in", "read_in"),
        *rename_layer("_read_out", "read_out"),
        rename(f"{theirs}.wpe.weight", "backbone.position.weight"),
        *rename_layer(f"{theirs}.ln_f", "backbone.final_norm"),
        *_backbone_maps(f"{theirs}.h", "backbone.layers", config, is_transposed=False),
    ]


# --- what both share --------------------------------------------------------------------


def _config(
    read: RawOptions, *, position: PositionOptions, repeats: int, **others: Any
) -> ModelConfig:
    """Return the config of GPT-2 layers."""
    d_model = read.integer("d_model")
    return ModelConfig(
        d_model=d_model,
        depth=Depth(group=read.integer("layers"), repeats=repeats),
        attention=DenseAttention(num_heads=read.integer("heads", least=1), bias="all"),
        feed_forward=DenseFeedForward(hidden_size=4 * d_model, activation="gelu_tanh"),
        position=position,
        **others,
    )


def _backbone_maps(
    theirs: str, ours: str, config: ModelConfig, *, is_transposed: bool
) -> list[TensorMap]:
    """Return the maps of GPT-2 layers, whose weights may be stored input × output."""
    maps = []
    for number in range(config.depth.group):
        layer, own = f"{theirs}.{number}", f"{ours}.{number}"
        maps += rename_layer(f"{layer}.ln_1", f"{own}.attention_norm")
        maps += rename_layer(f"{layer}.ln_2", f"{own}.feed_forward_norm")
        for one, names in {
            "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
            "attn.c_proj": ("attention.output",),
            "mlp.c_fc": ("feed_forward.up",),
            "mlp.c_proj": ("feed_forward.down",),
        }.items():
            for part in ("weight", "bias"):
                to = tuple(f"{own}.{name}.{part}" for name in names)
                turns = is_transposed and part == "weight"
                maps.append(_joint(f"{layer}.{one}.{part}", to, turns=turns))
    return maps


def _joint(theirs: str, ours: tuple[str, ...], *, turns: bool) -> TensorMap:
    """Map a projection whose outputs are those of the parts, one after the other."""

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple((tensor.mT if turns and tensor.dim() > 1 else tensor).chunk(len(ours), dim=0))

    return TensorMap(theirs, ours, split)
