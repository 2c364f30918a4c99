"""Two ranks do what one does: the same loss and gradients."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import torch._dynamo
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import moeut
from runners.process import ranks as distributed
from runners.process.generators import seed_everything
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory
from runners.training import muon, parallel
from runners.training.experiment import build
from runners.training.lengths import train_columns
from runners.training.loop import Loop
from runners.training.muon import ShardedMuon, StackedMuon
from runners.training.sharding import part_of, save_shards

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def make_loop(make_run):
    """Return a function that returns one which begins a loop in float64, on any rank."""

    def make(form, architecture, *overrides, **changes):
        plain = ("model.dropout=0.0", "evaluate.interval=null", *overrides)
        if architecture in ("moeut", "sigma_moe"):
            plain = (
                "model.feed_forward.expert_dropout=0.0",
                "model.feed_forward.balance_loss=0.5",
                *plain,
            )
        directory = make_run("updates", *plain, form=form, architecture=architecture)
        config = RunDirectory(directory).read_config()
        built = build(config)
        columns = train_columns(built.objective)

        def begin():
            world = distributed.join()
            seed_everything(0)
            return Loop(
                dataclasses.replace(config.train, **changes),
                objective=built.objective,
                model=moeut.build(built.model_config).double(),
                columns=columns,
                seed=0,
                d_model=built.model_config.d_model,
                device=CPU,
                world=world,
            )

        return begin

    return make


@pytest.fixture
def first_updates(make_loop):
    """Return a function that does some updates in float64 and returns gradients and rows."""

    def make(*arguments, updates=2, **changes):
        begin = make_loop(*arguments, **changes)

        def work():
            trained = begin()
            rows = [trained.advance()]
            gradients = {
                name: whole(p.grad)
                for name, p in trained.model.named_parameters()
                if p.grad is not None
            }
            rows += [trained.advance() for _ in range(updates - 1)]
            return rows, gradients, whole_weights(trained.scored)

        return work

    return make


def whole_weights(model):
    return {name: weight.numpy() for name, weight in parallel.full_weights(model).items()}


def whole(tensor):
    """Return all pieces of a tensor."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().numpy().copy()


def assert_same(found, expected):
    rows, gradients, weights = found
    for row, other in zip(rows, expected[0], strict=True):
        assert row == pytest.approx(other, rel=1e-6)  # the sums of a row are float32
    # Ranks go through repeats in which no token is left, which leaves zeros where one has nothing.
    assert gradients.keys() >= expected[1].keys()
    for name, value in gradients.items():
        np.testing.assert_allclose(value, expected[1].get(name, 0.0), err_msg=name, **EXACT)
    assert_same_weights(weights, expected[2])


def assert_same_weights(found, expected):
    for name, value in expected.items():
        # Adam divides by the gradient's size: what is nearly 0 moves by more than rounding.
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


UPDATES = [
    ("encoder_decoder", "moeut", "ddp", {}),
    ("decoder_lm", "moeut", "ddp", {"accumulate": 1}),
    ("encoder_classifier", "moeut", "ddp", {"clip_norm": 0.01}),
    ("decoder_lm", "moeut", "ddp", {"tokens_per_batch": 40}),
    ("decoder_lm", "moeut", "ddp", {"optimizer": "muon", "shared_rate": "root", "ema": 0.5}),
    ("decoder_lm", "moeut", "fsdp", {"optimizer": "muon", "shared_rate": "root", "ema": 0.5}),
    ("decoder_lm", "moeut", "fsdp", {"clip_norm": 0.01}),
    ("decoder_lm", "sigma_moe", "fsdp", {}),
    ("decoder_lm", "sigma_moe", "fsdp", {"activation_checkpointing": True}),
    ("encoder_decoder", "moeut", "fsdp", {"accumulate": 1}),
]


@pytest.mark.parametrize(("form", "architecture", "kind", "changes"), UPDATES)
def test_two_ranks_give_the_gradients_of_one(
    form, architecture, kind, changes, first_updates, start
):
    work = first_updates(form, architecture, parallel=kind, **changes)
    expected = work()
    for found in start(work).results():
        assert_same(found, expected)


RECURRENT = {
    "injection": ("model.state={start: zero, injection: linear}", "train.backprop_repeats=1"),
    "random depth": (
        "model.state.injection=add",
        "train.repeats={kind: uniform, low: 1, high: 4}",
        "train.backprop_repeats=2",
    ),
    "halting": ("model.halting={kind: act, loss_weight: 0.5}", "model.depth.prelude=1"),
    "exits": ("model.halting={kind: exit_gate, entropy_weight: 0.5}", "model.depth.coda=1"),
    "all of them": (
        "model.depth.coda=1",
        "model.state={start: zero, injection: linear}",
        "model.halting={kind: act, loss_weight: 0.5, threshold: 0.8}",
        "train.repeats={kind: uniform, low: 1, high: 4}",
        "train.backprop_repeats=2",
    ),
}


