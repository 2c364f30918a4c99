"""The grouped backend against the reference, in float64 and in the precisions it is made for."""

import dataclasses

import pytest
import torch
from expert_cases import ROUTINGS, make_case

from moeut.ops import Dispatch, blocks, expert_linear, expert_mlp, grouped, products

OPERATIONS = ("mlp", "up", "down", "value", "output")


def assert_same(got, expected, atol=1e-10):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor is None:
            assert got[name] is None, name
            continue
        assert got[name].shape == tensor.shape, name
        error = (got[name].double() - tensor.double()).abs().max() if tensor.numel() else 0
        assert error <= atol, f"{name}: off by {error}"


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_output_and_gradients_equal_the_reference(operation, routing):
    for gate in (True, False):
        case = make_case(operation, 63, routing, gate=gate)
        assert_same(case.run("grouped"), case.run("reference"))


@pytest.mark.parametrize("tokens", [0, 1, 63, 100, 600])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_sizes(operation, tokens):
    case = make_case(operation, tokens, "dropped")
    assert_same(case.run("grouped"), case.run("reference"))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("routing", ["random", "one expert"])
def test_experts_of_several_blocks(operation, routing, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_BLOCK_ROWS", 16)
    case = make_case(operation, 63, routing)
    assert_same(case.run("grouped"), case.run("reference"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_threads_agree(operation):
    case = make_case(operation, 63)
    expected = case.run("reference")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_same(case.run("grouped"), expected)
    finally:
        torch.set_num_threads(threads)


MUTATIONS = ("swap two experts", "drop the gate", "drop one slot", "shift the gates")


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_comparison_notices(operation, mutation):
    case = make_case(operation, 63)
    expected = case.run("reference")
    index = case.dispatch.expert_index.clone()
    if mutation == "swap two experts":
        index = torch.where(index == 0, 1, torch.where(index == 1, 0, index))
    elif mutation == "drop one slot":
        index[17] = -1
    elif mutation == "drop the gate":
        case.inputs["gate"] = torch.ones_like(case.inputs["gate"])
    else:
        case.inputs["gate"] = case.inputs["gate"].roll(1, 0)
    mutated = dataclasses.replace(case, dispatch=Dispatch.from_indices(index, 6)).run("grouped")
    for name in expected:
        if "the gate" in mutation and name == "gate":
            continue  # the output is linear in the gate, so its gradient does not depend on it
        with pytest.raises(AssertionError, match=f"{name}: off by"):
            assert_same({name: mutated[name]}, {name: expected[name]}, atol=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("gate", [True, False])
def test_gradcheck(operation, gate):
    case = make_case(operation, 4, "dropped", num_experts=4, top_k=2, width=3, inner=4, gate=gate)
    names = list(case.inputs)
    leaves = [tensor.clone().requires_grad_() for tensor in case.inputs.values()]
    assert torch.autograd.gradcheck(
        lambda *tensors: case.call("grouped", dict(zip(names, tensors, strict=True))), leaves
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_only_wanted_gradients_are_computed(operation):
    names = list(make_case(operation, 9).inputs)
    for wanted in names:
        frozen = tuple(name for name in names if name != wanted)
        case = make_case(operation, 9, frozen=frozen)
        got, expected = case.run("grouped"), case.run("reference")
        assert_same(got, expected)
        assert [name for name in names if got[name] is not None] == [wanted]
    assert list(make_case(operation, 9, frozen=tuple(names)).run("grouped")) == ["out"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_non_contiguous_inputs_and_gradient(operation):
    case = make_case(operation, 63)
    expected = case.run("reference")
    leaves = {}
    for name, tensor in case.inputs.items():
        if name in ("x", "gate"):  # every other column of a wider tensor
            wide = torch.full((tensor.shape[0], 2 * tensor.shape[1]), float("nan")).double()
            wide[:, ::2] = tensor
            leaves[name] = wide[:, ::2].requires_grad_()
        else:  # stored last dimension first
            order = list(reversed(range(tensor.dim())))
            leaves[name] = tensor.permute(order).contiguous().permute(order).requires_grad_()
        assert not leaves[name].is_contiguous()
    out = case.call("grouped", leaves)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    out.backward(weight.t().contiguous().t())
    got = {"out": out.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
    assert_same(got, expected)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_slot_without_an_expert_is_not_looked_at(operation):
    """Not even NaN in dropped rows and gates reaches the output or a gradient."""
    case = make_case(operation, 63, "dropped")
    index = case.dispatch.expert_index.clone()
    index[: case.slots_per_input * 12] = -1  # inputs and gates that no slot reads
    if operation == "mlp":
        index[:36] = -1
    case.dispatch = Dispatch.from_indices(index, 6)
    expected = case.run("grouped")
    unread = case.slots_per_input if operation != "mlp" else 3
    case.inputs["x"][: 12 if operation != "mlp" else 36 // unread] = float("nan")
    case.inputs["gate"].view(-1)[index < 0] = float("nan")
    got = case.run("grouped")
    assert_same(got, expected, atol=0)
    assert not got["gate"].view(-1)[index < 0].any()
    assert got["gate"].view(-1)[index >= 0].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_uninitialised_memory_does_not_leak(operation, dtype, monkeypatch):
    """With fresh memory full of NaN, and rows padded, every number is the same as without."""
    monkeypatch.setattr(products, "MIN_ONEDNN_WORK", 0)
    monkeypatch.setattr(products, "onednn_is_faster", torch.backends.mkldnn.is_available)
    case = make_case(operation, 63, "empty experts")
    expected = case.run("grouped", dtype)
    torch.use_deterministic_algorithms(True)  # fills empty tensors with NaN
    try:
        assert torch.empty(3).isnan().all()
        got = case.run("grouped", dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(got, expected, atol=0)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_low_precision_loses_no_more_than_the_reference(operation, dtype, onednn, monkeypatch):
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch without oneDNN")
    monkeypatch.setattr(products, "MIN_ONEDNN_WORK", 0)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: onednn)
    case = make_case(operation, 100, width=34, inner=21)
    case.inputs = {name: tensor.to(dtype).double() for name, tensor in case.inputs.items()}
    exact = case.run("reference")
    plain, got = case.run("reference", dtype), case.run("grouped", dtype)
    for name, tensor in exact.items():
        assert got[name].dtype == dtype
        lost = (plain[name].double() - tensor).abs().max()
        assert (got[name].double() - tensor).abs().max() <= 2 * lost + 1e-7, name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_two_runs_give_the_same_bits(operation):
    case = make_case(operation, 600, width=34, inner=21)
    assert_same(case.run("grouped", torch.float32), case.run("grouped", torch.float32), atol=0)


@pytest.mark.parametrize("backend", ["reference", "grouped"])
def test_autocast_computes_in_its_dtype_and_returns_gradients_in_theirs(backend):
    case = make_case("mlp", 63)
    leaves = {n: t.float().requires_grad_() for n, t in case.inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = case.call(backend, leaves)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    exact = case.run("reference")["out"]
    assert (out.double() - exact).abs().max() < 0.03 * exact.abs().max()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves.values())


@pytest.mark.parametrize("backend", ["reference", "grouped"])
def test_gate_of_another_dtype_is_cast(backend):
    case = make_case("down", 9)
    inputs = {name: tensor.bfloat16() for name, tensor in case.inputs.items()}
    inputs["gate"] = case.inputs["gate"].float().requires_grad_()
    out = case.call(backend, inputs)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert inputs["gate"].grad.dtype == torch.float32


def test_hidden_activations_are_not_kept_for_inference():
    case = make_case("mlp", 9)
    x, w_up, w_down = (case.inputs[name] for name in ("x", "w_up", "w_down"))
    order, offsets = case.dispatch.order, case.dispatch.offsets
    for keep in (True, False):
        arguments = (x, w_up, w_down, order, offsets, None, keep)
        assert grouped._mlp(*arguments)[1].shape[0] == (27 if keep else 0)
    with torch.no_grad():
        without = case.run("grouped")["out"]
    assert torch.equal(without, case.run("grouped")["out"])


def operation_arguments(operation, routing):
    case = make_case(operation, 9, routing)
    tensors = {name: tensor.requires_grad_() for name, tensor in case.inputs.items()}
    gate = tensors["gate"].reshape(-1).detach().requires_grad_()
    order, offsets = case.dispatch.order, case.dispatch.offsets
    if operation == "mlp":
        first = (tensors["x"], tensors["w_up"], tensors["w_down"])
        return grouped._mlp, (*first, order, offsets, gate, True)
    return grouped._linear, (
        *(tensors["x"], tensors["weight"], order, offsets, gate),
        *(case.slots_per_input, case.slots_per_output),
    )


@pytest.mark.parametrize("operation", ["mlp", "value"])
def test_registration_passes_opcheck(operation):
    operator, arguments = operation_arguments(operation, "dropped")
    results = torch.library.opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_compiled_graph_has_no_break():
    generator = torch.Generator().manual_seed(0)
    router = torch.randn(8, 6, generator=generator)

    def layer(x, w_up, w_down):
        gate, index = (x @ router).sigmoid().topk(2)
        dispatch = Dispatch.from_indices(index, 6)
        value = expert_linear(x, w_up, dispatch, slots_per_input=2, slots_per_output=2, gate=gate)
        return expert_mlp(x, w_up, w_down, dispatch, gate=gate).sum() + value.square().sum()

    x = torch.randn(17, 8, generator=generator, requires_grad=True)
    w_up = torch.randn(6, 8, 5, generator=generator, requires_grad=True)
    w_down = torch.randn(6, 5, 8, generator=generator, requires_grad=True)
    expected = torch.autograd.grad(layer(x, w_up, w_down), (x, w_up, w_down))
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, w_up, w_down), (x, w_up, w_down))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
