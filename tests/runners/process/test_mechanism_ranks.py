"""Two ranks do what one does, for every mechanism of recurrence.

Two processes are started once and go through all of them: two updates each, in float64, of a tiny
model on seven rows of one to six letters: the ranks have unequal numbers of rows and tokens.
``docs/recurrence.md`` has the outcomes. Rules by which tokens leave are tried in
``test_scoring_ranks.py``.
"""

import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mechanism_cases import (
    MECHANISMS,
    assert_document_has,
    attention,
    feed_forward,
)
from property_cases import BEGIN, COLUMNS, DOCUMENT, END, ROWS, move

import moeut
import runners.training.sharding  # noqa: F401
from moeut.recurrence import start as start_of_state
from runners.config.run_file import read_run
from runners.process import ranks as distributed
from runners.process.generators import seed_everything
from runners.process.ranks import World
from runners.training import parallel
from runners.training.experiment import Built, build
from runners.training.lengths import train_columns
from runners.training.loop import Loop

CPU = torch.device("cpu")
NEEDS_INPUT = {"state": {"injection": "add"}}
TRAIN = {
    "train.repeats.per: sequence": {"repeats": {"kind": "uniform", "low": 1, "high": 3}},
    "train.repeats.per: token": {"repeats": {"kind": "uniform", "low": 1, "high": 3}},
    "train.backprop_repeats: 1": {"backprop_repeats": 1},
    "train.objective: every repeat": {"objective": {"kind": "every"}},
}
"""How what acts in training alone is asked for."""
for _name in ("sequence", "token"):
    TRAIN[f"train.repeats.per: {_name}"]["repeats"] |= {"per": _name}


class Updates(NamedTuple):
    """What two updates gave."""

    rows: list[dict[str, float]]
    gradients: dict[str, np.ndarray]
    """Of the first update."""
    weights: dict[str, np.ndarray]


def write_run(name: str, folder: Path, form: str) -> Path:
    """Write the config of a run of a tiny model of experts with a mechanism."""
    options = MECHANISMS.get(name, NEEDS_INPUT)
    model = {**attention("switch_head"), **feed_forward("sigma_moe"), "position": "none"} | options
    model["depth"] = {"group": 1, "repeats": 3} | options.get("depth", {})
    model["feed_forward"]["balance_loss"] = 0.5
    train = {"steps": 2, "batch_size": 7, "learning_rate": 0.01, "epsilon": 0.001}
    run = {
        "task": {
            "name": "file",
            **{split: str(folder / f"{split}.tsv") for split in ("train", "dev", "test")},
            "in_distribution": "dev",
            "kind": "sequence_to_sequence" if form == "decoder_lm" else "classification",
        },
        "model": {"architecture": "universal", "form": form, "d_model": 8, **model},
        "train": train | TRAIN.get(name, {}),
        "evaluate": {"interval": None},
    }
    path = folder / f"{form}{name.replace(' ', '').replace('/', '')}.yaml"
    path.write_text(json.dumps(run))
    return path


def update_twice(built: Built, world: World) -> Updates:
    """Train a run's model for two updates, from weights that are the same on every rank."""
    seed_everything(0)
    model = moeut.build(built.model_config).double()
    move(model)
    loop = Loop(
        built.config.train,
        objective=built.objective,
        model=model,
        columns=train_columns(built.objective),
        seed=0,
        d_model=built.model_config.d_model,
        device=CPU,
        world=world,
    )
    rows = [loop.advance()]
    named = loop.model.named_parameters()
    gradients = {name: p.grad.numpy().copy() for name, p in named if p.grad is not None}
    rows.append(loop.advance())
    weights = {n: w.numpy() for n, w in parallel.full_weights(loop.model).items()}
    return Updates(rows, gradients, weights)


def distance(found: Updates, wanted: Updates) -> float:
    """Return the largest difference of any gradient or weight."""
    # Ranks go through repeats in which no token is left, which leaves zeros where one has nothing.
    assert found.gradients.keys() >= wanted.gradients.keys()
    pairs = [(value, wanted.gradients.get(n, 0.0)) for n, value in found.gradients.items()]
    pairs += [(found.weights[name], value) for name, value in wanted.weights.items()]
    return max(float(np.abs(one - other).max()) for one, other in pairs)


def naive(world: World, *counts: int) -> list[int]:
    """Count what one rank has for all: the mean of the ranks' means, instead of the batch's."""
    return [world.size * counts[0], *counts[1:]]


@pytest.fixture
def runs(tmp_path) -> dict[str, Built]:
    """Return the run of each mechanism that training knows of."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcde", k=generator.randint(1, 6))) for _ in range(30)]
    for kind, answers in (("decoder_lm", words), ("encoder_classifier", [w[-1] for w in words])):
        folder = tmp_path / kind
        folder.mkdir()
        rows = zip(words, answers, strict=True)
        text = "".join(f"{' '.join(word)}\t{' '.join(answer)}\n" for word, answer in rows)
        for split in ("train", "dev", "test"):
            (folder / f"{split}.tsv").write_text(text)
    built = {}
    for name in ROWS:
        if not name.startswith("exit: "):
            form = "encoder_classifier" if name.startswith("recursion") else "decoder_lm"
            built[name] = build(read_run(write_run(name, tmp_path / form, form)))
    return built


def test_two_ranks_train_every_mechanism_as_one(runs, start, monkeypatch):
    def draw_as_in_evaluation(*about, training, **options):
        return noise_by_position(*about, training=False, **options)

    # Each rank draws noise of its own, so the draw is held.
    noise_by_position = start_of_state.noise_by_position
    monkeypatch.setattr(start_of_state, "noise_by_position", draw_as_in_evaluation)
    sum_counts = World.sum_counts

    def work() -> dict[str, tuple[Updates, Updates]]:
        world = distributed.join()
        found = {}
        for name, built in runs.items():
            right = update_twice(built, world)
            World.sum_counts = naive
            found[name] = right, update_twice(built, world)
            World.sum_counts = sum_counts
        return found

    ranks = start(work)
    alone = {name: update_twice(built, World()) for name, built in runs.items()}
    for found in ranks.results():
        far = {name: distance(found[name][0], wanted) for name, wanted in alone.items()}
        assert {name: by for name, by in far.items() if by > 1e-12} == {}
        near = {name: distance(found[name][1], wanted) for name, wanted in alone.items()}
        assert {name: by for name, by in near.items() if by < 1e-6} == {}
    outcomes = {(name, "ranks"): None for name in alone}
    assert_document_has(DOCUMENT, outcomes, ROWS, COLUMNS, begin=BEGIN, end=END)