@pytest.mark.parametrize("options", RECURRENT)
@pytest.mark.parametrize(("form", "kind"), [("encoder_decoder", "ddp"), ("decoder_lm", "fsdp")])
def test_two_ranks_recur_as_one(form, kind, options, first_updates, start):
    overrides = ("model.depth.repeats=3", *RECURRENT[options])
    work = first_updates(form, "moeut", *overrides, parallel=kind)
    expected = work()
    for found in start(work).results():
        assert_same(found, expected)


def test_two_ranks_teach_a_gate_alone_as_one(first_updates, start):
    options = ("model.depth.repeats=3", "model.halting=exit_gate", "train.weight_decay=0.1")
    stage = "train.objective={kind: last, gate_steps: 12}"
    work = first_updates("decoder_lm", "moeut", *options, stage)
    expected = work()
    assert len(expected[1]) == 2  # weight and bias of the gate
    for found in start(work).results():
        assert_same(found, expected)


UNUSED = {
    ("encoder_decoder", "ddp"): {
        "all of a repeat's own": (
            "model.own={norms: true, routers: true, encoding: true}",
            "train.repeats={kind: uniform, low: 1, high: 3}",
        ),
        "own attention": (
            "model.own={norms: true, attention: true}",
            "model.halting={kind: act, loss_weight: 0.5, threshold: 0.5}",
        ),
        "loss-free bias": ("model.halting={kind: token_choice, balancing: bias, bias_rate: 0.1}",),
    },
    ("decoder_lm", "ddp"): {
        "depth by row": ("train.repeats={kind: poisson, mean: 2.0, longest: 4, per: sequence}",),
        "expert choice": ("model.halting={kind: expert_choice, sampling: router, z_loss: 0.1}",),
        "stick-breaking": (
            "model.halting={kind: stick_breaking, threshold: 0.6}",
            "model.conditioning=film",
        ),
        "ponder": (
            "model.halting=ponder",
            "model.own.adapters.rank=2",
            "model.conditioning=network",
        ),
    },
    ("decoder_lm", "fsdp"): {
        "token choice": ("model.halting={kind: token_choice, balancing: bias, bias_rate: 0.1}",),
    },
}
"""What may leave a rank with parameters that none of its rows use, or with no token in a repeat."""


@pytest.mark.parametrize(
    ("form", "kind", "options"),
    [(*place, name) for place, cases in UNUSED.items() for name in cases],
)
def test_two_ranks_leave_the_same_unused(form, kind, options, first_updates, start):
    overrides = ("model.depth.repeats=3", *UNUSED[form, kind][options])
    work = first_updates(form, "moeut", *overrides, parallel=kind)
    expected = work()
    for found in start(work).results():
        assert_same(found, expected)


SUPERVISED = (
    "model.depth.repeats=2",
    "model.recursion.low_cycles=1",
    "model.carry.steps=4",
    "model.feed_forward.hidden_size=8",
    "train.objective={kind: deep_supervision, exploration: 0.5}",
)


@pytest.mark.parametrize(("architecture", "kind"), [("trm", "fsdp"), ("hrm", "ddp")])
def test_two_ranks_carry_states_as_one(architecture, kind, first_updates, start):
    """Rows go on with their states where they stand, on the rank that has their place."""
    work = first_updates("encoder_classifier", architecture, *SUPERVISED, parallel=kind, updates=5)
    expected = work()
    for found in start(work).results():
        assert_same(found, expected)


def test_mean_of_the_ranks_means_would_be_seen(first_updates, start, monkeypatch):
    work = first_updates("decoder_lm", "moeut")
    expected = work()
    sum_counts = World.sum_counts

    def naive(world, *counts):
        return [world.size * counts[0], *sum_counts(world, *counts[1:])]

    monkeypatch.setattr(World, "sum_counts", naive)
    found = start(work).results()[0]
    with pytest.raises(AssertionError):
        assert_same(found, expected)


def test_unsent_gradients_would_be_seen(first_updates, start, monkeypatch):
    work = first_updates("decoder_lm", "moeut")
    expected = work()
    monkeypatch.setattr(parallel, "gradients_sent", lambda call, is_last: call.no_sync())
    with pytest.raises(AssertionError):
        assert_same(start(work).results()[0], expected)


