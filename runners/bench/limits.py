"""The least time that a processor needs for some work: how fast it multiplies and moves bytes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch


@dataclasses.dataclass(frozen=True)
class Limits:
    """Hold the best rates of a device, as measured on it."""

    tflop_per_second: float
    """Of a large square product, two operations a multiplication."""

    terabytes_per_second: float
    """Read and written by a copy."""

    float32_tflop_per_second: float | None = None
    """Of the same product in float32, in TF32 beside bfloat16; None where it is the first."""

    def compute_ms(self, flop: float, *, float32: bool = False) -> float:
        """Return the milliseconds of the operations."""
        rate = self.tflop_per_second
        if float32 and self.float32_tflop_per_second is not None:
            rate = self.float32_tflop_per_second
        return flop / rate / 1e9

    def bytes_ms(self, moved_bytes: float) -> float:
        """Return the milliseconds of moving the bytes."""
        return moved_bytes / self.terabytes_per_second / 1e9


def measure_limits(device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> Limits:
    """Measure the rates of a device by a large product and a large copy."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 256 if quick else 1024
    left, right = (torch.randn(side, side, device=device) for _ in range(2))
    source = torch.empty(2**30 if on_gpu else 2**22 if quick else 2**26, device=device).fill_(1.0)
    target = torch.empty_like(source)
    repeats = 20 if on_gpu else 5

    def rate(left: torch.Tensor, right: torch.Tensor) -> float:
        return 2.0 * side**3 / _seconds(lambda: torch.mm(left, right), device, repeats) / 1e12

    copy = _seconds(lambda: target.copy_(source), device, repeats)
    moved = 2.0 * source.numel() * source.element_size()
    fast = rate(left.to(dtype), right.to(dtype))
    slow = None if dtype == torch.float32 else rate(left, right)
    return Limits(fast, moved / copy / 1e12, slow)


def _seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    samples = []
    for _ in range(3 + repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples[3:])
