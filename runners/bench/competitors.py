"""What the expert operations could be replaced by, on the same inputs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from moeut.blocks import routing
from moeut.ops import Dispatch, SharedWeight, expert_linear, expert_mlp
from moeut.ops.cpu_routine import ONEDNN, onednn_is_faster
from runners.bench.peers import Peer
from runners.bench.sizes import DispatchSize, HeadSize, MlpSize, RouterSize, Size
from runners.bench.timing import Candidate

MAX_ALL_EXPERTS_FLOP = 5e10
"""Computing all experts is left out where its forward pass would take more operations than this."""


def mlp_candidates(
    size: MlpSize,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    peers: Sequence[Peer] = (),
    weight_dtype: torch.dtype | None = None,
) -> dict[str, Candidate]:
    """Return the σ-MoE layer and its competitors, with weights drawn from a fixed seed."""
    draw = _Draw(device, dtype, weight_dtype)
    tokens, experts, top_k = size.tokens, size.num_experts, size.top_k
    x = draw(tokens, size.width)
    active = top_k * size.expert_size
    w_up = draw.weight(experts, size.width, size.expert_size, scale=size.width**-0.5)
    w_down = draw.weight(experts, size.expert_size, size.width, scale=active**-0.5)
    gate, index = draw.router(tokens, experts, top_k)
    dense_up = draw.weight(active, size.width, scale=size.width**-0.5)
    dense_down = draw.weight(size.width, active, scale=active**-0.5)

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
    if device.type == "cuda":
        dispatch = Dispatch.from_indices(index, experts)

        def sorted_before() -> Tensor:
            return expert_mlp(x, w_up, w_down, dispatch, gate=gate, backend=backend)

        candidates["ours, sorted before"] = Candidate(sorted_before, (x, w_up, w_down, gate))
        if w_up.dtype != x.dtype:
            candidates["ours, shared"] = _shared(x, w_up, w_down, index, gate, backend)
    if takes_grouped_mm(device, dtype, size.width, size.expert_size):

        def grouped_mm() -> Tensor:
            return grouped_mm_mlp(x, w_up, w_down, Dispatch.from_indices(index, experts), gate)

        candidates["torch grouped_mm"] = Candidate(grouped_mm, (x, w_up, w_down, gate))
    for peer in peers:
        if peer.expert_mlp is not None:
            run = functools.partial(peer.expert_mlp, x, w_up, w_down, index, gate)
            candidates[peer.name] = Candidate(run, (x, w_up, w_down, gate))
    return candidates


def _shared(
    x: Tensor, w_up: Tensor, w_down: Tensor, index: Tensor, gate: Tensor, backend: str
) -> Candidate:
    """Return one of many applications of a shared layer, whose weights were cast before."""
    up, down = SharedWeight(w_up, x.dtype), SharedWeight(w_down, x.dtype)
    threads = up.thread, down.thread

    def shared() -> Tensor:
        up.thread, down.thread = threads  # else each call would lead back to those before
        dispatch = Dispatch.from_indices(index, w_up.shape[0])
        return expert_mlp(x, up, down, dispatch, gate=gate, backend=backend)

    return Candidate(shared, (x, w_up, w_down, gate))


def takes_grouped_mm(device: torch.device, dtype: torch.dtype, *widths: int) -> bool:
    """Return whether PyTorch's grouped product is more than a loop: bfloat16, rows of 16 bytes."""
    if dtype != torch.bfloat16:
        return False
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return hasattr(torch, "_grouped_mm") and all(width % 8 == 0 for width in widths)


