"""Time the expert operations beside what they could be replaced by.

For every size: `ours`, the expert operation of the chosen backend; `dense`, the floor, a dense
layer of the same active width, which does as many multiplications and no routing, by PyTorch's
linear layer and, where the backend multiplies by oneDNN, by oneDNN too; `loop`, a plain loop over
the experts differentiated by autograd; `all experts`, every expert computed for every token and
masked. Sorting the routing decision is part of the time, the router is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import shlex
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from moeut.ops import Dispatch, expert_linear, expert_mlp, resolve_backend
from moeut.ops.matmul import ONEDNN, onednn_is_faster
from runners.bench.timing import (
    Candidate,
    Timing,
    compare,
    describe_machine,
    retain_memory,
    write_json,
)

MAX_ALL_EXPERTS_FLOP = 5e10
"""Computing all experts is left out where its forward pass would take more operations than this."""


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


SIZES: dict[str, MlpSize | HeadSize] = {
    "mlp-44m": MlpSize(2048, 412, 155, 128, 12),
    "mlp-44m-short": MlpSize(512, 412, 155, 128, 12),
    "mlp-small": MlpSize(4096, 256, 32, 64, 4),
    "value-44m": HeadSize("value", 2048, 412, 4, 8, 2, 82),
    "output-44m": HeadSize("output", 2048, 412, 4, 8, 2, 82),
    "mlp-quickstart": MlpSize(1024, 64, 16, 32, 4),
    "mlp-tiny": MlpSize(64, 32, 8, 16, 2),
    "value-tiny": HeadSize("value", 64, 32, 2, 4, 2, 8),
    "output-tiny": HeadSize("output", 64, 32, 2, 4, 2, 8),
}

DEFAULT_SIZES = ("mlp-44m", "mlp-44m-short", "mlp-small", "value-44m", "output-44m")
QUICK_SIZES = ("mlp-tiny", "value-tiny", "output-tiny")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def mlp_candidates(
    size: MlpSize, backend: str, device: torch.device, dtype: torch.dtype
) -> dict[str, Candidate]:
    """Return the σ-MoE layer and its competitors, with weights drawn from a fixed seed."""
    draw = _Draw(device, dtype)
    tokens, experts, top_k = size.tokens, size.num_experts, size.top_k
    x = draw(tokens, size.width)
    w_up = draw(experts, size.width, size.expert_size, scale=size.width**-0.5)
    w_down = draw(experts, size.expert_size, size.width, scale=(top_k * size.expert_size) ** -0.5)
    gate, index = draw.router(tokens, experts, top_k)
    active = top_k * size.expert_size
    dense_up = draw(active, size.width, scale=size.width**-0.5)
    dense_down = draw(size.width, active, scale=active**-0.5)

    def ours() -> Tensor:
        dispatch = Dispatch.from_indices(index, experts)
        return expert_mlp(x, w_up, w_down, dispatch, gate=gate, backend=backend)

    def dense() -> Tensor:
        return functional.linear(torch.relu(functional.linear(x, dense_up)), dense_down)

    def dense_onednn() -> Tensor:
        hidden = torch.relu(_OnednnLinear.apply(x, dense_up))
        return _OnednnLinear.apply(hidden, dense_down)

    def loop() -> Tensor:
        out = torch.zeros_like(x)
        for expert, (up, down) in enumerate(zip(w_up.unbind(0), w_down.unbind(0), strict=True)):
            rows, choice = (index == expert).nonzero(as_tuple=True)
            y = torch.relu(x[rows] @ up) @ down
            out = out.index_add(0, rows, y * gate[rows, choice].unsqueeze(1))
        return out

    def all_experts() -> Tensor:
        weight = torch.zeros(tokens, experts, dtype=dtype, device=device).scatter(1, index, gate)
        hidden = torch.relu(torch.einsum("td,edf->tef", x, w_up)) * weight.unsqueeze(2)
        return torch.einsum("tef,efd->td", hidden, w_down)

    candidates = {
        "ours": Candidate(ours, (x, w_up, w_down, gate)),
        "dense": Candidate(dense, (x, dense_up, dense_down)),
        "loop": Candidate(loop, (x, w_up, w_down, gate)),
    }
    if _uses_onednn(x):
        candidates["dense, oneDNN"] = Candidate(dense_onednn, (x, dense_up, dense_down))
    if size.forward_flop * experts / top_k <= MAX_ALL_EXPERTS_FLOP:
        candidates["all experts"] = Candidate(all_experts, (x, w_up, w_down, gate))
    return candidates


def head_candidates(
    size: HeadSize, backend: str, device: torch.device, dtype: torch.dtype
) -> dict[str, Candidate]:
    """Return a SwitchHead projection and its competitors, with weights from a fixed seed."""
    draw = _Draw(device, dtype)
    is_value = size.kind == "value"
    tokens, heads, top_k = size.tokens, size.num_heads, size.top_k
    experts = heads * size.experts_per_head
    width_in, width_out = size.width, size.head_width
    rows_in, rows_out = tokens, tokens * heads
    if not is_value:
        width_in, width_out, rows_in, rows_out = width_out, width_in, rows_out, rows_in
    slots = tokens * heads * top_k
    x = draw(rows_in, width_in)
    weight = draw(experts, width_in, width_out, scale=width_in**-0.5)
    gate, index = draw.router(tokens * heads, size.experts_per_head, top_k)
    first_expert = torch.arange(heads, device=device).mul(size.experts_per_head)
    index = index.view(tokens, heads, top_k) + first_expert.view(1, heads, 1)
    active = heads * top_k * size.head_width
    dense_shape = (active, size.width) if is_value else (size.width, active)
    dense_weight = draw(*dense_shape, scale=dense_shape[1] ** -0.5)
    dense_x = x if is_value else draw(tokens, active)
    slot_input = torch.arange(slots, device=device) // (slots // rows_in)
    slot_output = torch.arange(slots, device=device) // (slots // rows_out)

    def ours() -> Tensor:
        return expert_linear(
            x,
            weight,
            Dispatch.from_indices(index, experts),
            slots_per_input=slots // rows_in,
            slots_per_output=slots // rows_out,
            gate=gate,
            backend=backend,
        )

    def dense() -> Tensor:
        return functional.linear(dense_x, dense_weight)

    def dense_onednn() -> Tensor:
        return _OnednnLinear.apply(dense_x, dense_weight)

    def loop() -> Tensor:
        out = x.new_zeros(rows_out, width_out)
        flat_index, flat_gate = index.flatten(), gate.flatten()
        for expert, one in enumerate(weight.unbind(0)):
            chosen = (flat_index == expert).nonzero().squeeze(1)
            y = (x[slot_input[chosen]] @ one) * flat_gate[chosen].unsqueeze(1)
            out = out.index_add(0, slot_output[chosen], y)
        return out

    def all_experts() -> Tensor:
        scores = torch.zeros(tokens, experts, dtype=dtype, device=device)
        scores = scores.scatter(1, index.flatten(1), gate.view(tokens, -1))
        scores = scores.view(tokens, heads, size.experts_per_head)
        per_head = weight.view(heads, size.experts_per_head, width_in, width_out)
        if is_value:
            y = torch.einsum("td,hedf->thef", x, per_head)
            return torch.einsum("thef,the->thf", y, scores).reshape(rows_out, width_out)
        gated = torch.einsum("thd,the->thed", x.view(tokens, heads, width_in), scores)
        return torch.einsum("thed,hedf->tf", gated, per_head)

    candidates = {
        "ours": Candidate(ours, (x, weight, gate)),
        "dense": Candidate(dense, (dense_x, dense_weight)),
        "loop": Candidate(loop, (x, weight, gate)),
        "all experts": Candidate(all_experts, (x, weight, gate)),
    }
    if _uses_onednn(x):
        candidates["dense, oneDNN"] = Candidate(dense_onednn, (dense_x, dense_weight))
    return candidates


def _uses_onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and onednn_is_faster()


class _OnednnLinear(torch.autograd.Function):
    """Apply a linear layer by the routine that serves the experts."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return ONEDNN.product(x, weight.t())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return ONEDNN.product(grad, weight), ONEDNN.product(grad.t(), x)


