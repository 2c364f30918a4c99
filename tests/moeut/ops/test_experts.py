import pytest
import torch

from moeut.ops import Dispatch, expert_linear, expert_mlp

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
        (linear, {"bias": torch.zeros(7)}, r"bias.shape=\(7,\): expected \(5, 7\)"),
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
        (mlp, {"bias_up": torch.zeros(5, 6)}, r"bias_up.shape.*expected \(5, 7\)"),
        (mlp, {"bias_down": torch.zeros(5, 7)}, r"bias_down.shape.*expected \(5, 6\)"),
        (mlp, {"activation": "gelu"}, "activation='gelu': expected one of relu"),
    ],
)
def test_bad_input_is_refused(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)