def grouped_mm_mlp(
    x: Tensor, w_up: Tensor, w_down: Tensor, dispatch: Dispatch, gate: Tensor
) -> Tensor:
    """Compute a σ-MoE layer in bfloat16 by PyTorch's grouped product of sorted rows."""
    top_k = dispatch.num_slots // x.shape[0]
    hidden = torch.relu(_grouped_mm(x.index_select(0, dispatch.order // top_k), w_up, dispatch))
    return _sum_slots(_grouped_mm(hidden, w_down, dispatch), dispatch, gate, top_k)


def grouped_mm_linear(
    x: Tensor,
    weight: Tensor,
    dispatch: Dispatch,
    gate: Tensor,
    slots_per_input: int,
    slots_per_output: int,
) -> Tensor:
    """Compute a SwitchHead projection in bfloat16 by PyTorch's grouped product of sorted rows."""
    rows = x.index_select(0, dispatch.order // slots_per_input)
    return _sum_slots(_grouped_mm(rows, weight, dispatch), dispatch, gate, slots_per_output)


def _grouped_mm(rows: Tensor, weight: Tensor, dispatch: Dispatch) -> Tensor:
    rows, weight = rows.to(torch.bfloat16), weight.to(torch.bfloat16)
    return torch._grouped_mm(rows, weight, offs=dispatch.offsets[1:].to(torch.int32))


def _sum_slots(rows: Tensor, dispatch: Dispatch, gate: Tensor, slots_per_output: int) -> Tensor:
    """Sum gated rows in sorted order over each output's slots."""
    place = torch.empty_like(dispatch.order)
    place[dispatch.order] = torch.arange(dispatch.num_slots, device=rows.device)
    slots = rows.index_select(0, place).view(-1, slots_per_output, rows.shape[1])
    return torch.einsum("okd,ok->od", slots, gate.reshape(-1, slots_per_output).to(slots.dtype))


def head_candidates(
    size: HeadSize,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    peers: Sequence[Peer] = (),
    weight_dtype: torch.dtype | None = None,
) -> dict[str, Candidate]:
    """Return a SwitchHead projection and its competitors, with weights from a fixed seed."""
    draw = _Draw(device, dtype, weight_dtype)
    is_value = size.kind == "value"
    tokens, heads, top_k = size.tokens, size.num_heads, size.top_k
    experts = heads * size.experts_per_head
    width_in, width_out = size.width, size.head_width
    rows_in, rows_out = tokens, tokens * heads
    if not is_value:
        width_in, width_out, rows_in, rows_out = width_out, width_in, rows_out, rows_in
    slots = tokens * heads * top_k
    x = draw(rows_in, width_in)
    weight = draw.weight(experts, width_in, width_out, scale=width_in**-0.5)
    gate, index = draw.router(tokens * heads, size.experts_per_head, top_k)
    first_expert = torch.arange(heads, device=device).mul(size.experts_per_head)
    index = index.view(tokens, heads, top_k) + first_expert.view(1, heads, 1)
    active = heads * top_k * size.head_width
    dense_shape = (active, size.width) if is_value else (size.width, active)
    dense_weight = draw.weight(*dense_shape, scale=dense_shape[1] ** -0.5)
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
    if takes_grouped_mm(device, dtype, width_in, width_out):

        def grouped_mm() -> Tensor:
            dispatch = Dispatch.from_indices(index, experts)
            per_row = (slots // rows_in, slots // rows_out)
            return grouped_mm_linear(x, weight, dispatch, gate, *per_row)

        candidates["torch grouped_mm"] = Candidate(grouped_mm, (x, weight, gate))
    gate_3d = gate.view(tokens, heads, top_k)
    for peer in peers:
        if peer.expert_linear is not None:
            per_row = (slots // rows_in, slots // rows_out)
            run = functools.partial(peer.expert_linear, x, weight, index, gate_3d, *per_row)
            candidates[peer.name] = Candidate(run, (x, weight, gate))
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
    """Draw trainable tensors from a fixed seed, on the device."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, weight_dtype: torch.dtype | None = None
    ) -> None:
        self.device, self.dtype, self.weight_dtype = device, dtype, weight_dtype or dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self._draw(shape, scale).to(self.dtype).requires_grad_()

    def weight(self, *shape: int, scale: float) -> Tensor:
        """Return a weight."""
        return self._draw(shape, scale).to(self.weight_dtype).requires_grad_()

    def router(self, rows: int, num_experts: int, top_k: int) -> tuple[Tensor, Tensor]:
        """Return gates and experts, (rows, top_k) each, every expert equally likely."""
        scores = self._draw((rows, num_experts), 1.0).sigmoid()
        gate, index = scores.topk(top_k, sorted=False)
        return gate.to(self.weight_dtype).requires_grad_(), index

    def _draw(self, shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).mul_(scale)


def dispatch_candidates(
    size: DispatchSize, backend: str, device: torch.device, peers: Sequence[Peer] = ()
) -> dict[str, Candidate]:
    """Return the sorting of a routing decision, ours and others'; there is nothing to learn."""
    _gate, index = _Draw(device, torch.float32).router(
        size.tokens, size.total_experts, size.slots_per_token
    )

    def ours() -> tuple[Tensor, Tensor]:
        dispatch = Dispatch.from_indices(index, size.total_experts, backend=backend)
        return dispatch.order, dispatch.offsets

    def sort() -> tuple[Tensor, Tensor]:
        key, order = torch.sort(index.flatten(), stable=True)
        bounds = torch.arange(size.total_experts + 1, device=device)
        return order, torch.searchsorted(key, bounds)

    candidates = {"ours": Candidate(ours, (index,)), "torch.sort": Candidate(sort, (index,))}
    for peer in peers:
        if peer.dispatch is not None:
            run = functools.partial(peer.dispatch, index, size.total_experts)
            candidates[peer.name] = Candidate(run, (index,))
    return candidates


def router_candidates(
    size: RouterSize, device: torch.device, dtype: torch.dtype
) -> dict[str, Candidate]:
    """Return a σ-MoE router as the layers call it, in plain PyTorch, and its logits alone."""
    draw = _Draw(device, dtype, torch.float32)
    batch = max(1, size.tokens // 1024)
    x = draw(batch, size.tokens // batch, size.width)
    weight = draw.weight(size.num_experts, size.width, scale=size.width**-0.5)
    context = routing.RoutingContext(balance=True)

    def logits() -> Tensor:
        return routing.router_logits(x, weight).unsqueeze(2)

    def ours() -> tuple[Tensor, Tensor]:
        routes, record = routing.route(logits(), size.top_k, context)
        assert record is not None
        assert record.probability is not None
        return routes.gates, record.probability

    def plain() -> tuple[Tensor, Tensor]:
        scores = logits()
        routes = routing.choose_experts(scores, size.top_k)
        return routes.gates, routing.mean_probability(scores, context)

    inputs = (x, weight)
    return {
        "ours": Candidate(ours, inputs),
        "plain PyTorch": Candidate(plain, inputs),
        "logits": Candidate(logits, inputs),
    }


def candidates_for(
    size: Size,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    peers: Sequence[Peer] = (),
    *,
    weight_dtype: torch.dtype | None = None,
) -> dict[str, Candidate]:
    """Return the competitors of one size by name, ``ours`` among them.

    Activations are of ``dtype``, weights and gates of ``weight_dtype`` (default: the same).
    """
    if isinstance(size, DispatchSize):
        return dispatch_candidates(size, backend, device, peers)
    if isinstance(size, RouterSize):
        return router_candidates(size, device, dtype)
    if isinstance(size, MlpSize):
        return mlp_candidates(size, backend, device, dtype, peers, weight_dtype)
    return head_candidates(size, backend, device, dtype, peers, weight_dtype)
