"""The Triton kernels against the reference in float64; without a GPU, in Triton's interpreter."""

import dataclasses
import os

import pytest
import torch
from expert_cases import ROUTINGS, make_case

from moeut.ops import Dispatch, expert_linear, expert_mlp

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device, and no interpreter that works", allow_module_level=True)

from moeut.ops.triton import dispatch as triton_dispatch
from moeut.ops.triton import launch as triton_launch
from moeut.ops.triton import operators
from moeut.ops.triton.launch import Routing, RowProduct, Rows, weight_gradient

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERATIONS = ("mlp", "up", "down", "value", "output")
# The interpreter multiplies bfloat16 wrongly.
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if DEVICE == "cuda" else ())


def run(case, dtype=torch.float32, backend="triton", **changes):
    """Return output and gradients by name, on the device of the kernels."""
    index = changes.pop("index", case.dispatch.expert_index).to(DEVICE)
    dispatch = Dispatch.from_indices(index, case.dispatch.num_experts, backend=backend)
    inputs = {name: tensor.to(DEVICE) for name, tensor in case.inputs.items()}
    moved = dataclasses.replace(case, dispatch=dispatch, inputs=inputs, **changes)
    return {name: value.cpu() for name, value in moved.run(backend, dtype).items()}


def assert_close(got, case, dtype=torch.float32, *, times=3, only=None):
    """Compare with float64; the reference in the same precision shows what has to be lost."""
    rounded = {name: tensor.to(dtype).double() for name, tensor in case.inputs.items()}
    exact = dataclasses.replace(case, inputs=rounded).run("reference")
    plain = case.run("reference", dtype)
    assert got.keys() == exact.keys()
    for name in only or exact:
        tensor = exact[name]
        assert got[name].dtype == dtype, name
        assert got[name].shape == tensor.shape, name
        if not tensor.numel():
            continue
        lost = (plain[name].double() - tensor).abs().max()
        error = (got[name].double() - tensor).abs().max()
        allowed = times * lost + torch.finfo(dtype).eps * tensor.abs().max()
        assert error <= allowed, f"{name}: off by {error}, allowed {allowed}"


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_output_and_gradients_equal_the_reference(operation, routing):
    case = make_case(operation, 17, routing)
    assert_close(run(case), case)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_without_gate(operation):
    case = make_case(operation, 13, "dropped", gate=False)
    assert_close(run(case), case)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_low_precision(operation, dtype):
    case = make_case(operation, 41, "dropped", width=34, inner=21)
    assert_close(run(case, dtype), case, dtype)


@pytest.mark.parametrize("tokens", [0, 1, 100])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_sizes(operation, tokens):
    case = make_case(operation, tokens, "dropped")
    assert_close(run(case), case)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_widths_of_several_blocks_and_no_multiple_of_them(operation):
    """The published widths 412 and 82 are neither multiples of a block nor of 16 bytes."""
    case = make_case(operation, 7, width=150, inner=82, num_experts=3, top_k=2)
    assert_close(run(case), case)


WAYS = (
    {"descriptor": True},
    {"persistent": True},
    {"span": 2, "depth": 64},  # the last span is shorter, and all widths fit in a step
    {"span": 2, "depth": 16},
    {"rows": 16},  # half a tile
    {"span": 16, "descriptor": True, "persistent": True},
)


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("operation", ["mlp", "value", "output"])
def test_other_ways_to_walk_and_load_give_the_same_bits(operation, how, monkeypatch):
    """Descriptors, persistent programs and spans, at widths that end within a block.

    The interpreter multiplies with NumPy, whose order of sums follows the layout of the blocks in
    memory on some processors, so there blocks by descriptors may differ by a rounding.
    """
    if DEVICE == "cuda" and "descriptor" in how and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the GPU has no tensor-memory accelerator")
    case = make_case(operation, 9, "dropped", width=40, inner=20, num_experts=3, top_k=2)
    monkeypatch.setattr(triton_dispatch, "choose_tile_rows", lambda *_: 32)
    monkeypatch.setattr(operators, "choose_tile_rows", lambda *_: 32)
    default, chosen, results = triton_launch.TUNER.choose, [], []
    same_sums = {name: how[name] for name in how if name == "depth"}
    for changes in (same_sums, how):

        def choose(shape, device, launch, changes=changes):
            blocks = default(shape, device, launch)
            if shape.kernel == "row_product":
                blocks = dataclasses.replace(blocks, columns=16, **changes)
            chosen.append(blocks)
            return blocks

        monkeypatch.setattr(triton_launch.TUNER, "choose", choose)
        results.append(run(case))
    assert any(getattr(blocks, name) for blocks in chosen for name in how)
    expected, got = results
    is_rounded = DEVICE != "cuda" and "descriptor" in how
    for name, tensor in expected.items():
        if not is_rounded:
            assert torch.equal(got[name], tensor), name
        error = float((got[name] - tensor).abs().max())
        assert error <= 1e-5 * float(tensor.abs().max()), name


