import pytest
import torch

from moeut.ops import Dispatch, SharedWeights, expert_linear, expert_mlp

DISPATCH = Dispatch.from_indices(torch.zeros(4, 3, dtype=torch.int64), 5)


def linear(**changes):
    arguments = {
        "x": torch.zeros(4, 6),
        "weight": torch.zeros(5, 6, 7),
        "slots_per_input": 3,
        **changes,
    }
    return expert_linear(arguments.pop("x"), arguments.pop("weight"), DISPATCH, **arguments)


def mlp(**changes):
    arguments = {
        "x": torch.zeros(4, 6),
        "w_up": torch.zeros(5, 6, 7),
        "w_down": torch.zeros(5, 7, 6),
        **changes,
    }
    positional = [arguments.pop(name) for name in ("x", "w_up", "w_down")]
    return expert_mlp(*positional, DISPATCH, **arguments)


def test_shapes():
    assert linear().shape == (12, 7)
    assert linear(slots_per_output=6).shape == (2, 7)
    assert mlp().shape == (4, 6)


@pytest.mark.parametrize(
    ("call", "changes", "message"),
    [
        (linear, {"x": torch.zeros(5, 6)}, r"x.shape=\(5, 6\): expected \(4, 6\)"),
        (linear, {"x": torch.zeros(4, 7)}, r"x.shape=\(4, 7\): expected \(4, 6\)"),
        (linear, {"weight": torch.zeros(4, 6, 7)}, r"weight.shape.*expected \(5, 6, 7\)"),
        (linear, {"weight": torch.zeros(6, 7)}, r"weight.shape.*expected \(num_experts"),
        (linear, {"gate": torch.zeros(4)}, r"gate.shape=\(4,\): expected 12 values"),
        (linear, {"gate": torch.zeros(4, 3).long()}, "gate.dtype=torch.int64"),
        (linear, {"slots_per_input": 5}, "slots_per_input=5: expected a divisor of the 12"),
        (linear, {"slots_per_output": 0}, "slots_per_output=0: expected a divisor"),
        (linear, {"weight": torch.zeros(5, 6, 7).double()}, "weight.dtype=torch.float64"),
        (linear, {"x": torch.zeros(4, 6).long()}, "x.dtype=torch.int64: expected a floating"),
        (linear, {"weight": torch.zeros(5, 6, 7, device="meta")}, "weight.device=meta"),
        (linear, {"backend": "tritn"}, "did you mean 'triton'"),
        (mlp, {"x": torch.zeros(5, 6)}, "x has 5 rows: expected a divisor of the 12 slots"),
        (mlp, {"x": torch.zeros(0, 6)}, "x has 0 rows"),
        (mlp, {"x": torch.zeros(6)}, r"x.shape=\(6,\): expected \(tokens, width\)"),
        (mlp, {"w_down": torch.zeros(5, 6, 7)}, r"w_down.shape.*expected \(5, 7, 6\)"),
    ],
)
def test_bad_input_is_refused(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def biased_experts(x, w_up, bias_up, w_down, bias_down, gate, index):
    """Build experts with biases (T, K) out of linear maps, as ``expert_mlp`` says."""
    dispatch, top_k = Dispatch.from_indices(index, len(w_up)), index.shape[1]
    gate = gate.masked_fill(index < 0, 0.0)
    expert = index.clamp_min(0)  # what a slot without an expert reads, no output does
    hidden = expert_linear(x, w_up, dispatch, slots_per_input=top_k)
    hidden = torch.relu(hidden + bias_up[expert.flatten()])
    out = expert_linear(hidden, w_down, dispatch, slots_per_output=top_k, gate=gate)
    by_expert = gate.new_zeros(len(x), len(w_up)).scatter_add(1, expert, gate)  # (T, E)
    return out + by_expert @ bias_down


def test_experts_with_biases_are_built_of_linear_maps():
    """The Sparse Universal Transformer's: gate · (relu(x up + bias) down + bias)."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 3), (4, 3, 5), (4, 5), (4, 5, 3), (4, 3), (6, 2))
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]
    index = torch.rand(6, 4, generator=generator).topk(2).indices
    index[1, 0] = index[4] = -1
    x, w_up, bias_up, w_down, bias_down, gate = inputs
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for token in range(6):
        for choice in range(2):
            e = int(index[token, choice])
            if e >= 0:
                hidden = torch.relu(x[token] @ w_up[e] + bias_up[e])
                expected[token] += gate[token, choice] * (hidden @ w_down[e] + bias_down[e])
    got = biased_experts(*inputs, index)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad(expected.sum(), inputs)
    for one, other in zip(torch.autograd.grad(got.sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@torch.no_grad()
def test_weights_of_a_pass_are_told_apart_though_others_are_gone():
    """CPython gives a new tensor the identity of one that was freed."""
    shared = SharedWeights()
    for n in range(20):
        one, other = torch.full((1, 2), float(n)), torch.full((2, 2), -float(n))
        assert torch.equal(shared.stacked(one, other), torch.cat([one, other]))
        assert shared.stacked(one, other) is shared.stacked(one, other)
        del one, other
