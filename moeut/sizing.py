"""How large a model is and what it costs: parameters and multiply-accumulates, from its config."""

from __future__ import annotations

import dataclasses
import math

import torch

from moeut.blocks.layer import Layer
from moeut.config import ENCODERS, ModelConfig
from moeut.models import FORMS
from moeut.options import OptionError
from moeut.recurrence.stack_config import StackConfig


def count_parameters(config: ModelConfig) -> int:
    """Return how many parameters the model of ``config`` has; it takes no memory for them."""
    with torch.device("meta"):
        model = FORMS[config.form](config)
    return sum(parameter.numel() for parameter in model.parameters())


def count_used_parameters(config: ModelConfig) -> int:
    """Return the parameters weighted by use: those of a layer count each time it is applied.

    What a repeat has for itself counts once, as embeddings and head do.
    """
    used = count_parameters(config)
    for stack in config.stacks.values():
        further = stack.num_applications - stack.num_layers
        if further:
            used += further * _shared_by_repeats(stack)
    return used


def _shared_by_repeats(stack: StackConfig) -> int:
    """Return the parameters of a layer of the group, without what its repeats have of their own."""
    repeats = stack.depth.repeats
    core = stack.of_layer(stack.depth.prelude)

    def count(repeats: int) -> int:
        with torch.device("meta"):
            across = stack.cross_attention
            layer = Layer(core, stack.core_width, cross_attention=across, repeats=repeats)
        return sum(parameter.numel() for parameter in layer.parameters())

    return count(repeats) - repeats * (count(repeats + 1) - count(repeats))


def cache_bytes_per_token(config: ModelConfig, *, bytes_per_number: int = 4) -> int:
    """Return what a key/value cache holds of each token of a row, 0 without a causal stack.

    Keys and values of self-attention, of every application, and the inputs of convolutions; what
    cross-attention has of the source is held once for a row and not counted.
    """
    if config.form in ENCODERS:
        return 0
    stack = config.stacks["decoder"]
    core = stack.of_layer(stack.depth.prelude)
    attention = core.attention
    numbers = attention.key_width + math.prod(attention.value_heads)
    numbers += core.feed_forward.cache_width(stack.core_width)
    numbers *= stack.num_applications
    if stack.state.output == "feed_forward":
        numbers += stack.feed_forward.cache_width(stack.d_model)
    return numbers * bytes_per_number


def training_flops_per_token(macs: int) -> int:
    """Return the operations of a forward and a backward pass, given ``macs`` of the forward one.

    Two for each multiply-accumulate, and twice as many again for the gradients of both factors of
    every product; activation checkpointing and gradients that are cut off change it.
    """
    return 6 * macs


def match_parameters(config: ModelConfig, budget: int) -> ModelConfig:
    """Return ``config`` with the free width that brings its parameter count nearest ``budget``.

    The free width is ``hidden_size`` of a dense feed-forward and ``num_experts`` of a σ-MoE, as in
    arXiv 2405.16039; depth, model width, heads and active experts stay.

    Raises:
        OptionError: even the smallest width is over the budget.
    """
    smallest = config.feed_forward.smallest_width
    base = count_parameters(_with_width(config, smallest))
    step = count_parameters(_with_width(config, smallest + 1)) - base
    # Half a step below the smallest model is still nearest to it.
    if 2 * (base - budget) > step:
        said = f"the smallest feed-forward already gives {base} parameters"
        raise OptionError("match_parameters", budget, said)
    extra, remainder = divmod(max(budget - base, 0), step)
    return _with_width(config, smallest + extra + (2 * remainder > step))


def _with_width(config: ModelConfig, width: int) -> ModelConfig:
    return dataclasses.replace(config, feed_forward=config.feed_forward.with_width(width))


# --- multiply-accumulates ---------------------------------------------------------------


