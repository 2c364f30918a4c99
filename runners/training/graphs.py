"""Training steps that are recorded once and replayed: CUDA graphs.

A small model keeps a GPU waiting for launches. A CUDA graph launches all kernels of a step at once,
on the addresses that it was recorded with, so

* batches, divisors and the learning rate are copied into tensors that stay where they are;
* gradients are those of the recording; a parameter that got none there has None, so that the
  optimiser leaves it alone, as it does in a plain step;
* everything that decides which kernels run is part of a key (``Work.key``): shapes and depth;
* between the two graphs of a step, gradients and update, the host reads the losses and the norm,
  and stops at what is not finite before anything is spoilt.

The first step of a key is plain, which prepares what a recording must not (compiled kernels, the
optimiser's moments); the second is recorded. Numbers drawn on the device come from the same places
of the generator, so the bits are those of plain steps. ``refused`` says which runs cannot have it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from moeut.blocks.layer import Layer
from moeut.config import ModelConfig
from moeut.ops.backend import resolve_backend
from moeut.ops.backend import why_not as why_not_triton
from runners.config.schema import TrainConfig
from runners.process.ranks import World
from runners.training.optimization import Optimizer
from runners.training.work import Gradients, Work
from tasks.base.options import OptionError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MOST_GRAPHS = 64
"""Recordings that are kept; steps of further keys are plain. Each holds gradients of its own."""

LAUNCH_BOUND_MACS = 5 * 10**10
"""Multiply-accumulates of a step's forward pass up to which ``auto`` records it: an estimate, some
10 ms of work for a GPU, about what launching the kernels of eight layers takes."""

READS_COUNTS = {
    "act": "packs the tokens that go on, whose number the host reads",
    "stick_breaking": "packs the tokens that go on, whose number the host reads",
    "expert_choice": "packs the tokens that were chosen, whose number the host reads",
    "token_choice": "packs the tokens that go on, whose number the host reads",
}
"""Kinds of ``model.halting`` that wait for the device in training, and why."""


class Capture(Protocol):
    """Record work on a device so that it can be done again."""

    def __call__(self, work: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Return what ``work`` returns and a function that does the work, into the same tensors.

        Recording does nothing: only what the function does counts.
        """


class CudaCapture:
    """Record CUDA graphs, which share one pool of memory, since they never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Return what ``work`` returns and a function that does the work, into the same tensors."""
        graph = torch.cuda.CUDAGraph()
        # Only this thread is held to what a recording allows: another one loads the next batch.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            result = work()
        return result, graph.replay


@dataclass
class _Recording:
    """A step of one key."""

    inputs: list[torch.Tensor]
    found: Gradients
    gradients: list[torch.Tensor | None]
    """Of each parameter; None: it gets none in such a step."""
    replay: Callable[[], None]
    update: Callable[[], None] | None = None


