"""Time competing functions fairly, and say on which machine.

All competitors run in turn in every round, so that a disturbance of the machine meets all of them;
reported is the median over rounds of each, and ratios are taken between medians of one run.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Hold one function to be timed and the tensors it is differentiated in.

    Without a tensor that requires a gradient there is no backward pass.
    """

    forward: Callable[[], Tensor | Sequence[Tensor]]
    inputs: Sequence[Tensor]

    @property
    def device(self) -> torch.device:
        """Return the device that it runs on."""
        return self.inputs[0].device

    def clear(self) -> None:
        """Drop all gradients, so that a pass writes its own and adds to none."""
        for tensor in self.inputs:
            tensor.grad = None

    def backward(self, out: Tensor | Sequence[Tensor]) -> None:
        """Differentiate what the forward pass returned, for gradients of one."""
        if any(tensor.requires_grad for tensor in self.inputs):
            outputs = [out] if isinstance(out, Tensor) else list(out)
            torch.autograd.backward(outputs, [torch.ones_like(one) for one in outputs])

    def step(self) -> None:
        """Run forward and backward once."""
        self.clear()
        self.backward(self.forward())


@dataclasses.dataclass(frozen=True)
class Timing:
    """Hold the medians and minima of one candidate, in milliseconds."""

    forward_ms: float
    forward_backward_ms: float
    forward_min_ms: float
    forward_backward_min_ms: float


def compare(candidates: Mapping[str, Candidate], *, rounds: int, warmup: int) -> dict[str, Timing]:
    """Time the candidates in turn, ``rounds`` times after ``warmup`` untimed rounds."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for round_index in range(warmup + rounds):
        for name, candidate in candidates.items():
            times = _time_once(candidate)
            if round_index >= warmup:
                samples[name].append(times)
    return {name: _summarise(times) for name, times in samples.items()}


def _summarise(samples: Sequence[tuple[float, float]]) -> Timing:
    forward, both = zip(*samples, strict=True)
    return Timing(statistics.median(forward), statistics.median(both), min(forward), min(both))


def _time_once(candidate: Candidate) -> tuple[float, float]:
    """Return the milliseconds of forward, and of forward and backward together."""
    candidate.clear()
    if candidate.device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        events[0].record()
        out = candidate.forward()
        events[1].record()
        candidate.backward(out)
        events[2].record()
        torch.cuda.synchronize()
        return events[0].elapsed_time(events[1]), events[0].elapsed_time(events[2])
    start = time.perf_counter()
    out = candidate.forward()
    middle = time.perf_counter()
    candidate.backward(out)
    end = time.perf_counter()
    return 1e3 * (middle - start), 1e3 * (end - start)


def peak_memory(candidate: Candidate) -> int | None:
    """Return the most bytes that forward and backward hold beside the inputs; None off a GPU."""
    device = candidate.device
    if device.type != "cuda":
        return None
    candidate.clear()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    candidate.backward(candidate.forward())
    return torch.cuda.max_memory_allocated(device) - before


class DeviceFailedError(Exception):
    """Say that a device no longer works for this process, as after an illegal memory access."""


def attempt(
    function: Callable[[], Result], device: torch.device
) -> tuple[Result | None, str | None]:
    """Return what a function returns, or None and its error in one line.

    One competitor or size that fails, by an error of whatever library it calls, must not cost the
    results of the others. What it had allocated is freed. Raises DeviceFailedError if nothing else
    could run after it.
    """
    problem = None
    try:
        return function(), None
    except DeviceFailedError:
        raise
    except Exception as error:  # noqa: BLE001
        lines = str(error).strip().splitlines()
        problem = f"{type(error).__name__}: {lines[0] if lines else ''}"
    gc.collect()  # the traceback held tensors until here
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DeviceFailedError(problem) from error
    return None, problem


def describe_machine(device: torch.device) -> dict[str, object]:
    """Return hardware, versions and settings that a timing depends on."""
    machine: dict[str, object] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "transparent_huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = properties.name
        machine["gpu_memory_bytes"] = properties.total_memory
        machine["multiprocessors"] = properties.multi_processor_count
        machine["cuda"] = torch.version.cuda
        machine["triton"] = _version("triton")
    return machine


def _commit() -> str | None:
    """Return the commit of the code, and whether it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        folder = Path(__file__).parent
        said = subprocess.run(
            command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields: dict[str, str] = {}
        for line in cpuinfo.read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
        if "model name" in fields:
            family = fields.get("cpu family", "?")
            return f"{fields['model name']} (family {family}, model {fields.get('model', '?')})"
    return platform.processor() or platform.machine()