@pytest.mark.parametrize("operation", ["mlp", "down", "output"])
def test_sums_over_slots_in_slabs_of_columns(operation, monkeypatch):
    monkeypatch.setattr(triton_launch, "MAX_SCRATCH_BYTES", 1)
    case = make_case(operation, 9, "dropped", width=150)
    assert_close(run(case), case)


@pytest.mark.parametrize("operation", ["mlp", "value"])
def test_weight_gradients_of_one_part(operation, monkeypatch):
    monkeypatch.setattr(triton_launch, "MIN_WEIGHT_PROGRAMS", 1)
    case = make_case(operation, 40, "empty experts")
    assert_close(run(case), case)


@pytest.mark.parametrize("tile_rows", [32, 64, 128, 256])
def test_tiles_of_every_size(tile_rows, monkeypatch):
    monkeypatch.setattr(triton_dispatch, "choose_tile_rows", lambda *_: tile_rows)
    case = make_case("mlp", 50, "dropped", num_experts=3, top_k=2)
    assert_close(run(case), case)


def test_dispatch_of_another_backend_serves():
    case = make_case("mlp", 17, "dropped")
    got = dataclasses.replace(case, dispatch=Dispatch.from_indices(case.dispatch.expert_index, 6))
    if DEVICE == "cpu":
        assert got.dispatch.tiles is None
        assert_close(got.run("triton", torch.float32), case)


# --- comparisons can fail ---------------------------------------------------------------

MUTATIONS = ("swap two experts", "drop the gate", "drop one slot", "shift the gates")


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("operation", ["mlp", "value", "output"])
def test_comparison_notices(operation, mutation):
    case = make_case(operation, 17)
    index, inputs = case.dispatch.expert_index.clone(), dict(case.inputs)
    if mutation == "swap two experts":
        index = torch.where(index == 0, 1, torch.where(index == 1, 0, index))
    elif mutation == "drop one slot":
        index[17] = -1
    elif mutation == "drop the gate":
        inputs["gate"] = torch.ones_like(inputs["gate"])
    else:
        inputs["gate"] = inputs["gate"].roll(1, 0)
    got = run(dataclasses.replace(case, inputs=inputs), index=index)
    for name in got:
        if "the gate" in mutation and name == "gate":
            continue  # the output is linear in the gate, so its gradient does not depend on it
        with pytest.raises(AssertionError, match=f"{name}: off by"):
            assert_close(got, case, only=(name,))


def one_more_slot(rows):
    return Rows(rows.values, rows.slots_per_row + 1)


@pytest.mark.parametrize("mutation", ["other rows", "no gate", "other tiles", "no epilogue"])
def test_comparison_notices_errors_of_the_kernels(mutation, monkeypatch):
    case = make_case("mlp", 17)
    launch = RowProduct._launch

    def mutated(self, *arguments):
        if mutation == "other rows":
            self = dataclasses.replace(self, inputs=one_more_slot(self.inputs))
        elif mutation == "no gate":
            self = dataclasses.replace(self, gate=None)
        elif mutation == "other tiles":
            tiles = self.routing.tiles.clone()
            tiles[1, 0] += 1
            self = dataclasses.replace(self, routing=self.routing._replace(tiles=tiles))
        elif self.epilogue == "relu":
            self = dataclasses.replace(self, epilogue="linear")
        launch(self, *arguments)

    monkeypatch.setattr(RowProduct, "_launch", mutated)
    with pytest.raises(AssertionError, match="off by"):
        assert_close(run(case), case)


# --- memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_uninitialised_memory_does_not_leak(operation):
    case = make_case(operation, 17, "dropped")
    expected = run(case)
    torch.use_deterministic_algorithms(True)  # fills empty tensors with NaN
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        got = run(case)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_slot_without_an_expert_is_not_looked_at(operation):
    """Not even NaN in dropped rows and gates reaches the output or a gradient."""
    case = make_case(operation, 17, "dropped")
    slots_per_input = 3 if operation == "mlp" else case.slots_per_input
    index = case.dispatch.expert_index.clone()
    index[: slots_per_input * 2] = -1  # inputs that no slot reads
    expected = run(case, index=index)
    inputs = {name: tensor.clone() for name, tensor in case.inputs.items()}
    inputs["x"][:2] = float("nan")
    inputs["gate"].view(-1)[index < 0] = float("nan")
    got = run(dataclasses.replace(case, inputs=inputs), index=index)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
    assert not got["gate"].view(-1)[index < 0].any()


