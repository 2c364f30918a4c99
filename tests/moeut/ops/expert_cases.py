"""Inputs that the tests of the expert operations share."""

from dataclasses import dataclass, field

import torch

from moeut.ops import Dispatch, expert_linear, expert_mlp

ROUTINGS = ("random", "dropped", "empty experts", "one expert", "all experts", "none")


def make_index(routing, tokens, num_experts, top_k, generator):
    """Return (tokens, top_k) experts."""
    if routing == "one expert":
        return torch.full((tokens, top_k), num_experts - 1)
    if routing == "none":
        return torch.full((tokens, top_k), -1)
    scores = torch.rand(tokens, num_experts, generator=generator)
    if routing == "empty experts":
        scores[:, ::2] -= 2
    index = scores.topk(top_k).indices
    if routing == "dropped":
        index[torch.rand(tokens, top_k, generator=generator) < 0.3] = -1
    return index


@dataclass
class Case:
    """Hold one operation with inputs: ``run(backend)`` gives output and gradients by name."""

    operation: str
    dispatch: Dispatch
    inputs: dict[str, torch.Tensor]
    slots_per_input: int = 1
    slots_per_output: int = 1
    frozen: tuple[str, ...] = ()
    results: dict = field(default_factory=dict)

    def call(self, backend, inputs):
        inputs = dict(inputs)
        if self.operation == "mlp":
            positional = [inputs.pop(name) for name in ("x", "w_up", "w_down")]
            return expert_mlp(*positional, self.dispatch, backend=backend, **inputs)
        positional = [inputs.pop(name) for name in ("x", "weight")]
        return expert_linear(
            *positional,
            self.dispatch,
            slots_per_input=self.slots_per_input,
            slots_per_output=self.slots_per_output,
            backend=backend,
            **inputs,
        )

    def run(self, backend, dtype=torch.float64):
        leaves = {
            name: tensor.detach().to(dtype).requires_grad_(name not in self.frozen)
            for name, tensor in self.inputs.items()
        }
        out = self.call(backend, leaves)
        result = {"out": out.detach()}
        if out.requires_grad:
            # Every output element weighs differently, so that no error can cancel.
            weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
            (out * weight.to(dtype)).sum().backward()
            result |= {name: leaf.grad for name, leaf in leaves.items()}
        return result


def make_case(
    operation,
    tokens,
    routing="random",
    *,
    num_experts=6,
    top_k=3,
    heads=2,
    width=10,
    inner=7,
    gate=True,
    frozen=(),
    seed=0,
):
    """Build a case: ``mlp``, or a linear map in one of its uses: up, down, value, output."""
    generator = torch.Generator().manual_seed(seed)
    if routing == "all experts":
        top_k = num_experts

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = tokens * heads if operation in ("value", "output") else tokens
    index = make_index(routing, rows, num_experts, top_k, generator)
    dispatch = Dispatch.from_indices(index, num_experts)
    slots = dispatch.num_slots
    if operation == "mlp":
        inputs = {
            "x": draw(tokens, width),
            "w_up": draw(num_experts, width, inner),
            "w_down": draw(num_experts, inner, width),
        }
    per_input, per_output = {
        "mlp": (1, 1),
        "up": (top_k, 1),
        "down": (1, top_k),
        "value": (heads * top_k, top_k),
        "output": (top_k, heads * top_k),
    }[operation]
    if operation != "mlp":
        width_in, width_out = (width, inner) if operation in ("up", "value") else (inner, width)
        inputs = {
            "x": draw(slots // per_input, width_in),
            "weight": draw(num_experts, width_in, width_out),
        }
    if gate:
        inputs["gate"] = draw(*index.shape)
    return Case(operation, dispatch, inputs, per_input, per_output, frozen)
