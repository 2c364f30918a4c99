"""The menu of expert layers to measure, and the least work that each takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from tasks.base.options import nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class MlpSize:
    """Size one σ-MoE layer."""

    tokens: int
    width: int
    num_experts: int
    expert_size: int
    top_k: int

    @property
    def forward_flop(self) -> float:
        """Return the operations of the routed matmuls, 2 per multiplication."""
        return 4.0 * self.tokens * self.top_k * self.width * self.expert_size

    @property
    def total_experts(self) -> int:
        """Return the number of experts that slots are sorted by."""
        return self.num_experts

    @property
    def slots_per_token(self) -> int:
        """Return how many experts work on one token."""
        return self.top_k

    @property
    def num_slots(self) -> int:
        """Return the routed copies of all tokens."""
        return self.tokens * self.top_k

    def elements(self) -> tuple[int, int, int]:
        """Return the elements of inputs and outputs, of weights, and of hidden activations."""
        weights = 2 * self.num_experts * self.width * self.expert_size
        return 2 * self.tokens * self.width, weights, self.num_slots * self.expert_size


@dataclasses.dataclass(frozen=True)
class HeadSize:
    """Size one SwitchHead projection: V (`width` to heads) or O (heads to `width`)."""

    kind: str
    tokens: int
    width: int
    num_heads: int
    experts_per_head: int
    top_k: int
    head_width: int

    @property
    def forward_flop(self) -> float:
        """Return the operations of the routed matmuls, 2 per multiplication."""
        return 2.0 * self.tokens * self.num_heads * self.top_k * self.width * self.head_width

    @property
    def total_experts(self) -> int:
        """Return the number of experts that slots are sorted by."""
        return self.num_heads * self.experts_per_head

    @property
    def slots_per_token(self) -> int:
        """Return how many experts work on one token."""
        return self.num_heads * self.top_k

    @property
    def num_slots(self) -> int:
        """Return the routed copies of all tokens."""
        return self.tokens * self.slots_per_token

    def elements(self) -> tuple[int, int, int]:
        """Return the elements of inputs and outputs, of weights, and of hidden activations."""
        weights = self.total_experts * self.width * self.head_width
        return self.tokens * (self.width + self.num_heads * self.head_width), weights, 0


@dataclasses.dataclass(frozen=True)
class DispatchSize:
    """Size the sorting of one routing decision of a layer; it has no backward pass."""

    tokens: int
    slots_per_token: int
    total_experts: int

    forward_flop = 0.0

    @property
    def num_slots(self) -> int:
        """Return the routed copies of all tokens."""
        return self.tokens * self.slots_per_token


@dataclasses.dataclass(frozen=True)
class RouterSize:
    """Size one σ-MoE router: logits, choice, gates, and the means of the balance loss."""

    tokens: int
    width: int
    num_experts: int
    top_k: int

    @property
    def forward_flop(self) -> float:
        """Return the operations of the logits, 2 per multiplication, in float32."""
        return 2.0 * self.tokens * self.width * self.num_experts


Size = MlpSize | HeadSize | DispatchSize | RouterSize


def backward_flop(size: Size) -> float:
    """Return the operations of a backward pass: two products for each of the forward's."""
    return 2.0 * size.forward_flop


def forward_bytes(size: Size, element_bytes: int) -> float:
    """Return the bytes that a forward pass has to move at least, everything moved once.

    Inputs, weights, gates (and int64 expert indices) are read; outputs and what backward needs are
    written. A router works in float32 throughout.
    """
    if isinstance(size, DispatchSize):
        return 16.0 * size.num_slots + 8.0 * size.total_experts  # index read, order written
    if isinstance(size, RouterSize):
        tokens, experts = size.tokens, size.num_experts
        inputs = element_bytes * tokens * size.width + 4.0 * experts * size.width
        return inputs + 4.0 * tokens * experts + (4.0 + 8.0) * tokens * size.top_k
    rows, weights, kept = size.elements()
    return element_bytes * (rows + weights + kept + size.num_slots) + 8.0 * size.num_slots