class _Draw:
    """Draw trainable tensors from a fixed seed."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=self.generator) * scale
        return values.to(self.device, self.dtype).requires_grad_()

    def router(self, rows: int, num_experts: int, top_k: int) -> tuple[Tensor, Tensor]:
        """Return gates and experts, (rows, top_k) each, every expert equally likely."""
        scores = torch.randn(rows, num_experts, generator=self.generator).sigmoid()
        gate, index = scores.topk(top_k, sorted=False)
        return gate.to(self.device, self.dtype).requires_grad_(), index.to(self.device)


def candidates_for(
    size: MlpSize | HeadSize, backend: str, device: torch.device, dtype: torch.dtype
) -> dict[str, Candidate]:
    """Return the competitors of one size by name, ``ours`` and ``dense`` among them."""
    if isinstance(size, MlpSize):
        return mlp_candidates(size, backend, device, dtype)
    return head_candidates(size, backend, device, dtype)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Time every chosen size and return the result with what it depends on."""
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    retained = options.retain_memory and retain_memory()
    rows = []
    for name in options.sizes:
        size = SIZES[name]
        candidates = candidates_for(size, options.backend, device, DTYPES[options.dtype])
        skip = set(options.skip)
        candidates = {key: value for key, value in candidates.items() if key not in skip}
        # Slow competitors get fewer rounds; ours and its floor are timed in the same ones.
        fast_names = [key for key in candidates if key in ("ours", "dense", "dense, oneDNN")]
        fast = {key: candidates.pop(key) for key in fast_names}
        timings = compare(fast, rounds=options.repeats, warmup=min(3, options.repeats))
        timings |= compare(candidates, rounds=min(3, options.repeats), warmup=1)
        rows += [_row(name, size, key, value, timings["dense"]) for key, value in timings.items()]
    return {
        "benchmark": "experts",
        "command": shlex.join(["python", "-m", "runners.bench", *options.command]),
        "backend": resolve_backend(options.backend, device.type),
        "dtype": options.dtype,
        "float32_onednn": device.type == "cpu" and onednn_is_faster(),
        "retained_memory": retained,
        "repeats": options.repeats,
        "machine": describe_machine(device),
        "sizes": {name: dataclasses.asdict(SIZES[name]) for name in options.sizes},
        "rows": rows,
    }


