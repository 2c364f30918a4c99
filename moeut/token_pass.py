"""One token of each row through a whole model in one operation in C++, where text is written.

A pass that continues a cache by one token spends more time between its products than in them. Where
all parts of a model are of the plain kinds, ``moeut.ops.native`` computes such a pass in one call,
from copies of the dense weights that are laid out for a few rows. It differs from the model's own
pass by rounding, so that it serves within ``moeut.ops.fewest_rows`` alone.

Weights that bfloat16 holds without loss, as it holds those that were rounded to it, are read from
copies in it: the same numbers from half the memory, and to read them is most of what a token costs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.base import Model
from moeut.blocks.attention.dense import DenseMultiHeadAttention
from moeut.blocks.attention.switch_head import SwitchHeadAttention
from moeut.blocks.feed_forward.dense import DenseMLP
from moeut.blocks.feed_forward.sigma_moe import SigmaMoEMLP
from moeut.blocks.layer import Layer
from moeut.blocks.norms import LayerNorm
from moeut.blocks.positions import NoPosition, Rotary
from moeut.blocks.positions.rotary import rotary_frequencies
from moeut.blocks.updates import Update
from moeut.ops import native
from moeut.recurrence.cache import StackCache
from moeut.recurrence.stack import DepthStack

MOST_ROWS = 32
"""Rows up to which a pass is one operation; tiles of more rows are multiplied faster."""

WEIGHTS = ("float32", "bfloat16")
"""What weights may be rounded to where text is written."""


@torch.no_grad()
def round_weights(model: nn.Module, weights: str) -> None:
    """Round the matrices of a model to bfloat16 where ``weights`` says so, in place.

    They stay float32 tensors, and so does the arithmetic; vectors (norms, biases) keep all digits.
    A token that is written on a CPU then reads half as much memory, from copies that take half as
    much again.

    Raises:
        ValueError: not one of ``WEIGHTS``.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r}: expected {' or '.join(WEIGHTS)}")
    if weights == "float32":
        return
    for one in model.parameters():
        if one.dim() >= 2:
            one.copy_(one.to(torch.bfloat16))


def read(
    model: Model, stack: DepthStack, tokens: Tensor, cache: StackCache, num_repeats: int | None
) -> Tensor | None:  # (B, 1, V)
    """Return the logits of ``tokens`` (B, 1), which the cache takes up, if one operation serves.

    None where it does not; then nothing has happened.
    """
    is_few = tokens.dim() == 2 and tokens.shape[1] == 1 and 0 < tokens.shape[0] <= MOST_ROWS
    if not is_few or torch.is_grad_enabled() or cache.is_empty:
        return None
    if cache.token_pass is None:
        is_served = why_not(model, stack) is None
        cache.token_pass = TokenPass(model, stack, cache.num_repeats) if is_served else False
    is_same_depth = stack.resolve_repeats(num_repeats) == cache.num_repeats
    if cache.token_pass is False or not is_same_depth:
        return None
    x = model._embed(model.embedding, tokens, "tokens")
    return cache.token_pass(x.squeeze(1), cache).unsqueeze(1)