def macs_per_token(
    config: ModelConfig,
    *,
    sequence_length: int,
    target_length: int | None = None,
    everyone: bool = False,
    passes: int | None = None,
) -> int:
    """Return the multiply-accumulates of an answer, per token that is read.

    That is one forward pass, or of a model that carries states ``carry.steps`` of them, or as many
    ``passes`` as are given: a step of training is one. A recursion counts every cycle.

    ``sequence_length`` tokens are read; an encoder-decoder reads them as the source and
    ``target_length`` more (left out: as many) as the target, and the mean is over both. Counted are
    the matrix products: projections, routers, active experts, attention logits and weighted sums
    (masked entries included, as they are computed), and the output layer. Not counted is what is
    element-wise (norms, gates, softmax, rotation), and the projection of relative distances, which
    a whole batch shares. Repeats that compute a part of the tokens by their options count as that,
    unless ``everyone`` takes part.
    """
    target_length = sequence_length if target_length is None else target_length
    stacks = config.stacks
    lengths = {"encoder": sequence_length, "decoder": sequence_length}
    if len(stacks) > 1:
        lengths["decoder"] = target_length
    rows = config.prefix.rows
    total = sum(
        _stack_macs(stack, rows + lengths[name], everyone) for name, stack in stacks.items()
    )
    total += sum(_memory_macs(stack, sequence_length, target_length) for stack in stacks.values())
    outputs = 1 if config.form == "encoder_classifier" else lengths[list(stacks)[-1]]
    total += outputs * _head_macs(config)
    if config.carry.halting != "none":
        total += 2 * config.d_model  # the two logits of halting, read off one position
    total *= config.carry.steps if passes is None else passes
    return round(total / sum(lengths[name] for name in stacks))


def cut_macs_per_token(
    config: ModelConfig, *, sequence_length: int, target_length: int | None = None
) -> int:
    """Return the multiply-accumulates of a training pass that gradients do not flow through.

    That is of the updates of a recursion before its last ones, per token that is read; 0 without a
    recursion. Lengths are as in ``macs_per_token``.
    """
    stacks = config.stacks
    lengths = dict.fromkeys(stacks, sequence_length)
    if len(stacks) > 1 and target_length is not None:
        lengths["decoder"] = target_length
    total = 0
    for name, stack in stacks.items():
        if not stack.is_recursive:
            continue
        cycle = stack.recursion.cycle()
        sizes = [len(stack.recursion.group_of(update.network, stack.depth)) for update in cycle]
        updates = sizes * stack.depth.repeats
        cut = sum(updates[: max(len(updates) - stack.recursion.num_with_gradient(), 0)])
        rows = config.prefix.rows + lengths[name]
        layer = _layer_macs(stack, rows)
        if stack.cross_attention:
            layer += _reading_macs(stack, sequence_length)
        total += cut * layer * rows
    return round(total / sum(lengths.values()))


def _head_macs(config: ModelConfig) -> int:
    if config.form in ENCODERS or not config.head_projection:
        return config.d_model * config.num_outputs
    return config.embedding_size * (config.d_model + config.num_outputs)


def _stack_macs(stack: StackConfig, length: int, everyone: bool) -> int:
    """Return the work of all applications for a row of ``length`` tokens, but that with memory."""
    group = stack.depth.group
    core, outer = stack.of_layer(stack.depth.prelude), stack.of_layer(-1)
    num_outer = stack.depth.prelude + stack.depth.coda
    macs = _layer_macs(core, length) * (stack.num_applications - num_outer)
    macs += _layer_macs(outer, length) * num_outer if num_outer else 0
    width, d_model = stack.core_width, stack.d_model
    repeated = stack.state.macs(width, d_model, stack.depth) + stack.conditioning.macs(width)
    repeated += group * sum(_adapter_macs(stack, across=False).values())
    repeated += sum(gates for layer, gates in _value_gates(stack) if stack.depth.is_in_group(layer))
    once = stack.state.output_macs(width, d_model, stack.feed_forward)
    once += sum(g for layer, g in _value_gates(stack) if not stack.depth.is_in_group(layer))
    if stack.embedding_size != d_model:
        once += stack.embedding_size * d_model
    # What decides between applications has nothing to decide after the last.
    decisions = stack.depth.repeats
    if stack.halting.decides_each_application:
        decisions = group * stack.depth.repeats - 1
    once += decisions * stack.halting.macs(width)
    whole = length * (macs + repeated * stack.depth.repeats + once)
    return whole - _saved_macs(core, length, everyone)


