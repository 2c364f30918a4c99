"""The router's kernel against plain PyTorch in float64; without a GPU, in Triton's interpreter."""

import os

import pytest
import torch

from moeut.blocks import routing
from moeut.blocks.routing import RoutingContext

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device, and no interpreter that works", allow_module_level=True)

from moeut.ops.triton import router as triton_router

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#        rows, tokens, heads, experts, top_k
SHAPES = {
    "feed-forward": (2, 9, 1, 41, 5),
    "heads": (3, 7, 4, 10, 2),
    "one expert": (2, 5, 1, 1, 1),
    "all experts": (1, 3, 2, 6, 6),
    "one token": (1, 1, 1, 155, 12),
    "wider than a warp's tile": (1, 2, 1, 565, 24),
    "no tokens": (2, 0, 1, 8, 2),
}


def padded(rows, tokens):
    real = torch.arange(tokens) < torch.arange(tokens, tokens - rows, -1).unsqueeze(1)
    if rows > 2:
        real[-1] = False  # a row of padding alone
    return real


def decide(logits, top_k, *, plain, balance=True, real=None, router="sigmoid", dropped=None):
    """Return choice, gates, means and the gradient of a weighted sum of the last two."""
    logits = logits.detach().clone().to(DEVICE).requires_grad_()
    real = None if real is None else real.to(DEVICE)
    context = RoutingContext.create(
        real, balance=balance, trace=False, dtype=torch.float64 if plain else torch.float32
    )
    if plain:
        candidates = logits if dropped is None else logits.masked_fill(dropped, float("-inf"))
        routes = routing.choose_experts(candidates, top_k, router=router, real=real)
        selection, gates = routes
        if dropped is not None:
            none = candidates.gather(-1, selection.clamp_min(0)) == float("-inf")
            selection = selection.masked_fill(none, -1)
            if router == "softmax":
                gates = logits.softmax(-1).gather(-1, selection.clamp_min(0))
        gates = gates.masked_fill(selection < 0, 0.0)
        means = routing.mean_probability(logits, context) if balance else None
    else:
        share = context.share if balance else None
        gates, means, _, selection = triton_router.route(
            logits, dropped, real, share, top_k, router == "softmax", balance
        )
    # Weights by expert, as the order of the chosen is free.
    weights = torch.linspace(-1, 2, logits.shape[-1], dtype=logits.dtype, device=DEVICE)
    loss = (gates * weights[selection.clamp_min(0)]).sum()
    if balance:
        loss = loss + (means * weights.square()).sum() * 3
    loss.backward()
    chosen, order = selection.sort(dim=-1)
    results = {"selection": chosen, "gates": gates.gather(-1, order), "gradient": logits.grad}
    results |= {"means": means} if balance else {}
    return {name: tensor.detach().cpu() for name, tensor in results.items()}


def make_logits(shape, seed=0):
    rows, tokens, heads, experts, _ = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, heads, experts, generator=generator) * 2


def assert_right(logits, top_k, *, got=None, **options):
    """Compare with float64, allowing three times what plain PyTorch loses in float32."""
    exact = decide(logits.double(), top_k, plain=True, **options)
    plain = decide(logits, top_k, plain=True, **options)
    got = decide(logits, top_k, plain=False, **options) if got is None else got
    assert got.keys() == exact.keys()
    assert torch.equal(got["selection"], exact["selection"])
    for name in got.keys() - {"selection"}:
        assert got[name].shape == exact[name].shape, name
        if got[name].numel():
            lost = (plain[name].double() - exact[name]).abs().max()
            error = (got[name].double() - exact[name]).abs().max()
            allowed = 3 * lost + 4 * torch.finfo(torch.float32).eps * exact[name].abs().max()
            assert error <= allowed, f"{name}: off by {error}, allowed {allowed}"


@pytest.mark.parametrize("router", ["sigmoid", "softmax"])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_choice_gates_means_and_gradient(shape, is_padded, router):
    logits, top_k = make_logits(shape), SHAPES[shape][-1]
    real = padded(*logits.shape[:2]) if is_padded else None
    balance = logits.numel() > 0  # the mean of nothing is no number
    assert_right(logits, top_k, real=real, router=router, balance=balance)


@pytest.mark.parametrize("router", ["sigmoid", "softmax"])
def test_without_balance(router):
    assert_right(make_logits("heads"), 2, balance=False, router=router)


