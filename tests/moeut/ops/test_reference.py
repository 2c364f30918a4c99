"""The reference against einsums over all experts, which share nothing with it."""

import pytest
import torch
from expert_cases import ROUTINGS, make_case


def dense(case):
    """Return the operation as one-hot einsums over all slots and experts."""
    inputs, dispatch = case.inputs, case.dispatch
    num_experts, slots = dispatch.num_experts, dispatch.num_slots
    one_hot = (dispatch.expert_index.unsqueeze(1) == torch.arange(num_experts)).double()
    gate = inputs["gate"].reshape(-1) if "gate" in inputs else torch.ones(slots).double()

    def linear(x, weight):
        return torch.einsum("sef,se->sf", torch.einsum("sd,edf->sef", x, weight), one_hot)

    if case.operation == "mlp":
        x = inputs["x"].repeat_interleave(slots // max(len(inputs["x"]), 1), 0)
        hidden = torch.relu(linear(x, inputs["w_up"]))
        y = linear(hidden, inputs["w_down"]) * gate.unsqueeze(1)
        return y.view(len(inputs["x"]), -1, y.shape[1]).sum(1)
    x = inputs["x"].repeat_interleave(case.slots_per_input, 0)
    y = linear(x, inputs["weight"]) * gate.unsqueeze(1)
    return y.view(-1, case.slots_per_output, y.shape[1]).sum(1)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("operation", ["mlp", "up", "down", "value", "output"])
@pytest.mark.parametrize("gate", [True, False])
def test_equals_dense_einsum(operation, routing, gate):
    case = make_case(operation, 5, routing, gate=gate)
    torch.testing.assert_close(case.run("reference")["out"], dense(case), rtol=0, atol=1e-12)


def test_worked_example():
    case = make_case("down", 1, num_experts=2, top_k=2, width=1, inner=1)
    case.inputs = {
        "x": torch.tensor([[2.0], [3.0]]),
        "weight": torch.tensor([[[10.0]], [[100.0]]]),
        "gate": torch.tensor([[0.5, 0.25]]),
    }
    case.dispatch = type(case.dispatch).from_indices(torch.tensor([[1, 0]]), 2)
    # 0.5 * 2 * 100 + 0.25 * 3 * 10
    assert case.run("reference")["out"].tolist() == [[107.5]]
