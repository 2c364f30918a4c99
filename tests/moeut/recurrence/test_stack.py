import pytest
import torch

from moeut.blocks.attention import AttentionContext
from moeut.blocks.routing import RoutingContext
from moeut.recurrence.controller import Controller, Run, Verdict
from moeut.recurrence.inputs import Inputs, Memory
from moeut.recurrence.stack import DepthStack


def _stack(make_config, *, causal=True, cross_attention=False, **options):
    torch.manual_seed(0)
    config = make_config(**{"position": "none", **options}).stacks["decoder"]
    stack = DepthStack(config, 16, causal=causal, cross_attention=cross_attention).double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return stack


def _x(seed=1, length=6):
    return torch.randn(3, length, 16, generator=torch.Generator().manual_seed(seed)).double()


def _gradients(module, loss):
    return dict(
        zip(
            [name for name, _ in module.named_parameters()],
            torch.autograd.grad(loss, list(module.parameters())),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("schedule", "repeats", "wanted"),
    [
        ("cycle", None, [0, 1, 0, 1]),
        ("cycle", 3, [0, 1, 0, 1, 0, 1]),
        ("sequence", None, [0, 0, 1, 1]),
        ("sequence", 3, [0, 0, 0, 1, 1, 1]),
        ("cycle", 1, [0, 1]),
    ],
)
def test_schedule(make_config, schedule, repeats, wanted):
    assert _stack(make_config, order=schedule).schedule(repeats) == wanted


def test_a_norm_where_each_repeat_ends_is_passed_on(make_config):
    """And stands alone: no norm follows the last of them."""
    stack = _stack(make_config, repeat_norm=True, prelude=1, coda=1, norm_kind="rms").eval()
    assert stack.final_norm is None
    context = AttentionContext(is_causal=True)
    prelude, first, second, coda = stack.layers
    state = prelude(_x(), context).x
    for _ in range(2):
        state = stack.repeat_norm(second(first(state, context).x, context).x)
    out = stack(_x(), Inputs(read_repeats=[]))
    assert (out.states - coda(state, context).x).abs().max() < 1e-12
    assert (out.repeats[-1] - state).abs().max() < 1e-12
    with pytest.raises(ValueError, match=r"order='sequence': repeat_norm"):
        _stack(make_config, repeat_norm=True, order="sequence")


@pytest.mark.parametrize("schedule", ["cycle", "sequence"])
@pytest.mark.parametrize("repeats", [None, 1, 3])
def test_repeats_are_an_unrolled_loop_with_its_gradients(make_config, schedule, repeats):
    stack = _stack(make_config, order=schedule).eval()
    x = _x()
    context = AttentionContext(is_causal=True)

    def unrolled(order):
        state = x
        for index in order:
            state = stack.layers[index](state, context).x
        return stack.final_norm(state)

    wanted = unrolled(stack.schedule(repeats))
    states = stack(x, Inputs(num_repeats=repeats)).states
    assert (states - wanted).abs().max() < 1e-13
    weight = torch.randn_like(wanted)
    ours = _gradients(stack, (states * weight).sum())
    theirs = _gradients(stack, (wanted * weight).sum())
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=0, atol=1e-10), name
        assert gradient.abs().sum() > 0, name
    assert (unrolled([1, 0, 1, 0]) - wanted).abs().max() > 0.01
    if repeats != 1:  # AABB is not ABAB
        other = sorted(stack.schedule(repeats)) if schedule == "cycle" else [0, 1] * 2
        assert (unrolled(other) - wanted).abs().max() > 0.01


def test_an_unshared_stack_is_a_plain_one_of_fixed_depth(make_config):
    stack = _stack(make_config, group=4, repeats=1).eval()
    state = _x()
    for layer in stack.layers:
        state = layer(state, AttentionContext(is_causal=True)).x
    assert torch.equal(stack(_x()).states, stack.final_norm(state))
    with pytest.raises(ValueError, match=r"num_repeats=2: this stack shares no layers"):
        stack(_x(), Inputs(num_repeats=2))


@pytest.mark.parametrize("repeats", [0, -1, 1.5, True, "2"])
def test_repeats_are_whole_numbers(make_config, repeats):
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        _stack(make_config).schedule(repeats)


@pytest.mark.parametrize("schedule", ["cycle", "sequence"])
def test_balance_loss_joins_the_repeats_of_each_layer(make_config, schedule):
    stack = _stack(make_config, order=schedule).train()
    out = stack(_x(), Inputs(trace=True))
    wanted = 0.0
    for name, weight in (
        ("attention.value", 0.1),
        ("attention.output", 0.1),
        ("feed_forward", 0.2),
    ):
        for layer in range(2):
            logits = [
                record.routers[name].logits
                for index, record in zip(stack.schedule(), out.trace, strict=True)
                if index == layer
            ]
            p = torch.stack(logits, 1).softmax(-1).mean((1, 2))  # (B, H, E)
            wanted += weight * (p * p.log()).sum(-1).mean()
    assert out.auxiliary_loss.item() == pytest.approx(wanted.item(), abs=1e-13)
    assert stack(_x()).auxiliary_loss.item() == out.auxiliary_loss.item()
    assert stack.eval()(_x()).auxiliary_loss.item() == 0.0


