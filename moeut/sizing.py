"""How large a model is and what it costs: parameters and multiply-accumulates, from its config.

Symbols: D ``d_model``, L applied layers, G distinct layers, H heads, d head size, A = H·d, N_A and
k experts of an attention head and how many are active, N_E and K those of a feed-forward, F the
hidden units of an expert, S and T lengths of source and target.
"""

from __future__ import annotations

import dataclasses

from moeut.config import (
    Attention,
    DenseAttention,
    FeedForward,
    Learned,
    ModelConfig,
    Position,
    Relative,
    SigmaMoE,
    StackConfig,
    SwitchHead,
)

_NUM_GATES = {"none": 0, "output": 1, "value_and_output": 2}


# --- parameters -------------------------------------------------------------------------


def count_parameters(config: ModelConfig) -> int:
    """Return how many parameters the model of ``config`` has, without building it."""
    d_model = config.d_model
    outputs = config.vocabulary_size if config.num_classes is None else config.num_classes
    count = (config.vocabulary_size + (config.source_vocabulary_size or 0)) * d_model
    count += outputs * (config.head_bias + (0 if config.tie_embeddings else d_model))
    for name, stack in config.stacks.items():
        has_cross_attention = name == "decoder" and config.form == "encoder_decoder"
        layer = _attention_parameters(stack.attention, d_model, stack.position)
        layer += _feed_forward_parameters(stack.feed_forward, d_model)
        # A dense feed-forward has no router, so the peri placement gives it no norm.
        has_norm = stack.norm != "peri" or isinstance(stack.feed_forward, SigmaMoE)
        layer += (1 + has_norm) * _norm_parameters(d_model)
        if has_cross_attention:
            layer += _attention_parameters(stack.attention, d_model, None)
            layer += _norm_parameters(d_model)
        count += stack.group_size * layer
        count += stack.final_norm * _norm_parameters(d_model)
        if isinstance(stack.position, Learned):
            count += stack.position.max_length * d_model
    return count


def _norm_parameters(d_model: int) -> int:
    return 2 * d_model


def _attention_parameters(attention: Attention, d_model: int, position: Position | None) -> int:
    size = attention.num_heads * attention.head_size
    count = 2 * d_model * size  # queries and keys
    if isinstance(attention, SwitchHead):
        experts = attention.num_heads * attention.num_experts
        count += 2 * experts * d_model * attention.head_size + 2 * experts * d_model
    else:
        gates = _NUM_GATES[attention.attention_gates] * attention.num_heads * d_model
        count += 2 * d_model * size + gates
    if isinstance(position, Relative):
        count += size * d_model + 2 * size + position.learned_scale
    return count


def _feed_forward_parameters(feed_forward: FeedForward, d_model: int) -> int:
    if isinstance(feed_forward, SigmaMoE):
        return feed_forward.num_experts * (2 * d_model * feed_forward.expert_size + d_model)
    hidden = feed_forward.hidden_size
    return 2 * d_model * hidden + (hidden + d_model if feed_forward.bias else 0)


def match_parameters(config: ModelConfig, budget: int) -> ModelConfig:
    """Return ``config`` with the free width that brings its parameter count nearest ``budget``.

    The free width is ``hidden_size`` of a dense feed-forward and ``num_experts`` of a σ-MoE, as in
    arXiv 2405.16039, and one number for both stacks; depth, model width, heads and active experts
    stay. Raises ``ValueError`` if even the smallest width is over the budget.
    """
    smallest = max(_smallest_width(stack.feed_forward) for stack in config.stacks.values())
    base = count_parameters(_with_width(config, smallest))
    step = count_parameters(_with_width(config, smallest + 1)) - base
    # Half a step below the smallest model is still nearest to it.
    if 2 * (base - budget) > step:
        raise ValueError(
            f"match_parameters={budget}: the smallest feed-forward already gives {base} parameters"
        )
    extra, remainder = divmod(max(budget - base, 0), step)
    return _with_width(config, smallest + extra + (2 * remainder > step))


def _smallest_width(feed_forward: FeedForward) -> int:
    return feed_forward.top_k if isinstance(feed_forward, SigmaMoE) else 1


def _with_width(config: ModelConfig, width: int) -> ModelConfig:
    def resized(stack: StackConfig | None) -> StackConfig | None:
        if stack is None:
            return None
        feed_forward: FeedForward
        if isinstance(stack.feed_forward, SigmaMoE):
            feed_forward = dataclasses.replace(stack.feed_forward, num_experts=width)
        else:
            feed_forward = dataclasses.replace(stack.feed_forward, hidden_size=width)
        return dataclasses.replace(stack, feed_forward=feed_forward)

    return dataclasses.replace(
        config, encoder=resized(config.encoder), decoder=resized(config.decoder)
    )


