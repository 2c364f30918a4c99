"""Choose experts on a GPU: top-k, gates and the balance loss's means from logits read once.

Shapes: B rows, T tokens, H heads, E experts, k chosen ones. The logits (B, T, H, E) come from an
ordinary float32 matmul. One kernel reads them once and writes choices, gates and, where asked, the
weighted sums over tokens of their softmax; the backward's one kernel reads them once more and
writes their gradient. Without it, top-k, softmax, mean and their gradients move the logits about
twelve times instead of three.

Of equal logits the expert of the lowest number is chosen first; chosen experts come in descending
order of their logits, and NaN counts as the largest. No atomics, no host synchronisation; two runs
give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moeut.ops.triton.device import on_device

MAX_EXPERTS = 4096
"""Up to this many logits of a token fit in registers; with more experts PyTorch routes."""

TILE_LOGITS = 512
"""Logits that one warp holds at least; where experts are few, they are of several tokens."""

MIN_PROGRAMS = 2048
"""Programs that keep a large GPU busy."""

MAX_TILES_PER_PROGRAM = 16
"""The more tokens one program adds up, the fewer partial sums are written."""


@triton.jit(do_not_specialize=["num_tokens", "num_heads", "num_groups", "num_tiles"])
def route_kernel(
    logits_ptr,
    dropped_ptr,
    real_ptr,
    share_ptr,
    selection_ptr,
    gates_ptr,
    normaliser_ptr,
    partial_ptr,
    num_tokens,
    num_heads,
    num_groups,
    num_tiles,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BALANCE: tl.constexpr,
    HAS_DROPPED: tl.constexpr,
    HAS_REAL: tl.constexpr,
    HAS_SHARE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Choose the experts of ``num_tiles · ROWS`` tokens in one row and head, and add up.

    A *group* is a row and a head; programs are counted by groups first, so program p has group
    p % num_groups. BLOCK ≥ E is a power of two.

    partial (chunks, B, H, E) is Σ over the program's tokens of share · softmax(logits); normaliser
    (B, T, H) is log Σ exp(logits).
    """
    program = tl.program_id(0)
    group = program % num_groups
    row, head = group // num_heads, group % num_heads
    experts = tl.arange(0, BLOCK)
    exists = experts < NUM_EXPERTS
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for tile in range(0, num_tiles):
        first = (program // num_groups * num_tiles + tile) * ROWS
        tokens = first + tl.arange(0, ROWS)
        valid = tokens < num_tokens
        positions = row.to(tl.int64) * num_tokens + tokens
        routers = positions * num_heads + head
        logit_ptrs = logits_ptr + routers[:, None] * NUM_EXPERTS + experts[None, :]
        # (ROWS, BLOCK); columns behind the last expert are -∞, which no sum or maximum sees.
        logits = tl.load(logit_ptrs, mask=valid[:, None] & exists[None, :], other=0.0)
        logits = tl.where(exists[None, :], logits, float("-inf"))
        if BALANCE or SOFTMAX:
            highest = tl.max(logits, 1)
            powers = tl.exp(logits - highest[:, None])
            power_sum = tl.sum(powers, 1)
            normaliser = highest + tl.log(power_sum)
            tl.store(normaliser_ptr + routers, normaliser, mask=valid)
        if BALANCE:
            if HAS_SHARE:
                share = tl.load(share_ptr + positions, mask=valid, other=0.0)
            else:
                share = tl.where(valid, 1.0 / num_tokens.to(tl.float32), 0.0)
            total += tl.sum(powers * (share / power_sum)[:, None], 0)
        # NaN as the largest, so that it is chosen and seen rather than lost.
        candidates = tl.where(logits != logits, float("inf"), logits)
        if HAS_DROPPED:
            dropped_ptrs = dropped_ptr + routers[:, None] * NUM_EXPERTS + experts[None, :]
            dropped = tl.load(dropped_ptrs, mask=valid[:, None] & exists[None, :], other=0)
            candidates = tl.where(dropped != 0, float("-inf"), candidates)
        routed = valid
        if HAS_REAL:
            routed = tl.load(real_ptr + positions, mask=valid, other=0) != 0
        for choice in range(TOP_K):
            best, expert = tl.max(candidates, 1, return_indices=True)
            found = routed & (best > float("-inf"))  # (ROWS,)
            # Read again: NaN was replaced above, and its gate has to be NaN.
            logit = tl.load(logits_ptr + routers * NUM_EXPERTS + expert, mask=found, other=0.0)
            gate = tl.exp(logit - highest) / power_sum if SOFTMAX else tl.sigmoid(logit)
            chosen = routers * TOP_K + choice
            selected = tl.where(found, expert, -1).to(tl.int64)
            tl.store(selection_ptr + chosen, selected, mask=valid)
            tl.store(gates_ptr + chosen, tl.where(found, gate, 0.0), mask=valid)
            is_taken = experts[None, :] == expert[:, None]
            candidates = tl.where(is_taken, float("-inf"), candidates)
    if BALANCE:
        tl.store(partial_ptr + program.to(tl.int64) * NUM_EXPERTS + experts, total, mask=exists)


@triton.jit(do_not_specialize=["num_tokens", "num_heads", "num_groups"])
def route_gradient_kernel(
    logits_ptr,
    normaliser_ptr,
    share_ptr,
    selection_ptr,
    gates_ptr,
    d_gates_ptr,
    d_probability_ptr,
    d_logits_ptr,
    num_tokens,
    num_heads,
    num_groups,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BALANCE: tl.constexpr,
    HAS_SHARE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of ROWS tokens' logits in one row and head.

    With p their softmax and G what flows into it, that of the means (times the share) and, if gates
    are read from it, of the gates: p · (G - Σ_e G_e p_e). Sigmoid gates add d_gate · g · (1 - g).
    """
    group = tl.program_id(0) % num_groups
    row, head = group // num_heads, group % num_heads
    experts = tl.arange(0, BLOCK)
    exists = experts < NUM_EXPERTS
    tokens = tl.program_id(0) // num_groups * ROWS + tl.arange(0, ROWS)
    valid = tokens < num_tokens
    mask = valid[:, None] & exists[None, :]
    positions = row.to(tl.int64) * num_tokens + tokens
    routers = positions * num_heads + head
    offsets = routers[:, None] * NUM_EXPERTS + experts[None, :]
    by_choice = tl.zeros((ROWS, BLOCK), dtype=tl.float32)  # what flows in through chosen gates
    for choice in range(TOP_K):
        chosen = routers * TOP_K + choice
        expert = tl.load(selection_ptr + chosen, mask=valid, other=-1)
        flow = tl.load(d_gates_ptr + chosen, mask=valid & (expert >= 0), other=0.0)
        if not SOFTMAX:
            gate = tl.load(gates_ptr + chosen, mask=valid, other=0.0)
            flow *= gate * (1.0 - gate)
        by_choice += tl.where(experts[None, :] == expert[:, None], flow[:, None], 0.0)
    gradient = by_choice
    if BALANCE or SOFTMAX:
        logits = tl.load(logits_ptr + offsets, mask=mask, other=float("-inf"))
        normaliser = tl.load(normaliser_ptr + routers, mask=valid, other=0.0)
        p = tl.exp(logits - normaliser[:, None])
        flow_in = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        if BALANCE:
            d_probability_ptrs = d_probability_ptr + group * NUM_EXPERTS + experts
            d_probability = tl.load(d_probability_ptrs, mask=exists, other=0.0)
            if HAS_SHARE:
                share = tl.load(share_ptr + positions, mask=valid, other=0.0)
            else:
                share = tl.zeros((ROWS,), dtype=tl.float32) + 1.0 / num_tokens.to(tl.float32)
            flow_in += share[:, None] * d_probability[None, :]
        if SOFTMAX:
            flow_in += by_choice
        through = p * (flow_in - tl.sum(flow_in * p, 1)[:, None])
        gradient = through if SOFTMAX else gradient + through
    tl.store(d_logits_ptr + offsets, gradient, mask=mask)


@torch.library.custom_op("moeut::triton_route", mutates_args=())
def route(
    logits: Tensor,
    dropped: Tensor | None,
    real: Tensor | None,
    share: Tensor | None,
    top_k: int,
    softmax: bool,
    balance: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gates (B, T, H, k), mean probabilities (B, H, E), normalisers, choices (B, T, H, k).

    ``logits`` (B, T, H, E) float32; ``dropped`` of the same shape, True where an expert may not be
    chosen; ``real`` (B, T); ``share`` (B, 1, T) weights of the tokens in the means, 1 / T each if
    None. The means are empty unless ``balance``. A choice is -1, and its gate 0, at tokens that are
    not real and where fewer than k experts are left.
    """
    logits = logits.contiguous()
    batch, num_tokens, num_heads, num_experts = logits.shape
    selection, gates, normaliser = _empty(logits, top_k, softmax or balance)
    groups = batch * num_heads
    rows, block, num_warps = tile_sizes(num_experts)
    tiles = triton.cdiv(num_tokens, rows)
    tiles_per_program = min(MAX_TILES_PER_PROGRAM, max(1, tiles * groups // MIN_PROGRAMS), tiles)
    chunks = triton.cdiv(tiles, max(1, tiles_per_program))
    partial = logits.new_empty(chunks if balance else 0, batch, num_heads, num_experts)
    if chunks * groups:
        with on_device(logits):
            route_kernel[(chunks * groups,)](
                *(logits, _bytes(dropped, logits), _bytes(real, logits)),
                logits if share is None else share.float().contiguous(),
                *(selection, gates, normaliser, partial),
                *(num_tokens, num_heads, groups, tiles_per_program),
                NUM_EXPERTS=num_experts,
                TOP_K=top_k,
                SOFTMAX=softmax,
                BALANCE=balance,
                HAS_DROPPED=dropped is not None,
                HAS_REAL=real is not None,
                HAS_SHARE=share is not None,
                ROWS=rows,
                BLOCK=block,
                num_warps=num_warps,
            )
    probability = partial.sum(0) if balance else logits.new_empty(0)
    return gates, probability, normaliser, selection


@route.register_fake
def _(logits, dropped, real, share, top_k, softmax, balance):
    selection, gates, normaliser = _empty(logits, top_k, softmax or balance)
    batch, _, num_heads, num_experts = logits.shape
    probability = logits.new_empty((batch, num_heads, num_experts) if balance else 0)
    return gates, probability, normaliser, selection


@torch.library.custom_op("moeut::triton_route_backward", mutates_args=())
def route_backward(
    d_gates: Tensor,
    d_probability: Tensor,
    logits: Tensor,
    normaliser: Tensor,
    selection: Tensor,
    gates: Tensor,
    share: Tensor | None,
    softmax: bool,
    balance: bool,
) -> Tensor:
    """Return the gradient of the logits (B, T, H, E).

    ``d_gates`` (B, T, H, k) and ``d_probability`` (B, H, E) are of what ``route`` returns; the rest
    is what it took and returned.
    """
    logits = logits.contiguous()
    d_logits = torch.empty_like(logits)
    batch, num_tokens, num_heads, num_experts = logits.shape
    groups = batch * num_heads
    rows, block, num_warps = tile_sizes(num_experts)
    num_programs = triton.cdiv(num_tokens, rows) * groups
    if num_programs:
        with on_device(logits):
            route_gradient_kernel[(num_programs,)](
                *(logits, normaliser, logits if share is None else share.float().contiguous()),
                *(selection, gates, d_gates.contiguous(), d_probability.contiguous(), d_logits),
                *(num_tokens, num_heads, groups),
                NUM_EXPERTS=num_experts,
                TOP_K=selection.shape[3],
                SOFTMAX=softmax,
                BALANCE=balance,
                HAS_SHARE=share is not None,
                ROWS=rows,
                BLOCK=block,
                num_warps=num_warps,
            )
    return d_logits


@route_backward.register_fake
def _(d_gates, d_probability, logits, normaliser, selection, gates, share, softmax, balance):
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output):
    logits, _dropped, _real, share, _top_k, softmax, balance = inputs
    gates, _probability, normaliser, selection = output
    ctx.mark_non_differentiable(selection, normaliser)
    ctx.save_for_backward(logits, normaliser, selection, gates, share)
    ctx.options = (softmax, balance)


def _backward(ctx, d_gates, d_probability, _d_normaliser, _d_selection):
    logits, normaliser, selection, gates, share = ctx.saved_tensors
    d_logits = route_backward(
        d_gates, d_probability, logits, normaliser, selection, gates, share, *ctx.options
    )
    return d_logits, None, None, None, None, None, None


route.register_autograd(_backward, setup_context=_setup_context)


def tile_sizes(num_experts: int) -> tuple[int, int, int]:
    """Return the tokens of a tile, its columns and the warps that hold it.

    One warp where possible: several would exchange the maxima of a tile through shared memory, once
    for each of the k choices.
    """
    block = max(16, triton.next_power_of_2(num_experts))
    return max(1, TILE_LOGITS // block), block, max(1, block // 1024)


def _empty(logits: Tensor, top_k: int, normalised: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*logits.shape[:3], top_k)
    selection = logits.new_empty(shape, dtype=torch.int64)
    return selection, logits.new_empty(shape), logits.new_empty(shape[:3] if normalised else 0)


def _bytes(mask: Tensor | None, instead: Tensor) -> Tensor:
    return instead if mask is None else mask.contiguous().view(torch.uint8)
