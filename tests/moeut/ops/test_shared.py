"""Shared weights: one cast a pass, and gradients of all applications added up in float32."""

import dataclasses
import os

import pytest
import torch
from expert_cases import make_case

import moeut
from moeut.ops import Dispatch, SharedWeight, SharedWeights, expert_linear, expert_mlp

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device, and no interpreter that works", allow_module_level=True)

from moeut.ops.triton import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WEIGHTS = ("w_up", "w_down", "weight")


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """Keep the interpreter, which takes long for each program, from cutting rows in parts."""
    monkeypatch.setattr(launch, "MIN_WEIGHT_PROGRAMS", 1)


def apply_many(case, times, *, share, dtype=torch.float32, compute=None, frozen=()):
    """Apply an operation several times to scaled inputs; return the outputs' sum and gradients."""
    compute = compute or dtype
    leaves = {
        name: tensor.to(DEVICE, dtype if name in WEIGHTS else compute).requires_grad_(
            name not in frozen
        )
        for name, tensor in case.inputs.items()
    }
    index = case.dispatch.expert_index.to(DEVICE)
    dispatch = Dispatch.from_indices(index, case.dispatch.num_experts, backend="triton")
    case = dataclasses.replace(case, dispatch=dispatch)
    names = [name for name in leaves if name in WEIGHTS]
    with torch.autocast(DEVICE, compute, enabled=compute != dtype):
        inputs = dict(leaves)
        if share:
            inputs |= {name: SharedWeight(leaves[name], compute) for name in names}
        total = 0
        for time in range(times):
            arguments = {
                "x": inputs["x"] * (1 + time),
                **{n: inputs[n] for n in inputs if n != "x"},
            }
            out = call(case, arguments)
            weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=DEVICE)
            total = total + (out.double() * weight.view_as(out)).sum()
    total.backward()
    return total.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def call(case, inputs):
    if case.operation == "mlp":
        positional = [inputs.pop(name) for name in ("x", "w_up", "w_down")]
        return expert_mlp(*positional, case.dispatch, backend="triton", **inputs)
    positional = [inputs.pop(name) for name in ("x", "weight")]
    slots = {"slots_per_input": case.slots_per_input, "slots_per_output": case.slots_per_output}
    return expert_linear(*positional, case.dispatch, backend="triton", **slots, **inputs)


@pytest.mark.parametrize("routing", ["dropped", "empty experts", "none"])
@pytest.mark.parametrize("operation", ["mlp", "value", "output"])
def test_float32_gradients_have_the_bits_of_autograds_sum(operation, routing):
    case = make_case(operation, 7, routing, num_experts=3, top_k=2)
    total, expected = apply_many(case, 3, share=False)
    shared_total, got = apply_many(case, 3, share=True)
    assert torch.equal(total, shared_total)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


def test_rows_cut_in_parts_are_added_too(monkeypatch):
    monkeypatch.setattr(launch, "MIN_WEIGHT_PROGRAMS", 9)
    case = make_case("mlp", 21, num_experts=3, top_k=2)
    _, expected = apply_many(case, 2, share=False)
    _, got = apply_many(case, 2, share=True)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("operation", ["mlp", "value"])
def test_sums_of_low_precision_lose_less_than_autograds(operation):
    """Autograd's gradients of each application are rounded to float16, ours never are."""
    case = make_case(operation, 9, num_experts=3, top_k=2)
    rounded = {name: tensor.half().double() for name, tensor in case.inputs.items()}
    exact = dataclasses.replace(case, inputs=rounded).run("reference")
    applications = 6
    # Every application is of the same input here, so that the exact sum is a multiple.
    results = {}
    for share in (False, True):
        leaves = {n: t.to(DEVICE, torch.float32) for n, t in rounded.items()}
        names = [name for name in leaves if name in WEIGHTS]
        for name in names:
            leaves[name].requires_grad_()
        index = case.dispatch.expert_index.to(DEVICE)
        dispatch = Dispatch.from_indices(index, 3, backend="triton")
        moved = dataclasses.replace(case, dispatch=dispatch)
        with torch.autocast(DEVICE, torch.float16):
            shared = {n: SharedWeight(leaves[n], torch.float16) for n in names} if share else {}
            for _ in range(applications):
                out = call(moved, leaves | shared)
                weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=DEVICE)
                # One backward for all, so that autograd sums.
                results.setdefault(share, []).append((out.double() * weight.view_as(out)).sum())
        torch.stack(results[share]).sum().backward()
        results[share] = {name: leaves[name].grad for name in names}
    for name in results[True]:
        wanted = applications * exact[name]
        lost, plain = (
            (results[share][name].cpu().double() - wanted).norm() for share in (True, False)
        )
        assert results[True][name].dtype == torch.float32
        assert lost < plain, name


def test_the_weight_is_cast_once_and_kept_once(monkeypatch):
    case = make_case("mlp", 5, num_experts=3, top_k=2)
    kept = set()

    def keep(tensor):
        if tensor.dtype == torch.float16 and tensor.dim() == 3:
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    found = {}
    for share in (False, True):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            apply_many(case, 4, share=share, compute=torch.float16)
        found[share] = len(kept)
    assert found[True] == 2  # up and down
    assert found[False] > 2