# --- multiply-accumulates ---------------------------------------------------------------


def macs_per_token(
    config: ModelConfig, *, sequence_length: int, target_length: int | None = None
) -> int:
    """Return the multiply-accumulates of one forward pass, per token.

    ``sequence_length`` tokens are read; an encoder-decoder reads them as the source and
    ``target_length`` more (left out: as many) as the target, and the mean is over both. Counted are
    the matrix products: projections, routers, active experts, attention logits and weighted sums
    (masked entries included, as they are computed), and the output layer. Not counted is what is
    element-wise (norms, gates, softmax, rotation), and the projection of relative distances, which
    a whole batch shares.
    """
    if config.form != "encoder_decoder":
        (stack,) = config.stacks.values()
        total = sequence_length * _layer_macs(config, stack, sequence_length) * stack.num_layers
        if config.num_classes is not None:
            total += config.d_model * config.num_classes
        else:
            total += sequence_length * config.d_model * config.vocabulary_size
        return round(total / sequence_length)

    assert config.encoder is not None
    assert config.decoder is not None
    encoder, decoder = config.encoder, config.decoder
    target_length = sequence_length if target_length is None else target_length
    total = sequence_length * _layer_macs(config, encoder, sequence_length) * encoder.num_layers
    total += target_length * _layer_macs(config, decoder, target_length) * decoder.num_layers
    # The source is projected once per distinct layer, however often that is applied.
    size = decoder.attention.num_heads * decoder.attention.head_size
    source_side, target_side = _projection_macs(decoder.attention, config.d_model)
    total += sequence_length * source_side * decoder.group_size
    total += target_length * (target_side + 2 * size * sequence_length) * decoder.num_layers
    total += target_length * config.d_model * config.vocabulary_size
    return round(total / (sequence_length + target_length))


def _layer_macs(config: ModelConfig, stack: StackConfig, length: int) -> int:
    """Return the work of one application for one token: self-attention and feed-forward."""
    size = stack.attention.num_heads * stack.attention.head_size
    macs = sum(_projection_macs(stack.attention, config.d_model)) + 2 * size * length
    if isinstance(stack.position, Relative):
        macs += size * (2 * length - 1)
    feed_forward = stack.feed_forward
    if isinstance(feed_forward, SigmaMoE):
        active = feed_forward.top_k * feed_forward.expert_size
        return macs + config.d_model * (2 * active + feed_forward.num_experts)
    return macs + 2 * config.d_model * feed_forward.hidden_size


def _projection_macs(attention: Attention, d_model: int) -> tuple[int, int]:
    """Return the work per attended token (keys, values) and per querying one (queries, output)."""
    heads, size = attention.num_heads, attention.num_heads * attention.head_size
    if isinstance(attention, SwitchHead):
        side = d_model * (size + attention.top_k * size + heads * attention.num_experts)
        return side, side
    gates = attention.attention_gates
    source_side = d_model * (2 * size + (heads if gates == "value_and_output" else 0))
    target_side = d_model * (2 * size + (heads if gates != "none" else 0))
    return source_side, target_side


def paper_macs_per_token(config: ModelConfig, *, sequence_length: int) -> int:
    """Return the multiply-accumulates per token as arXiv 2405.16039's scripts count them.

    For comparison with its figures: per layer 2·A·T + 4·D·A for dense attention,
    2·A·T + (2k + 2)·D·A + 2·k·A + 2·N_A·D for SwitchHead (a router of one head instead of H),
    2·D·F for a dense and 2·K·D·F + D·N_E for an expert feed-forward; no output layer. Gated dense
    attention counts as SwitchHead with one expert (RobertCsordas/moeut_training_code at a0f771a,
    ``paper/moe_universal/common.py``).
    """
    stack = config.decoder
    if config.form != "decoder_lm" or stack is None:
        raise ValueError(f"form={config.form!r}: the paper counts decoder_lm alone")
    attention, feed_forward, d_model = stack.attention, stack.feed_forward, config.d_model
    size = attention.num_heads * attention.head_size
    macs = 2 * size * sequence_length
    if isinstance(attention, DenseAttention):
        num_gates = _NUM_GATES[attention.attention_gates]
        macs += 4 * d_model * size + num_gates * (size + d_model)
    else:
        macs += (2 * attention.top_k + 2) * d_model * size
        macs += 2 * attention.top_k * size + 2 * attention.num_experts * d_model
    if isinstance(feed_forward, SigmaMoE):
        active = feed_forward.top_k * feed_forward.expert_size
        macs += d_model * (2 * active + feed_forward.num_experts)
    else:
        macs += 2 * d_model * feed_forward.hidden_size
    return macs * stack.num_layers
