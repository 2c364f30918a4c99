"""The dense layer: the C++ operation and oneDNN against float64, and who serves when."""

import pytest
import torch
from torch.nn import functional as F

from moeut.ops import Linear, fewest_rows, linear, native, products, relu_mlp

SIZES = [
    (1, 5, 3),
    (8, 1, 1),
    (11, 70, 18),
    (13, 41, 7),
    (130, 64, 33),
    (100, 300, 17),
    (37, 16, 129),
    (9, 128, 64),
]


def results(function, dtype, size, *, relu, bias=True, seed=0):
    """Return output and gradients of a layer (rows, in, out) at fixed random values."""
    rows, width_in, width_out = size
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, rows, width_in), (width_out, width_in), (width_out,)]
    drawn = [torch.randn(shape, generator=generator) for shape in (*shapes, (2, rows, width_out))]
    *inputs, gradient = [one.to(dtype) for one in drawn]
    inputs = [one.requires_grad_() for one in inputs[: 3 if bias else 2]]
    y = function(*inputs, relu=relu)
    return y.detach(), *torch.autograd.grad(y, inputs, gradient)


def plain(x, weight, bias=None, *, relu=False):
    y = F.linear(x, weight, bias)
    return F.relu(y) if relu else y


def worst(got, expected):
    """Return the largest difference of each tensor, in units of its largest element."""
    return max(
        float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
        for one, other in zip(got, expected, strict=True)
    )


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(native, "why_not", lambda: "a test does without")


needs_native = pytest.mark.skipif(
    native.why_not() is not None, reason=f"no C++ operations: {native.why_not()}"
)


@needs_native
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_native_layer_is_as_near_to_float64_as_the_plain_one(size, relu, bias):
    exact = results(plain, torch.float64, size, relu=relu, bias=bias)
    got = results(linear, torch.float32, size, relu=relu, bias=bias)
    floor = results(plain, torch.float32, size, relu=relu, bias=bias)
    assert worst(got, exact) <= 4 * worst(floor, exact) + 1e-7


@needs_native
def test_rows_do_not_see_one_another_nor_the_number_of_threads():
    # Bits of a row must not depend on what stands beside it: that is what makes padding, batch
    # composition and a resumed run harmless.
    x, weight = torch.randn(400, 200), torch.randn(70, 200)
    whole = linear(x, weight)
    assert torch.equal(linear(x[7:300], weight), whole[7:300])
    try:
        torch.set_num_threads(2)
        assert torch.equal(linear(x, weight), whole)
    finally:
        torch.set_num_threads(1)


@needs_native
def test_operands_of_any_strides_and_gradients_of_gradients():
    x = torch.randn(20, 3, 24).transpose(0, 1).requires_grad_()
    weight = torch.randn(24, 10).t().requires_grad_()

    def change(function):
        y = function(x, weight, relu=True)
        (d_x,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), weight)

    assert worst(change(linear), change(plain)) < 1e-5


def test_without_a_compiler_large_products_go_to_onednn(without_compiler, monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    size = (400, 64, 64)
    for bias in (True, False):
        exact = results(plain, torch.float64, size, relu=True, bias=bias)
        assert worst(results(linear, torch.float32, size, relu=True, bias=bias), exact) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_few_rows_are_the_plain_layer_to_the_bit(dtype):
    for size, kind in [((30, 8, 8), dtype), ((1, 8, 8), torch.float32)]:
        got, expected = (results(one, kind, size, relu=False) for one in (linear, plain))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@needs_native
def test_the_fewest_rows_are_multiplied_in_their_context_alone():
    x, layer = torch.randn(1, 200), Linear(200, 70)
    with fewest_rows():
        got = layer(x)
        assert torch.equal(layer(x.repeat(5, 1))[:1], got)  # in the order of few rows
    assert worst([got], [plain(x.double(), layer.weight.double(), layer.bias.double())]) < 1e-6
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_autocast_and_compiled_graphs_decide_for_themselves():
    x, layer = torch.randn(40, 16), Linear(16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("shapes", [[(40, 8), (8, 9)], [(40, 7), (8, 8)], [(40, 8), (5, 8), (4,)]])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(RuntimeError):
        linear(*(torch.ones(shape) for shape in shapes))


def test_transforms_of_functions_get_operations_that_they_can_transform():
    x, layer = torch.randn(3, 40, 16), Linear(16, 8)
    gradient = torch.func.vmap(torch.func.grad(lambda one: layer(one).square().sum()))(x)
    leaf = x.requires_grad_()
    (wanted,) = torch.autograd.grad(layer(leaf).square().sum(), leaf)
    assert (gradient - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("shapes", [((30, 5), (0, 5), (0,)), ((30, 0), (4, 0), (4,))])
def test_a_layer_without_weights_is_that_of_pytorch(shapes):
    inputs = [torch.ones(shape, requires_grad=True) for shape in shapes]
    y = linear(*inputs, relu=True)
    assert torch.equal(y, F.relu(F.linear(*inputs)))
    assert [g.shape for g in torch.autograd.grad(y.sum(), inputs)] == [*shapes]


SIZES_OF_TWO = [(7, 5, 9, 3), (30, 32, 700, 32), (700, 33, 40, 17), (1100, 20, 2049, 20)]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("rows", "width", "hidden", "out"), SIZES_OF_TWO)
def test_two_layers_in_one_operation_are_two_to_the_bit(rows, width, hidden, out, biased):
    torch.manual_seed(rows)
    shapes = [(rows, width), (hidden, width), (hidden,), (out, hidden), (out,)]
    x, up, up_bias, down, down_bias = (torch.randn(s, requires_grad=True) for s in shapes)
    if not biased:
        up_bias = down_bias = None
    used = [one for one in (x, up, up_bias, down, down_bias) if one is not None]
    together = relu_mlp(x, up, up_bias, down, down_bias)
    apart = linear(linear(x, up, up_bias, relu=True), down, down_bias)
    assert torch.equal(together, apart)
    with torch.no_grad():
        assert torch.equal(relu_mlp(x, up, up_bias, down, down_bias), apart)
    gradient = torch.randn_like(apart)
    found, wanted = (torch.autograd.grad(y, used, gradient) for y in (together, apart))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_two_layers_in_one_operation_can_be_differentiated_twice_and_in_part():
    torch.manual_seed(3)
    shapes = [(40, 6), (9, 6), (9,), (5, 9), (5,)]
    inputs = [torch.randn(s, requires_grad=True) for s in shapes]
    x, up, up_bias, down, down_bias = inputs
    plain = F.linear(F.relu(F.linear(x, up, up_bias)), down, down_bias)
    found = []
    for y in (relu_mlp(*inputs), plain):
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), inputs)
        found.append((*first, *second))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-3)
    for which in range(5):  # of one input alone, the others being constants
        alone = [one.detach().requires_grad_(n == which) for n, one in enumerate(inputs)]
        (gradient,) = torch.autograd.grad(relu_mlp(*alone).square().sum(), alone[which])
        assert torch.allclose(gradient, found[1][which], rtol=1e-4, atol=1e-3)