class TokenPass:
    """The pass of a model whose weights do not change: its dense ones are copied."""

    def __init__(self, model: Model, stack: DepthStack, num_repeats: int) -> None:
        self.head = model.head
        self.layers = stack.schedule(num_repeats)
        attention = stack.options.attention
        self.heads, self.size = attention.num_key_heads, attention.head_size
        frequencies, neighbours = torch.empty(0), False
        position = stack.options.position
        if isinstance(position, Rotary):
            device = torch.device("cpu")
            frequencies = rotary_frequencies(position, self.size, torch.float32, device)
            neighbours = position.pairs
        self.operation = torch.classes.moeut_native.TokenPass(frequencies, neighbours)
        for layer in stack.layers:
            self._add_attention(cast(Layer, layer))
            self._add_feed_forward(cast(Layer, layer))
        weight = model.embedding.weight if self.head.weight is None else self.head.weight
        self.operation.head(*_norm(stack.final_norm), weight, self.head.bias)

    def __call__(self, x: Tensor, cache: StackCache) -> Tensor:
        """Return the logits (B, V) of embedded tokens x (B, D), and take them up in the cache."""
        window = cache.begin(None, x.shape[0], 1, x.device)
        columns = window.positions.expand(x.shape[0], 1).contiguous()
        keys, values = cache.buffers(self.heads, self.size, x)
        logits = self.operation.run(x, columns, self.layers, keys, values)
        cache.finish()
        return self.head.scaled(logits)

    def _add_attention(self, layer: Layer) -> None:
        attention, is_peri = layer.attention, layer.norm == "peri"
        around = (*_norm(layer.attention_norm), is_peri, attention.num_heads)
        if isinstance(attention, SwitchHeadAttention):
            asking = (attention.query, attention.key)
            self.operation.switch_head(
                *around,
                [one.weight for one in asking],
                [one.bias for one in asking],
                [attention.value_router, attention.output_router],
                attention.value,
                attention.output,
                attention.top_k,
            )
            return
        dense = (attention.query, attention.key, attention.value, attention.output)
        weights, biases = [one.weight for one in dense], [one.bias for one in dense]
        self.operation.dense_attention(*around, attention.num_key_heads, weights, biases)

    def _add_feed_forward(self, layer: Layer) -> None:
        block: Any = layer.feed_forward
        around = (*_norm(layer.feed_forward_norm), layer.norm == "peri")
        if isinstance(block, SigmaMoEMLP):
            self.operation.expert_feed_forward(
                *around, block.router, block.up, block.down, block.top_k
            )
        else:
            weights = (block.up.weight, block.up.bias, block.down.weight, block.down.bias)
            self.operation.dense_feed_forward(*around, *weights)


def _norm(norm: nn.Module | None) -> tuple[Tensor | None, Tensor | None, float]:
    """Return weight, bias and epsilon of a layer norm; None, None and 0 without one."""
    if norm is None:
        return None, None, 0.0
    return cast(Any, norm).weight, cast(Any, norm).bias, cast(Any, norm).eps


def why_not(model: Model, stack: DepthStack) -> str | None:
    """Return why one operation cannot be a pass of a model's decoder; None if it can."""
    if model.training or type(stack) is not DepthStack:
        return "it is trained, or another kind of stack"
    if model.exit_rule is not None or len(stack.controllers) or len(stack.value_embeddings):
        return "something else takes part in its passes"
    around = ("position", "input_norm", "adapter", "state_norm", "output", "repeat_norm")
    options = stack.options
    if any(getattr(stack, name) is not None for name in around):
        return "something stands around its layers"
    if options.state.output != "none" or options.shared_keys != "none":
        return "its state leaves otherwise, or repeats share keys"
    if not options.own.is_nothing or options.core_width != options.d_model:
        return "its layers are no plain ones"
    if type(options.position) not in (NoPosition, Rotary):
        return "its positions are not rotary"
    if model.head.projection is not None or model.head.reads_adapter:
        return "its head has a projection"
    if not (_is_layer_norm(stack.final_norm) and all(map(_is_plain, stack.layers))):
        return "its layers are no plain ones"
    if any(one._forward_hooks or one._forward_pre_hooks for one in (*stack.modules(), model.head)):
        return "hooks want to see its layers"
    if not native.is_float32(*model.parameters()):
        return "its weights are not float32 on the CPU"
    return native.why_not()


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer is one that the operation computes."""
    if type(layer) is not Layer or layer.norm not in ("pre", "peri"):
        return False
    norms = (layer.attention_norm, layer.feed_forward_norm)
    others = (layer.cross_attention, layer.encoding)
    if layer.attention_norm is None or not all(map(_is_layer_norm, norms)):
        return False
    if any(one is not None for one in others) or type(layer.update) is not Update:
        return False
    attention, block = layer.attention, layer.feed_forward
    if attention.relative is not None or attention.qk_norm != "none" or attention.adapters:
        return False
    if type(attention) is DenseMultiHeadAttention:
        if attention.value_gate is not None or attention.output_gate is not None:
            return False
        if attention.value_head_size != attention.head_size:
            return False
    elif type(attention) is not SwitchHeadAttention or attention._owner:
        return False
    if type(block) is SigmaMoEMLP:
        return block.router_kind == "sigmoid" and layer.feed_forward_norm is not None
    return type(block) is DenseMLP and block.activation is F.relu and not block.adapters


def _is_layer_norm(norm: nn.Module | None) -> bool:
    """Return whether there is no norm, or a layer norm with weight and bias."""
    is_whole = type(norm) is LayerNorm and norm.weight is not None and norm.bias is not None
    return norm is None or is_whole