def _row(
    name: str, size: MlpSize | HeadSize, candidate: str, timing: Timing, floor: Timing
) -> dict[str, object]:
    routed_flop = size.forward_flop  # the useful work; computing all experts does more
    return {
        "size": name,
        "candidate": candidate,
        **{key: round(value, 4) for key, value in dataclasses.asdict(timing).items()},
        "forward_ratio": round(timing.forward_ms / floor.forward_ms, 4),
        "forward_backward_ratio": round(timing.forward_backward_ms / floor.forward_backward_ms, 4),
        "forward_backward_min_ratio": round(
            timing.forward_backward_min_ms / floor.forward_backward_min_ms, 4
        ),
        "gflop_per_second": round(3 * routed_flop / timing.forward_backward_ms / 1e6, 2),
    }


def print_table(result: dict, console: Console) -> None:
    """Print one line for every size and competitor."""
    machine = result["machine"]
    console.print(
        f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} CPU thread(s), torch "
        f"{machine['torch']}, {result['dtype']}, backend {result['backend']}, load average "
        f"{machine['load_average']}"
    )
    table = Table(title="forward (f) and forward + backward (f+b), medians; × = ratio to dense")
    for heading in ("size", "what", "f ms", "f+b ms", "f ×", "f+b ×", "min f+b ×", "GFLOP/s"):
        table.add_column(heading, justify="left" if heading in ("size", "what") else "right")
    previous = None
    for row in result["rows"]:
        if previous not in (None, row["size"]):
            table.add_section()
        table.add_row(
            "" if row["size"] == previous else row["size"],
            row["candidate"],
            f"{row['forward_ms']:.2f}",
            f"{row['forward_backward_ms']:.2f}",
            f"{row['forward_ratio']:.2f}",
            f"{row['forward_backward_ratio']:.2f}",
            f"{row['forward_backward_min_ratio']:.2f}",
            f"{row['gflop_per_second']:.1f}",
        )
        previous = row["size"]
    console.print(table)


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result."""
    for name in options.sizes:
        if name not in SIZES:
            nearest = difflib.get_close_matches(name, SIZES, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"--sizes {name!r}: expected some of {', '.join(SIZES)}{hint}")
    for option in ("threads", "repeats"):
        if getattr(options, option) < 1:
            raise ValueError(f"--{option} {getattr(options, option)}: expected at least 1")
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: no CUDA device is available")
    resolve_backend(options.backend, options.device)
    result = measure(options)
    print_table(result, Console(width=None if sys.stdout.isatty() else 110))
    if options.json is not None:
        write_json(options.json, result)
    return 0


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="expert matmuls beside a dense layer, a loop and all experts masked",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--sizes", nargs="+", default=list(DEFAULT_SIZES), help=f"some of {', '.join(SIZES)}"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads within an operation")
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds; medians are shown")
    parser.add_argument("--backend", default="auto", help="auto, grouped or reference")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of every tensor")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (timed by events)")
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=["loop", "all experts"], help="leave these out"
    )
    parser.add_argument(
        "--retain-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let malloc keep freed buffers, for every competitor alike",
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write here")
    parser.set_defaults(run=_run_with_defaults)


def _run_with_defaults(options: argparse.Namespace) -> int:
    if options.quick:
        options.repeats = min(options.repeats, 3)
        if options.sizes == list(DEFAULT_SIZES):
            options.sizes = list(QUICK_SIZES)
    return run(options)
