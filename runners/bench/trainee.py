"""The models whose training steps are timed, and the ways to run a step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import moeut
from moeut.config import ModelConfig
from moeut.sizing import count_parameters, match_parameters

VOCABULARY_SIZE = 8000


@dataclasses.dataclass(frozen=True)
class Size:
    """Name the models that are compared and the tokens of a step."""

    batch: int
    length: int
    d_model: int = 0
    preset: str = ""
    """Ending of the presets' names; without one, small models of width ``d_model``."""

    def configs(self) -> dict[str, ModelConfig]:
        """Return MoEUT and the dense Transformer with as many parameters."""
        if self.preset:
            return {
                name: moeut.preset(f"{name}-{self.preset}") for name in ("moeut", "transformer")
            }
        shared: dict[str, Any] = {
            "form": "decoder_lm",
            "vocabulary_size": min(VOCABULARY_SIZE, 16 * self.d_model),
            "d_model": self.d_model,
        }
        sparse = moeut.architecture("moeut", **shared)
        dense = moeut.architecture("transformer", **shared)
        budget = count_parameters(sparse)
        return {"moeut": sparse, "transformer": match_parameters(dense, budget)}


SIZES = {
    "tiny": Size(batch=2, length=32, d_model=32),
    "small": Size(batch=8, length=128, d_model=128),
    "44m": Size(batch=64, length=1024, preset="44m"),
    "244m": Size(batch=64, length=1024, preset="244m"),
    "1b": Size(batch=64, length=1024, preset="1b"),
}
CPU_SIZES = ("tiny",)
GPU_SIZES = ("small", "44m", "244m", "1b")


class Trainee:
    """One model with its optimiser, and the ways to run its step."""

    def __init__(
        self,
        config: ModelConfig,
        size: Size,
        device: torch.device,
        *,
        weights_dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype = torch.float32,
        parts: int = 1,
    ) -> None:
        torch.manual_seed(0)
        self.config = config
        self.model = moeut.build(config).to(device, weights_dtype).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, fused=True, capturable=device.type == "cuda"
        )
        shape = (size.batch, size.length + 1)
        tokens = torch.randint(config.vocabulary_size, shape, device=device)
        self.parts = tokens.chunk(parts)
        self.device, self.compute_dtype = device, compute_dtype
        self.is_mixed = compute_dtype != weights_dtype

    def step(self, call: Callable[..., Any]) -> torch.Tensor:
        """Train once and return the loss."""
        losses = []
        for tokens in self.parts:
            output = self.forward(call, tokens[:, :-1])
            logits, targets = output.logits.flatten(0, 1).float(), tokens[:, 1:].flatten()
            loss = functional.cross_entropy(logits, targets)
            ((loss + output.auxiliary_loss) / len(self.parts)).backward()
            losses.append(loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).mean()

    def forward(self, call: Callable[..., Any], tokens: torch.Tensor) -> Any:
        """Call the model in the dtype to compute in."""
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self.is_mixed):
            return call(tokens)

    def attention_kernels(self) -> list[str]:
        """Return the kernels that attention takes in a forward pass."""
        with _AttentionKernels() as seen:
            self.forward(self.model, self.parts[0][:1, :-1])
        return sorted(seen.names)

    def state_bytes(self) -> int:
        """Return the bytes of weights and moments."""
        return 3 * sum(p.numel() * p.element_size() for p in self.model.parameters())

    def runner(self, mode: str) -> Callable[[], object]:
        """Return a function that runs one step in a mode, after what the mode has to prepare."""
        call = torch.compile(self.model) if mode.startswith("compiled") else self.model
        if not mode.endswith("graph"):
            return functools.partial(self.step, call)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(call)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(call)
        return graph.replay


class _AttentionKernels(TorchDispatchMode):
    """Note the names of the attention operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        if "scaled_dot_product" in name:
            name = name.removeprefix("_scaled_dot_product_")
            self.names.add(name.removesuffix("_for_cpu").removesuffix("_attention"))
        return func(*args, **(kwargs or {}))
