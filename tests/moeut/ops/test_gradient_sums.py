"""Gradients of experts that several applications share, which nodes add up where they lie."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from moeut.ops import Dispatch, expert_linear, expert_mlp, native

pytestmark = pytest.mark.skipif(
    native.why_not() is not None, reason=f"no C++ operations: {native.why_not()}"
)
USES, EXPERTS = 3, 4


class Shared:
    """Experts that every use applies to other rows; of an expert none, some 40, 280 or 480."""

    def __init__(self, width=24, hidden=20):
        torch.manual_seed(0)
        shares = torch.tensor([0.0, 0.05, 0.35, 0.6])
        self.up = (torch.randn(EXPERTS, width, hidden) / 5).requires_grad_()
        self.down = (torch.randn(EXPERTS, hidden, width) / 5).requires_grad_()
        self.weights = [self.up, self.down]
        self.rows = torch.randn(USES, 400, width)
        self.gates = torch.rand(USES, 400, 2)
        index = torch.multinomial(shares, USES * 800, replacement=True).view(USES, 400, 2)
        self.dispatches = [Dispatch.from_indices(one, EXPERTS) for one in index]

    def mapped(self, use, up=None):
        return expert_mlp(
            self.rows[use],
            self.up if up is None else up,
            self.down,
            self.dispatches[use],
            gate=self.gates[use],
        )

    def loss(self, use):
        return self.mapped(use).square().sum()

    def total(self):
        return sum(self.loss(use) for use in range(USES))

    def one_by_one(self):
        """Return the gradients of each use by itself, added in the order of a backward pass."""
        found = [torch.autograd.grad(self.loss(use), self.weights) for use in range(USES)]
        return [sum(reversed(each[:-1]), each[-1]) for each in zip(*found, strict=True)]


@pytest.fixture
def shared():
    return Shared()


def assert_equal(found, wanted):
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


# A gradient that is turned as a whole, one too large for that, and one that is not turned.
@pytest.mark.parametrize(("width", "hidden"), [(24, 20), (200, 96), (20, 24)])
def test_the_sum_has_the_bits_of_gradients_that_were_added(width, hidden):
    shared = Shared(width, hidden)
    assert_equal(torch.autograd.grad(shared.total(), shared.weights), shared.one_by_one())
    single = shared.one_by_one()
    shared.total().backward()
    shared.total().backward()
    assert_equal([weight.grad for weight in shared.weights], [2 * one for one in single])


def test_one_node_hands_its_gradient_on_and_the_others_add_to_it(shared):
    outputs, handed = [shared.mapped(use) for use in range(USES)], []
    for y in outputs:
        y.grad_fn.register_hook(lambda given, _: handed.append([one is None for one in given[1:3]]))
    sum(y.sum() for y in outputs).backward()
    assert handed == [[False, False], [True, True], [True, True]]


def test_a_graph_that_is_kept_gives_the_same_again(shared):
    loss = shared.total()
    first = torch.autograd.grad(loss, shared.weights, retain_graph=True)
    kept = [one.clone() for one in first]
    assert_equal(torch.autograd.grad(loss, shared.weights), kept)
    assert_equal(first, kept)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_applications_have_the_same_sum(shared, reentrant):
    wanted = shared.one_by_one()
    here = torch.ones((), requires_grad=True)
    options = {"use_reentrant": reentrant, "preserve_rng_state": False}
    losses = [
        checkpoint(lambda one, use=use: one * shared.loss(use), here, **options)
        for use in range(USES)
    ]
    sum(losses).backward()
    assert_equal([weight.grad for weight in shared.weights], wanted)


@pytest.mark.parametrize("first", [True, False])
def test_other_uses_of_the_weight_count_once(shared, first):
    """Whether their gradient comes before those of the experts or between them."""
    wanted = [one + weight for one, weight in zip(shared.one_by_one(), shared.weights, strict=True)]
    parts = [shared.loss(use) for use in range(USES)]

    def other():
        return sum(weight.square().sum() / 2 for weight in shared.weights)

    loss = other() + sum(parts) if first else sum(parts) + other()
    for one, expected in zip(torch.autograd.grad(loss, shared.weights), wanted, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-4)


def test_products_of_views_are_summed_apart(shared):
    """Each use reads the weight through a node of its own."""
    outputs = [shared.mapped(use, up=shared.up * 1.0) for use in range(USES)]
    found = torch.autograd.grad(sum(y.square().sum() for y in outputs), shared.weights)
    assert_equal(found, shared.one_by_one())


def test_a_hook_of_the_weight_sees_the_whole_sum_once(shared):
    seen, wanted = [], shared.one_by_one()
    shared.up.register_hook(seen.append)
    shared.total().backward()
    assert_equal(seen, wanted[:1])


def test_linear_experts_are_summed_too(shared):
    def mapped(use):
        given = {"slots_per_input": 2, "gate": shared.gates[use]}
        return expert_linear(shared.rows[use], shared.up, shared.dispatches[use], **given)

    single = [torch.autograd.grad(mapped(use).square().sum(), shared.up)[0] for use in range(USES)]
    (found,) = torch.autograd.grad(
        sum(mapped(use).square().sum() for use in range(USES)), shared.up
    )
    assert torch.equal(found, single[2] + single[1] + single[0])