def test_cross_attention_weighs_value_routers_by_the_source(make_config):
    stack = _stack(make_config, cross_attention=True).train()
    memory = _x(seed=2, length=4)
    real = torch.arange(4) < torch.tensor([4, 2, 1])[:, None]
    out = stack(_x(), Inputs(memory=Memory(memory, real), trace=True))
    rows = [
        out.trace[layer].routers["cross_attention.value"].logits.softmax(-1)[b, : real[b].sum()]
        for layer in range(2)
        for b in range(3)
    ]
    means = [row.mean(0) for row in rows]
    wanted = 0.1 * sum((p * p.log()).sum(-1).mean() for p in means) / 3
    # Without the cross-attention's value router the loss is smaller by exactly its share.
    del stack._balance_weights["cross_attention.value"]
    without = stack(_x(), Inputs(memory=Memory(memory, real))).auxiliary_loss
    assert (out.auxiliary_loss - without).item() == pytest.approx(wanted.item(), abs=1e-13)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", ["rotary", "relative"])
def test_padding_changes_neither_states_nor_loss_nor_gradients(make_config, causal, position):
    """Rows alone, and the same rows padded into one batch beside a row of padding."""
    stack = _stack(make_config, causal=causal, position=position).train()
    alone = [_x(seed=seed, length=n)[:1] for seed, n in ((1, 6), (2, 3))]
    weights = [_x(seed=9, length=x.shape[1])[:1] for x in alone]
    outs = [stack(x) for x in alone]
    loss = sum(
        (out.states * weight).sum() + out.auxiliary_loss / 2
        for out, weight in zip(outs, weights, strict=True)
    )
    wanted = _gradients(stack, loss)

    padded = 10 * _x(seed=5, length=8)
    real = torch.arange(8) < torch.tensor([6, 3, 0])[:, None]
    for row, x in enumerate(alone):
        padded[row, : x.shape[1]] = x[0]
    out = stack(padded, Inputs(real=real))
    total = out.auxiliary_loss
    for row, weight in enumerate(weights):
        total = total + (out.states[row, : weight.shape[1]] * weight[0]).sum()
    assert total.item() == pytest.approx(loss.item(), abs=1e-11)
    assert sum(o.auxiliary_loss for o in outs).item() / 2 == pytest.approx(
        out.auxiliary_loss.item(), abs=1e-13
    )
    gradients = _gradients(stack, total)
    for name, gradient in wanted.items():
        assert torch.allclose(gradients[name], gradient, rtol=0, atol=1e-10), name

    unmasked = stack(padded)
    assert abs(unmasked.auxiliary_loss - out.auxiliary_loss) > 1e-4
    if not causal:
        assert (unmasked.states[1, :3] - out.states[1, :3]).abs().max() > 1e-3


DROPPING = {"attention": "dropping_experts", "feed_forward": "dropping_experts"}


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, DROPPING])
def test_activation_checkpointing_changes_no_bit(make_config, options):
    stack = _stack(make_config, **options).train()
    started = []
    stack.layers[0].register_forward_pre_hook(lambda *_: started.append(1))
    results = []
    for recompute in (False, True):
        torch.manual_seed(3)
        started.clear()
        for _ in range(2):  # a second step shows what a first one may have left behind
            out = stack(_x(), Inputs(activation_checkpointing=recompute))
            loss = out.states.square().sum() + out.auxiliary_loss
            gradients = _gradients(stack, loss)
        # Two passes of two repeats; recomputing runs each of them once more.
        assert len(started) == (8 if recompute else 4)
        results.append((out, gradients))
    (plain, wanted), (recomputed, gradients) = results
    assert all(gradient.isfinite().all() for gradient in wanted.values())
    assert torch.equal(plain.states, recomputed.states)
    assert torch.equal(plain.auxiliary_loss, recomputed.auxiliary_loss)
    for name, gradient in wanted.items():
        assert torch.equal(gradients[name], gradient), name


def test_modules_hold_no_state_after_a_pass(make_config):
    stack = _stack(make_config).train()
    before = {name: set(vars(module)) for name, module in stack.named_modules()}
    stack(_x(), Inputs(trace=True)).auxiliary_loss.backward()
    assert before == {name: set(vars(module)) for name, module in stack.named_modules()}
    assert not list(stack.buffers())
    for module in stack.modules():
        held = [v for v in vars(module).values() if isinstance(v, torch.Tensor)]
        assert not held