def _value_gates(stack: StackConfig) -> list[tuple[int, int]]:
    """Return the layers with value embeddings, and the work of the gates of each for one token."""
    with torch.device("meta"):
        built = stack.build_value_embeddings()
    gates = {layer: each.get_parameter("gate") for layer, each in built.items()}
    return [(int(layer), gate.numel()) for layer, gate in gates.items()]


def _layer_macs(stack: StackConfig, length: int) -> int:
    """Return the work of one application of a layer for a token of a row of ``length``."""
    attention = stack.attention
    macs = sum(attention.projection_macs(stack.d_model)) + attention.attending_macs(length)
    macs += stack.position.logit_macs(
        d_model=stack.d_model,
        num_heads=attention.num_heads,
        width=attention.query_width,
        length=length,
    )
    return macs + stack.feed_forward.macs(stack.d_model) + stack.update.macs(stack.d_model)


def _saved_macs(stack: StackConfig, length: int, everyone: bool) -> int:
    """Return what a row of ``length`` tokens saves of the work of the repeated layers.

    That is what tokens that take no part do not compute, as far as options say how many they are,
    and keys and values that repeats take from the first.
    """
    attention, depth = stack.attention, stack.depth
    macs = _layer_macs(stack, length)
    source_side, _ = attention.projection_macs(stack.d_model)
    is_shared = stack.shared_keys == "first"
    is_alone = stack.halting.hides_others() and stack.shared_keys == "none"
    saved = 0.0
    shares = [1.0] * depth.repeats if everyone else stack.halting.shares(depth.repeats)
    for repeat, share in enumerate(shares):
        if repeat == 0 and stack.shared_keys != "none":
            continue  # which makes the keys of all tokens
        seen = round(length * share) if is_alone else length
        attending = attention.attending_macs(length) - attention.attending_macs(seen)
        saved += macs * (1 - share) + attending * share + source_side * share * is_shared
    return round(length * depth.group * saved)


def _memory_macs(stack: StackConfig, source_length: int, target_length: int) -> int:
    """Return the work of cross-attention for a pair of rows.

    The source is projected once per distinct layer, however often that is applied.
    """
    if not stack.cross_attention:
        return 0
    attention = stack.attention.across()
    source_side, _ = attention.projection_macs(stack.d_model)
    # Where repeats have keys and values of their own, the source is projected for each of them.
    layer = _layer(stack)
    depth = stack.depth
    own = layer.memory_index(depth.repeats)
    once = source_length * source_side * (stack.num_layers + depth.group * own)
    query = target_length * _reading_macs(stack, source_length)
    adapters = _adapter_macs(stack, across=True)
    of_source = source_length * (adapters.pop("key", 0) + adapters.pop("value", 0))
    adapted = of_source + target_length * sum(adapters.values())
    return once + query * stack.num_applications + adapted * depth.group * depth.repeats


def _reading_macs(stack: StackConfig, source_length: int) -> int:
    """Return the work of a token of the target that reads a source, in one application."""
    attention = stack.attention.across()
    _, query_side = attention.projection_macs(stack.d_model)
    return query_side + attention.attending_macs(source_length)


def _layer(stack: StackConfig) -> Layer:
    """Return a layer of the group; it takes no memory."""
    with torch.device("meta"):
        return Layer(
            stack,
            stack.d_model,
            cross_attention=stack.cross_attention,
            repeats=stack.depth.repeats,
        )


def _adapter_macs(stack: StackConfig, *, across: bool) -> dict[str, int]:
    """Return the work of each adapter of one application for one token, by what it changes.

    ``across``: of cross-attention; else of all others. It is as many as it has parameters.
    """
    if not stack.own.adapters.rank:
        return {}
    macs = {}
    layer = _layer(stack)
    blocks = [layer.cross_attention] if across else [layer.attention, layer.feed_forward]
    for block in blocks:
        adapters = {} if block is None or block.adapters is None else dict(block.adapters.items())
        for name, adapter in adapters.items():
            macs[name] = sum(p.numel() for p in adapter.parameters()) // stack.depth.repeats
    return macs