def test_muon_and_an_average_go_on_with_other_numbers_of_ranks(make_loop, start, tmp_path):
    """From one process to pieces on two ranks, to three, and to one again."""
    options = {"optimizer": "muon", "shared_rate": "root", "ema": 0.5, "accumulate": 1}
    begin = make_loop("decoder_lm", "moeut", parallel="fsdp", **options)
    alone = begin()
    states = [kept(alone, tmp_path / "0")]
    for number, size in enumerate((2, 3), start=1):
        work = functools.partial(go_on, begin, states[-1], tmp_path, number)
        results = start(work, size=size).results()
        assert results[0]["weights"].keys() == states[0]["weights"].keys()
        states.append(results[0])
    states.append(go_on(begin, states[-1], tmp_path, 3))
    for state in states[1:]:
        alone.advance()
        expected = kept(alone, tmp_path / "none")
        for name in ("weights", "average"):
            assert_same_weights(state[name], expected[name])


def kept(loop, folder):
    """Return what goes on of a loop, and write its optimiser's pieces if it is in pieces."""
    if parallel.is_sharded(loop.model):
        save_shards(folder, loop.model, loop.optimizer, loop.world)
    return {
        "weights": whole_weights(loop.model),
        "average": whole_weights(loop.average.module),
        "loop": loop.state_dict(),
    }


def go_on(begin, state, folder, number):
    """Begin a loop, put it where a state was made, do an update and return the state after it."""
    loop = begin()
    models = {"weights": loop.model, "average": loop.average.module}
    for name, model in models.items():
        weights = {n: torch.from_numpy(weight) for n, weight in state[name].items()}
        parallel.load_weights(model, weights)
    loop.load_state_dict(state["loop"], shards=folder / str(number - 1))
    loop.advance()
    return kept(loop, folder / str(number))


SHAPES = [(5, 9), (9, 5), (4, 4), (1, 6), (64, 24), (2, 3, 5), (4, 5, 3)]
"""Of matrices and stacks; three ranks get as many rows of few of them, and none of some."""


def moved(kind, begun):
    """Return parameters after updates by Muon, matrices by that of a kind."""
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in begun]
    single, stacks = ([p for p in parameters if p.dim() == n] for n in (2, 3))
    rates = {"lr": 0.1, "weight_decay": 0.3}
    optimizers = [
        kind(single, adjust_lr_fn="match_rms_adamw", **rates),
        StackedMuon([{"params": stacks}], **rates),
    ]
    for _ in range(3):
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = part_of(gradient, like=parameter.detach())
        for optimizer in optimizers:
            optimizer.step()
    return [whole(parameter) for parameter in parameters]


def test_matrices_in_pieces_move_as_whole_ones(start):
    """To the same bits; one whose rows each rank orthogonalises by themselves moves otherwise."""
    generator = torch.Generator().manual_seed(0)
    begun = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    expected = moved(torch.optim.Muon, begun)

    def work():
        distributed.join()
        mesh = init_device_mesh("cpu", (3,))
        pieces = [distribute_tensor(t, mesh, [Shard(0)], src_data_rank=None) for t in begun]
        found = moved(ShardedMuon, pieces)
        muon.orthogonalized_pieces = lambda pieces, *_: [muon.orthogonalized(p) for p in pieces]
        return found, moved(ShardedMuon, pieces)

    for found, apart in start(work, size=3).results():
        for shape, value, other, right in zip(SHAPES, found, apart, expected, strict=True):
            np.testing.assert_array_equal(value, right, err_msg=str(shape))
            is_cut = len(shape) == 2 and shape[0] > 1
            assert (np.abs(other - right).max() > 0.01) == is_cut, shape


def test_pieces_of_a_batch():
    rows = np.arange(12)
    worlds = [World(rank=rank, size=2) for rank in range(2)]
    pieces = [[piece.tolist() for piece in world.pieces(rows, 3)] for world in worlds]
    assert pieces == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]]
    assert [[len(p) for p in world.pieces(rows[:3], 4)] for world in worlds] == [[1, 1], [1, 0]]
    alone = World().pieces(rows[:3], 8)
    assert [piece.tolist() for piece in alone] == [[0], [1], [2]]


def test_ranks_begin_alike_and_draw_dropout_of_their_own(first_updates, make_run, start):
    config = RunDirectory(make_run("dropout", form="decoder_lm")).read_config()
    built = build(config)
    columns = train_columns(built.objective)

    def work():
        world = distributed.join()
        seed_everything(config.seed)
        model = moeut.build(built.model_config)
        before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        Loop(
            config.train,
            objective=built.objective,
            model=model,
            columns=columns,
            seed=config.seed,
            d_model=16,
            device=CPU,
            world=world,
        )
        return before, torch.rand(4).tolist(), np.random.rand()  # noqa: NPY002

    first, second = start(work).results()
    assert all(np.array_equal(value, second[0][name]) for name, value in first[0].items())
    assert first[1] != second[1]
    assert first[2] != second[2]


# --- whole runs ---------------------------------------------------------------------------