class _Toy(Controller):
    """Adds the input again at each application, reads keys from it, and stops after ``limit``."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.weight = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def begin(self, about):
        return _ToyRun(self, about)


class _ToyRun(Run):
    def __init__(self, controller, about):
        self.controller, self.about, self.log = controller, about, []

    def before(self, place, step):
        if place.application == self.controller.limit and self.about.may_end:
            return None
        self.log.append(place.application)
        first = self.about.embedded
        return step._replace(x=step.x + self.controller.weight * first, key_value_source=first)

    def after(self, place, step, x):
        return 0.9 * x

    def finish(self, x):
        loss = self.controller.weight * len(self.log)
        return Verdict(x + 1.0, loss, {"applications": torch.tensor(len(self.log))})


def test_a_controller_decides_what_is_read_and_when_to_stop(make_config):
    stack = _stack(make_config).train()
    stack.controllers["toy"] = _Toy(limit=3)
    weight = stack.controllers["toy"].weight
    x = state = _x()
    for index in (0, 1, 0):
        state = stack.layers[index](
            state + weight * x, AttentionContext(is_causal=True), key_value_source=x
        ).x
        state = 0.9 * state
    out = stack(x, Inputs(trace=True))
    assert (out.states - stack.final_norm(state + 1.0)).abs().max() < 1e-12
    assert len(out.trace) == 3
    assert out.decisions["toy.applications"] == 3
    balance = stack(x).auxiliary_loss
    del stack.controllers["toy"]
    # Its own loss is added to the balance losses, of the applications that it let happen.
    assert (balance - 3 * weight).item() == pytest.approx(_balance_of(stack, out.trace), abs=1e-12)


def _balance_of(stack, trace):
    total = 0.0
    for name, weight in stack._balance_weights.items():
        for layer in range(2):
            logits = [
                record.routers[name].logits
                for index, record in zip(stack.schedule(), trace, strict=False)
                if index == layer and name in record.routers
            ]
            if logits:
                p = torch.stack(logits, 1).softmax(-1).mean((1, 2))
                total += weight * (p * p.log()).sum(-1).mean().item()
    return total


def test_a_controller_that_cannot_decode_with_a_cache_says_why(make_config):
    stack = _stack(make_config)
    stack.controllers["toy"] = _Toy(limit=3)
    stack.controllers["toy"].refuses_cache = "it looks at later tokens"
    with pytest.raises(ValueError, match="toy: cannot decode with a cache: it looks at later"):
        stack.new_cache()


def test_trace_holds_every_application(make_config):
    stack = _stack(make_config).eval()
    out = stack(_x(), Inputs(trace=True, num_repeats=3))
    assert len(out.trace) == 6
    assert len(out.hidden) == 7
    assert torch.equal(out.hidden[0], _x())
    assert torch.equal(stack.final_norm(out.hidden[-1]), out.states)
    plain = stack(_x())
    assert plain.trace is None
    assert plain.hidden is None


def test_norm_input_norms_the_embedded_input(make_config):
    stack = _stack(make_config, norm_input=True).eval()
    x = 5 * _x() + 2
    first = stack(x, Inputs(trace=True)).hidden[0]
    assert first.mean(-1).abs().max() < 1e-12
    wanted = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(first, wanted, rtol=0, atol=1e-12)


def test_positions_are_added_to_the_embedded_input(make_config):
    from moeut.blocks.positions import sinusoids

    table = sinusoids(torch.arange(6), 16, torch.float64)
    plain = _stack(make_config, position="sinusoidal").eval()
    assert torch.allclose(
        plain(_x(), Inputs(trace=True)).hidden[0], _x() + table, rtol=0, atol=1e-14
    )
    scaled = _stack(make_config, position="scaled_sinusoidal").eval()
    assert torch.allclose(
        scaled(_x(), Inputs(trace=True)).hidden[0], _x() + table / 4, rtol=0, atol=1e-14
    )
    learned = _stack(make_config, position="learned").eval()
    wanted = _x() + learned.position.weight[:6]
    assert torch.equal(learned(_x(), Inputs(trace=True)).hidden[0], wanted)


def test_only_causal_stacks_decode(make_config):
    with pytest.raises(ValueError, match="only a causal stack"):
        _stack(make_config, causal=False).new_cache()


def test_routing_context_shares_sum_to_one():
    real = torch.tensor([[True, True, False], [False, False, False]])
    context = RoutingContext.create(real, balance=True, trace=False, dtype=torch.float32)
    assert context.share.tolist() == [[[0.5, 0.5, 0.0]], [[0.0, 0.0, 0.0]]]