def test_two_runs_give_the_same_bits():
    case = make_case("mlp", 17, "dropped")
    first, second = run(case), run(case)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rows_beyond_two_to_the_31_elements():
    """Memory that is never touched costs nothing, so 4 GiB of it are only addresses."""
    width, last = 16, 2**31 // 16 + 5
    try:
        big = torch.empty(last + 1, width, dtype=torch.float16, device=DEVICE)
    except RuntimeError:
        pytest.skip("not enough address space")
    order = torch.arange(last - 2, last + 1, device=DEVICE)
    big[order] = torch.arange(3 * width, device=DEVICE).view(3, width).half() / 8
    offsets = torch.tensor([0, 2, 3], device=DEVICE)
    tiles = torch.tensor([[0, 1], [0, 2]], device=DEVICE)
    routing = Routing(order, offsets, tiles, 16)
    weight = torch.stack((torch.eye(width), 2 * torch.eye(width))).half().to(DEVICE)
    product = RowProduct(routing=routing, inputs=Rows(big, 1), weight=weight).compute().output
    scale = torch.tensor([[1], [1], [2]], device=DEVICE)
    assert torch.equal(product, big[order] * scale)
    d_weight = weight_gradient(routing, Rows(big, 1), Rows(product))
    expected = big[order[2:]].float().T @ product[2:].float()
    torch.testing.assert_close(d_weight[1].float(), expected, rtol=1e-3, atol=0)


def kept_elements():
    """Return the largest number of elements among the tensors kept for backward."""
    case = make_case("mlp", 17, top_k=3, width=10, inner=7)
    x, w_up, w_down = (
        case.inputs[n].float().to(DEVICE).requires_grad_() for n in ("x", "w_up", "w_down")
    )
    sizes = []
    dispatch = Dispatch.from_indices(case.dispatch.expert_index.to(DEVICE), 6, backend="triton")

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = expert_mlp(x, w_up, w_down, dispatch, backend="triton")
    out.square().sum().backward()
    return sizes


def test_no_rows_of_model_width_are_kept_for_backward():
    slots, width, inner, weight = 51, 10, 7, 6 * 10 * 7
    sizes = kept_elements()
    assert slots * inner in sizes
    assert slots * width not in sizes
    assert max(sizes) == weight


# --- registration -----------------------------------------------------------------------


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_theirs():
    case = make_case("mlp", 17)
    leaves = {n: t.float().to(DEVICE).requires_grad_() for n, t in case.inputs.items()}
    dispatch = Dispatch.from_indices(case.dispatch.expert_index.to(DEVICE), 6, backend="triton")
    case = dataclasses.replace(case, dispatch=dispatch)
    with torch.autocast(DEVICE, torch.float16):
        out = case.call("triton", leaves)
    assert out.dtype == torch.float16
    out.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves.values())


def test_float64_is_refused_by_name():
    case = make_case("mlp", 3)
    with pytest.raises(ValueError, match=r"backend='triton': cannot serve.*not torch.float64"):
        case.run("triton")


@pytest.mark.parametrize("operation", ["mlp", "value"])
def test_registration_passes_opcheck(operation):
    case = make_case(operation, 5, "dropped", num_experts=3, top_k=2)
    inputs = {name: t.float().to(DEVICE).requires_grad_() for name, t in case.inputs.items()}
    gate = inputs["gate"].detach().reshape(-1).requires_grad_()
    index = case.dispatch.expert_index.to(DEVICE)
    order, _, offsets, tiles = triton_dispatch.dispatch(index, 3, 16)
    routing = (order, offsets, tiles, 16)
    if operation == "mlp":
        tensors = (inputs["x"], inputs["w_up"], inputs["w_down"])
        operator, arguments = operators._mlp, (*tensors, *routing, gate, True)
    else:
        tensors = (inputs["x"], inputs["weight"])
        slots = (case.slots_per_input, case.slots_per_output)
        operator = operators._linear
        arguments = (*tensors, *routing, gate, *slots)
    results = torch.library.opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_compiled_graph_has_no_break(monkeypatch):
    monkeypatch.setenv("MOEUT_BACKEND", "triton")
    generator = torch.Generator().manual_seed(0)
    router = torch.randn(8, 6, generator=generator).to(DEVICE)

    def layer(x, w_up, w_down):
        gate, index = (x @ router).sigmoid().topk(2)
        dispatch = Dispatch.from_indices(index, 6)
        value = expert_linear(x, w_up, dispatch, slots_per_input=2, slots_per_output=2, gate=gate)
        return expert_mlp(x, w_up, w_down, dispatch, gate=gate).sum() + value.square().sum()

    sizes = ((11, 8), (6, 8, 5), (6, 5, 8))
    leaves = [torch.randn(size, generator=generator).to(DEVICE).requires_grad_() for size in sizes]
    expected = torch.autograd.grad(layer(*leaves), leaves)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*leaves), leaves)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# --- what only a GPU shows ---------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_a_cuda_graph_captures_the_whole_layer_and_nothing_waits():
    case = make_case("mlp", 600, "dropped", width=82, inner=34)
    inputs = {n: t.to("cuda", torch.bfloat16).requires_grad_() for n, t in case.inputs.items()}
    index = case.dispatch.expert_index.cuda()

    def step():
        dispatch = Dispatch.from_indices(index, 6, backend="triton")
        out = dataclasses.replace(case, dispatch=dispatch).call("triton", inputs)
        return torch.autograd.grad(out.float().square().sum(), list(inputs.values()))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    graph.replay()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