@pytest.mark.parametrize("frozen", [("w_up",), ("w_down",), ("w_up", "w_down"), ("x", "gate")])
def test_what_needs_no_gradient_gets_none(frozen):
    case = make_case("mlp", 5, num_experts=3, top_k=2)
    _, expected = apply_many(case, 2, share=False, frozen=frozen)
    _, got = apply_many(case, 2, share=True, frozen=frozen)
    for name, gradient in expected.items():
        assert (got[name] is None) == (name in frozen), name
        assert gradient is None or torch.equal(got[name], gradient), name


def test_gradients_can_be_taken_twice_and_in_part():
    """Nothing of one backward pass is left for the next."""
    case = make_case("mlp", 5, num_experts=3, top_k=2, gate=False)
    x, w_up, w_down = (
        case.inputs[name].float().to(DEVICE).requires_grad_() for name in ("x", "w_up", "w_down")
    )
    dispatch = Dispatch.from_indices(case.dispatch.expert_index.to(DEVICE), 3, backend="triton")
    up, down = SharedWeight(w_up, torch.float32), SharedWeight(w_down, torch.float32)
    first = expert_mlp(x, up, down, dispatch, backend="triton")
    out = expert_mlp(first, up, down, dispatch, backend="triton").sum()
    (only,) = torch.autograd.grad(out, [x], retain_graph=True)
    all_of_them = torch.autograd.grad(out, [x, w_up, w_down], retain_graph=True)
    (part,) = torch.autograd.grad(first.sum(), [w_down], retain_graph=True)
    again = torch.autograd.grad(out, [x, w_up, w_down])
    assert torch.equal(only, again[0])
    for one, other in zip(all_of_them, again, strict=True):
        assert torch.equal(one, other)
    unshared = expert_mlp(x, w_up, w_down, dispatch, backend="triton")
    assert torch.equal(part, torch.autograd.grad(unshared.sum(), [w_down])[0])


def test_other_backends_take_the_parameter_behind_a_shared_weight():
    case = make_case("value", 5, num_experts=3, top_k=2, gate=False)
    weight = case.inputs["weight"].clone().requires_grad_()
    shared = SharedWeight(weight, torch.float64)
    slots = {"slots_per_input": case.slots_per_input, "slots_per_output": case.slots_per_output}
    for backend in ("reference", "grouped"):
        weight.grad = None
        x = case.inputs["x"]
        out = expert_linear(x, shared, case.dispatch, backend=backend, **slots)
        assert torch.equal(out, expert_linear(x, weight, case.dispatch, backend=backend, **slots))
        out.sum().backward()
        assert weight.grad is not None


def small_model():
    torch.manual_seed(0)
    config = moeut.architecture(
        "moeut", form="decoder_lm", vocabulary_size=11, d_model=8,
        attention={"num_heads": 1, "num_experts": 2},
        feed_forward={"num_experts": 3, "top_k": 2, "expert_size": 4},
    )  # fmt: skip
    return moeut.build(config).to(DEVICE).train()


def gradients(model, tokens):
    model.zero_grad()
    output = model(tokens)
    (output.logits.square().mean() + output.auxiliary_loss).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_stack_shares_the_weights_of_layers_applied_many_times(monkeypatch):
    monkeypatch.setenv("MOEUT_BACKEND", "triton")
    model = small_model()
    tokens = torch.arange(4, device=DEVICE).view(1, 4)
    shared = []
    original = SharedWeight.__init__

    def noting(self, parameter, dtype):
        shared.append(parameter)
        original(self, parameter, dtype)

    monkeypatch.setattr(SharedWeight, "__init__", noting)
    got = gradients(model, tokens)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(names[id(one)].split(".", 2)[2] for one in shared) == sorted(
        [f"{layer}.{name}" for layer in (0, 1) for name in
         ("attention.value", "attention.output", "feed_forward.up", "feed_forward.down")]
    )  # fmt: skip
    model.activation_checkpointing = True
    recomputed = gradients(model, tokens)
    monkeypatch.setattr(SharedWeights, "for_pass", classmethod(lambda cls, *_: cls()))
    model.activation_checkpointing = False
    expected = gradients(model, tokens)
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name
        assert torch.equal(recomputed[name], gradient), name


def test_nothing_is_shared_where_triton_does_not_serve(monkeypatch):
    monkeypatch.setenv("MOEUT_BACKEND", "grouped")
    weight = torch.nn.Parameter(torch.zeros(2, 3, 4))
    assert SharedWeights.for_pass([weight], torch.zeros(1))[weight] is weight


@pytest.mark.skipif(DEVICE == "cuda", reason="the process group is the CPU's")
def test_replicated_and_sharded_models_have_the_same_gradients(tmp_path, monkeypatch):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    monkeypatch.setenv("MOEUT_BACKEND", "triton")
    tokens = torch.arange(4).view(1, 4)
    expected = gradients(small_model(), tokens)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        replicated = DistributedDataParallel(small_model(), gradient_as_bucket_view=True)
        sharded = small_model()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        for name, gradient in gradients(replicated, tokens).items():
            assert torch.equal(gradient, expected[name.removeprefix("module.")]), name
        for name, gradient in gradients(sharded, tokens).items():
            assert torch.equal(gradient.full_tensor(), expected[name]), name
    finally:
        torch.distributed.destroy_process_group()