class Replays:
    """Steps that are replayed where one of their key was recorded.

    Args:
        capture: records.
        compute: computes the gradients of a step, plainly.
        update: clips the gradients, whose norm it is given, and updates the weights, plainly.
        parameters: of the model, those that train.
        optimizer: of these parameters. Its update is replayed if it is a fused Adam's, whose
            kernels read the learning rate from a tensor; that of another is plain.
        most: recordings that are kept.
    """

    def __init__(
        self,
        capture: Capture,
        compute: Callable[[Work], Gradients],
        update: Callable[[torch.Tensor], None],
        parameters: Sequence[torch.nn.Parameter],
        optimizer: Optimizer,
        *,
        most: int = MOST_GRAPHS,
    ) -> None:
        self._capture, self._most = capture, most
        self._compute, self._update = compute, update
        self._parameters, self._optimizer = parameters, optimizer
        self._known: dict[tuple[Any, ...], _Recording | None] = {}
        self._current: _Recording | None = None
        device = parameters[0].device
        # A fused kernel on a GPU reads float32; on a CPU the number is as exact as the host's.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self._rates = [torch.zeros((), dtype=dtype, device=device) for _ in optimizer.param_groups]
        self._replays_update = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)

    @property
    def num_recorded(self) -> int:
        """Keys of which a step was recorded."""
        return sum(recording is not None for recording in self._known.values())

    def compute(self, work: Work) -> Gradients:
        """Return losses and norm of a step, and leave its gradients in the parameters."""
        key = work.key()
        recording = self._known.get(key)
        if recording is None and key in self._known and self.num_recorded < self._most:
            recording = self._known[key] = self._record(work)
        self._current = recording
        if recording is None:
            self._known[key] = None
            return self._compute(work)
        for own, given in zip(recording.inputs, work.tensors(), strict=True):
            own.copy_(given)
        recording.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.found

    def _record(self, work: Work) -> _Recording:
        inputs = work.copied()
        found, replay = self._capture(lambda: self._compute(inputs))
        gradients = [parameter.grad for parameter in self._parameters]
        logger.info("recorded a training step: %d so far", self.num_recorded + 1)
        return _Recording(inputs.tensors(), found, gradients, replay)

    def update(self, norm: torch.Tensor) -> None:
        """Update the weights by the gradients that ``compute`` left, whose norm is ``norm``."""
        recording = self._current
        if recording is None or not self._replays_update:
            self._update(norm)
            return
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        if recording.update is None:
            with self._rates_on_device():
                _, recording.update = self._capture(lambda: self._update(norm))
        recording.update()

    @contextlib.contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Let the optimiser read its learning rates from the device."""
        groups = self._optimizer.param_groups
        on_host = [group["lr"] for group in groups]
        try:
            for rate, group in zip(self._rates, groups, strict=True):
                group["lr"], group["capturable"] = rate, True
            yield
        finally:
            for number, group in zip(on_host, groups, strict=True):
                group["lr"], group["capturable"] = number, False

    def forget(self) -> None:
        """Forget all recordings, after the optimiser's tensors were replaced."""
        self._known, self._current = {}, None


# --- which runs have it -----------------------------------------------------------------


def refused(config: TrainConfig, model_config: ModelConfig) -> str | None:
    """Return why no machine can replay the steps of a run; None: one with a GPU can."""
    carries = model_config.carry.is_supervised
    if config.objective.of_model(carries=carries).kind == "deep_supervision":
        return "deep supervision goes on from states that the host puts together"
    if config.activation_checkpointing:
        return "activation checkpointing reads the state of the generator"
    if config.repeats.per != "batch" or config.static_depth:
        return "rows of depths of their own are packed, whose number the host reads"
    for name, stack in model_config.stacks.items():
        reason = READS_COUNTS.get(str(stack.halting.kind))
        if reason is not None:
            return f"model.halting.kind={stack.halting.kind} ({name}) {reason}"
    return None


def capture_of(
    config: TrainConfig,
    model: Any,
    device: torch.device,
    world: World,
    *,
    macs_per_step: int,
) -> CudaCapture | None:
    """Return what records the steps of a run, if they are to be replayed.

    Args:
        config: the ``train`` section.
        model: on the device, with its ``config``.
        device: where the run is.
        world: its place among ranks, which cannot replay.
        macs_per_step: multiply-accumulates of the forward pass of a step.

    Raises:
        OptionError: they have to be, and cannot.
    """
    if config.cuda_graph is False:
        return None
    reason = refused(config, model.config) or _unfit(model, device, world)
    if reason is not None and config.cuda_graph is True:
        raise OptionError("train.cuda_graph", True, f"{reason}; allowed: auto, false")
    is_small = macs_per_step <= LAUNCH_BOUND_MACS
    if reason is not None or (config.cuda_graph == "auto" and not is_small):
        return None
    logger.info("training steps are recorded and replayed as CUDA graphs")
    return CudaCapture(device)


def _unfit(model: torch.nn.Module, device: torch.device, world: World) -> str | None:
    """Return why this device, or these ranks, cannot replay."""
    if device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    if world.size > 1:
        return "several processes share a batch"
    routes = any(
        True
        for layer in model.modules()
        if isinstance(layer, Layer)
        for _ in layer.expert_weights()
    )
    if routes and resolve_backend("auto", device) != "triton":
        return f"experts without Triton read their counts on the host ({why_not_triton(device)})"
    return None