def backward_bytes(size: Size, element_bytes: int, weight_bytes: int | None = None) -> float:
    """Return the bytes that a backward pass has to move at least, everything moved once.

    Read are the output's gradient, inputs, weights, gates and what was kept; written the gradients
    of inputs, gates and weights, the last in ``weight_bytes`` an element (default: as the others).
    """
    if isinstance(size, DispatchSize):
        return 0.0
    if isinstance(size, RouterSize):
        tokens, experts = size.tokens, size.num_experts
        read = 4.0 * tokens * experts + (4.0 + 8.0) * tokens * size.top_k
        return read + 2 * element_bytes * tokens * size.width + 2 * 4.0 * experts * size.width
    rows, weights, kept = size.elements()
    elements = 2 * rows + weights + kept + 2 * size.num_slots
    gradient = (element_bytes if weight_bytes is None else weight_bytes) * weights
    return element_bytes * elements + gradient + 8.0 * size.num_slots


def unfused_bytes(size: MlpSize | HeadSize, element_bytes: int) -> tuple[float, float]:
    """Return the bytes of forward and backward if every gathered row crosses device memory.

    Outputs of slots are written and read back to be summed, weight gradients are float32. This is
    how such layers are usually written; a cache, or fusion, is what goes below it.
    """
    rows, weights, kept = size.elements()
    if isinstance(size, MlpSize):
        wide, out = size.num_slots * size.width, size.tokens * size.width
        forward = 3 * wide + 2 * kept + weights + out
        backward = 5 * wide + 6 * kept + weights + out
    else:
        wide, narrow = size.num_slots * size.width, size.num_slots * size.head_width
        slots_in, slots_out = (wide, narrow) if size.kind == "value" else (narrow, wide)
        one = size.tokens * size.width
        inputs = one if size.kind == "value" else rows - one
        forward = slots_in + 2 * slots_out + weights + rows - inputs
        backward = 3 * slots_in + 2 * slots_out + weights + inputs
    routing = (element_bytes + 8.0) * size.num_slots  # gates, and where rows are
    moved = element_bytes * forward + routing
    return moved, element_bytes * backward + 4.0 * weights + routing


def _layers(
    name: str, tokens: int, mlp: tuple[int, int, int, int], head: tuple[int, int, int, int, int]
) -> dict[str, Size]:
    width, num_experts, _, top_k = mlp
    return {
        f"mlp-{name}": MlpSize(tokens, *mlp),
        f"value-{name}": HeadSize("value", tokens, *head),
        f"output-{name}": HeadSize("output", tokens, *head),
        f"dispatch-{name}": DispatchSize(tokens, top_k, num_experts),
        f"router-{name}": RouterSize(tokens, width, num_experts, top_k),
    }


#           width, experts, expert size, top_k      width, heads, experts per head, top_k, head
SIZE_44M = ((412, 155, 128, 12), (412, 4, 8, 2, 82))
SIZE_244M = ((1024, 387, 128, 16), (1024, 4, 10, 2, 128))
SIZE_1B = ((1536, 565, 128, 24), (1536, 6, 12, 2, 128))

SIZES: dict[str, Size] = {
    **_layers("44m", 2048, *SIZE_44M),
    "mlp-44m-short": MlpSize(512, 412, 155, 128, 12),
    "mlp-small": MlpSize(4096, 256, 32, 64, 4),
    "mlp-quickstart": MlpSize(1024, 64, 16, 32, 4),
    **_layers("tiny", 64, (32, 8, 16, 2), (32, 2, 4, 2, 8)),
    # The published models on 64 sequences of 1024 tokens, and on 8 of 128.
    **_layers("44m-64k", 65536, *SIZE_44M),
    **_layers("244m-64k", 65536, *SIZE_244M),
    **_layers("1b-64k", 65536, *SIZE_1B),
    **_layers("44m-1k", 1024, *SIZE_44M),
    **_layers("244m-1k", 1024, *SIZE_244M),
    **_layers("1b-1k", 1024, *SIZE_1B),
}

USES = ("mlp", "value", "output", "dispatch", "router")
LAYERS = tuple(f"{size}-{tokens}" for tokens in ("64k", "1k") for size in ("44m", "244m", "1b"))

CPU_SIZES = (
    *("mlp-44m", "mlp-44m-short", "mlp-small", "value-44m", "output-44m"),
    *("dispatch-44m", "router-44m"),
)
GPU_SIZES = tuple(f"{use}-{layer}" for layer in LAYERS for use in USES)
QUICK_SIZES = tuple(f"{use}-tiny" for use in USES)


def check_sizes(names: Iterable[str], menu: Iterable[str] = SIZES) -> None:
    """Raise ValueError for a name that is not on the menu."""
    allowed = list(menu)
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"--sizes {name!r}: expected some of {', '.join(allowed)}{nearest(name, allowed)}"
            )
