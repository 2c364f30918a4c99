"""Details in the log of a language run: how fast it trains, and how its experts are used.

Times and memory differ from machine to machine. They have one key of a row, ``speed``, to
themselves, so that the rest of the row is the same however often the run was resumed.
"""

from __future__ import annotations

import functools
import math
import re
import resource
from typing import Any

import numpy as np
import torch

from moeut.decoding import evaluation_mode
from runners.training import parallel
from runners.training.batches import Columns
from runners.training.loop import Loop
from runners.training.objective import Objective
from runners.training.parallel import autocast
from tasks.base.metrics import perplexity

PEAK_FLOPS = {
    # name                 bfloat16   float32
    "B200": (2250e12, 75e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A40": (149.7e12, 37.4e12),
    "A30": (165e12, 10.3e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
}
"""Floating-point operations per second that a GPU is sold with, from NVIDIA's data sheets: dense
bfloat16 on tensor cores, float32 without TF32. The first name that stands in the device's counts.
"""

ROUTING_ROWS = 4
"""Rows of a batch that the use of experts is counted over, one at a time."""


def describe_row(
    row: dict[str, Any], loop: Loop, *, lap: tuple[float, int], macs_per_token: int
) -> dict[str, Any]:
    """Return the details of a row of the log: perplexity, use of experts, speed.

    Where the model lies in pieces, every rank has to call it; otherwise rank 0 alone counts the
    use of experts. A perplexity too large for JSON is None.

    Args:
        row: the losses since the row before.
        loop: what is trained.
        lap: seconds of training and tokens since the row before.
        macs_per_token: multiply-accumulates of a forward pass.
    """
    device, precision, world = loop.device, loop.config.precision, loop.world
    value = perplexity(row["loss"])
    described: dict[str, Any] = {"perplexity": value if math.isfinite(value) else None}
    if world.is_first or parallel.is_sharded(loop.model):
        usage = expert_usage(
            loop.model, loop.objective, loop.columns, loop.rows, device=device, precision=precision
        )
        described |= {"routing": usage} if usage else {}
    peak = peak_of(device, precision)
    seconds, tokens = lap
    described["speed"] = speed(
        seconds,
        tokens,
        macs_per_token=macs_per_token,
        peak=None if peak is None else peak * world.size,
        device=device,
    )
    return described


def peak_of(device: torch.device, precision: str) -> float | None:
    """Return the peak of a device; None where it is not known, as for every CPU."""
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device), precision)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the peak of a GPU by its name; None where it is not known."""
    for name, (bfloat16, float32) in PEAK_FLOPS.items():
        if re.search(rf"\b{name}\b", device_name):
            return bfloat16 if precision == "bfloat16" else float32
    return None


def model_flops_utilization(
    tokens_per_second: float, *, macs_per_token: int, peak: float | None
) -> float | None:
    """Return the share of the peak that the arithmetic of the model reaches.

        6 · macs_per_token · tokens_per_second / peak

    A multiply-accumulate is two operations, and the backward pass takes two forward passes. What
    activation checkpointing computes again does not count (Chowdhery et al. 2022, appendix B).
    ``macs_per_token`` is that of ``moeut.sizing``, with the active experts alone; ``peak`` is over
    all devices.
    """
    return None if peak is None else 6.0 * macs_per_token * tokens_per_second / peak


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held, by a GPU since the last call, by a CPU process ever."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def speed(
    seconds: float, tokens: int, *, macs_per_token: int, peak: float | None, device: torch.device
) -> dict[str, Any]:
    """Return the entry ``speed`` of a row: what training took since the row before.

    Args:
        seconds: of training, scoring left out.
        tokens: read in these seconds.
        macs_per_token: multiply-accumulates of a forward pass.
        peak: floating-point operations per second of all devices; None where it is not known.
        device: whose memory is reported.
    """
    tokens_per_second = tokens / seconds
    return {
        "tokens_per_second": tokens_per_second,
        "model_flops_utilization": model_flops_utilization(
            tokens_per_second, macs_per_token=macs_per_token, peak=peak
        ),
        "peak_memory_bytes": peak_memory(device),
    }


def expert_usage(
    model: Any,
    objective: Objective,
    columns: Columns,
    rows: np.ndarray,
    *,
    device: torch.device,
    precision: str = "float32",
) -> dict[str, dict[str, Any]]:
    """Count which experts each router chooses for a few rows, over all applications of its layer.

    It is a forward pass in evaluation mode, which draws no random numbers and changes nothing:
    training goes on to the same bits. Every rank has to call it where the model lies in pieces.

    Returns:
        ``<stack>.<layer>.<router>`` → ``dead_experts``, those that no token has chosen;
        ``num_experts``, over all heads; ``entropy``, in nats, of the share of the choices that each
        expert got, averaged over heads: ln(experts of a head) where all are used alike.
    """
    counts: dict[str, torch.Tensor] = {}
    with evaluation_mode(model), torch.no_grad():
        for row in rows[:ROUTING_ROWS]:
            batch = columns.batch(np.array([row]), device=device)
            with autocast(device, precision):
                trace = objective.forward(functools.partial(model, trace=True), batch).trace
            for stack, records in trace.items():
                for layer, record in zip(getattr(model, stack).schedule(), records, strict=False):
                    for router, decision in record.routers.items():
                        name = f"{stack}.{layer}.{router}"
                        found = _count(decision.selection, decision.logits.shape[-1])
                        counts[name] = counts[name] + found if name in counts else found
    return {name: _describe(count.double()) for name, count in sorted(counts.items())}


def _count(selection: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Return (H, E): how often a selection (B, T, H, k) names each expert; -1 is none."""
    # One place later, so that "none" is counted at 0 and can be cut off.
    by_head = selection.movedim(2, 0).flatten(1) + 1
    counts = torch.zeros(len(by_head), num_experts + 1, dtype=torch.int64, device=by_head.device)
    counts.scatter_add_(1, by_head, torch.ones_like(by_head))
    return counts[:, 1:]


def _describe(count: torch.Tensor) -> dict[str, Any]:
    share = count / count.sum(dim=1, keepdim=True).clamp_min(1)
    return {
        "dead_experts": int((count == 0).sum()),
        "num_experts": count.numel(),
        "entropy": float(torch.special.entr(share).sum(dim=1).mean()),
    }