@pytest.mark.parametrize("router", ["sigmoid", "softmax"])
def test_dropped_experts_are_not_chosen(router):
    logits = make_logits("heads")
    dropped = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    dropped[0, 0] = True
    dropped = dropped.to(DEVICE)
    got = decide(logits, 3, plain=False, dropped=dropped, router=router)
    assert (got["selection"][0, 0] == -1).all()
    assert (got["selection"] >= 0).any()
    assert_right(logits, 3, got=got, dropped=dropped, router=router)


def test_partial_sums_of_several_tiles(monkeypatch):
    """Programs that add up several tiles, the last of which is cut off."""
    monkeypatch.setattr(triton_router, "MIN_PROGRAMS", 2)
    monkeypatch.setattr(triton_router, "TILE_LOGITS", 32)
    logits = torch.randn(2, 21, 1, 10, generator=torch.Generator().manual_seed(0))
    assert_right(logits, 3, real=padded(2, 21))


def test_of_equal_logits_the_first_and_nan_before_all():
    logits = torch.zeros(1, 2, 1, 7)
    logits[0, 1, 0, 4] = float("nan")
    gates, _, _, selection = triton_router.route(
        logits.to(DEVICE), None, None, None, 3, False, False
    )
    assert selection[0, :, 0].tolist() == [[0, 1, 2], [4, 0, 1]]
    assert gates[0, 1, 0].isnan().tolist() == [True, False, False]


def test_uninitialised_memory_does_not_leak_and_bits_repeat():
    logits, real = make_logits("heads"), padded(3, 7)
    expected = decide(logits, 2, plain=False, real=real)
    torch.use_deterministic_algorithms(True)  # fills empty tensors with NaN
    try:
        got = decide(logits, 2, plain=False, real=real)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(got[name], expected[name]) for name in got)


MUTATIONS = ("two choices swapped", "real ignored", "shares ignored", "gradient of one choice")


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_comparison_notices(mutation, monkeypatch):
    logits, real = make_logits("heads"), padded(3, 7)
    kernel, options = triton_router.route_gradient_kernel, {"real": real}
    mutated = logits
    if mutation == "two choices swapped":
        mutated = logits[..., [1, 0, *range(2, 10)]]
    elif mutation == "real ignored":
        options = {"real": torch.ones_like(real)}
    else:

        class Mutated:
            def __getitem__(self, grid):
                constant = "TOP_K" if "choice" in mutation else "HAS_SHARE"
                return lambda *a, **k: kernel[grid](
                    *a, **(k | {constant: int(constant == "TOP_K")})
                )

        monkeypatch.setattr(triton_router, "route_gradient_kernel", Mutated())
    got = decide(mutated, 2, plain=False, **options)
    with pytest.raises(AssertionError):
        assert_right(logits, 2, got=got, real=real)


def test_registration_passes_opcheck():
    logits = make_logits("heads").to(DEVICE).requires_grad_()
    arguments = (logits, None, padded(3, 7).to(DEVICE), None, 2, False, True)
    results = torch.library.opcheck(triton_router.route, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_routing_uses_the_kernel_and_compiles_without_break(monkeypatch):
    calls = []
    original = routing.choose_experts
    monkeypatch.setattr(
        routing, "choose_experts", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    context = RoutingContext.create(None, balance=True, trace=False, dtype=torch.float32)
    logits = make_logits("heads").to(DEVICE)

    def decide(logits):
        routes, record = routing.route(logits, 2, context)
        return routes.gates.sum() + record.probability.square().sum(), routes.selection

    monkeypatch.setenv("MOEUT_BACKEND", "triton")
    expected, selection = decide(logits)
    assert not calls
    torch._dynamo.reset()
    got, again = torch.compile(decide, fullgraph=True, backend="aot_eager")(logits)
    assert torch.equal(selection, again)
    torch.testing.assert_close(got, expected)
    monkeypatch.setenv("MOEUT_BACKEND", "grouped")
    plain, _ = decide(logits)
    assert calls
    torch.testing.assert_close(plain, expected)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_a_cuda_graph_captures_the_router_and_nothing_waits():
    logits = torch.randn(8, 128, 1, 387, device="cuda", requires_grad=True)

    def step():
        gates, means, _, _ = triton_router.route(logits, None, None, None, 16, False, True)
        return torch.autograd.grad(gates.sum() + means.square().sum(), logits)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    graph.replay()
    assert torch.equal(got, expected)
