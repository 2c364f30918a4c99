"""Depths chosen row by row: the surest repeat, and as many as a row is long."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moeut
from runners.config.run_file import read_run
from runners.config.yaml_nodes import ConfigError
from runners.scoring import choice
from runners.scoring.splits import split_scorer
from runners.training.experiment import build
from tasks.base.metrics import Answers

CPU = torch.device("cpu")
RUN = """
task: {name: prefix_sums, train_lengths: [1, 5], test_lengths: [6, 9], rows_per_test_length: 8,
       train_rows: 20, iid_rows: 8}
model: {architecture: looped, form: FORM, d_model: 16, depth: {repeats: 4},
        attention: {num_heads: 2}, feed_forward: {hidden_size: 16}}
evaluate: {choose_repeats: [confidence, length], most_repeats: 9}
"""


@pytest.fixture
def built_from(tmp_path):
    """Return a function that builds a run on prefix sums, ``overrides`` changed."""

    def make(*overrides, form="decoder_lm"):
        file = tmp_path / "run.yaml"
        file.write_text(RUN.replace("FORM", form))
        return build(read_run(file, overrides))

    return make


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_labeller"])
def test_each_row_is_read_where_its_choice_says(form, built_from):
    built = built_from(form=form)
    torch.manual_seed(0)
    model = moeut.build(built.model_config)
    scorer = split_scorer(built.objective)(
        model=model, built=built, config=built.config.evaluate, device=CPU
    )
    found = scorer.score("longer")
    table = found.score.tables[choice.NAME]
    assert list(table) == ["fixed", "confidence", "length"]

    rows, every = list(built.task.split("longer")), {}
    model.eval()
    with torch.inference_mode():
        for repeats in range(1, 10):
            every[repeats] = built.objective.label(
                lambda *a, n=repeats, **o: model(*a, num_repeats=n, **o),
                rows, device=CPU, batch_size=3,
            ).predictions  # fmt: skip
    by_length = [every[int(row.difficulty)][i] for i, row in enumerate(rows)]
    wanted = choice.table_of(
        built.task.kind, {"fixed": Answers(rows, every[4]), "length": Answers(rows, by_length)}
    )
    assert table["fixed"] == wanted["fixed"]
    assert table["length"] == wanted["length"]

    logits, targets = _every_logits(model, built, rows)
    log_p = logits.log_softmax(-1)  # (R, B, T, V)
    doubt = -log_p.amax(-1) * (targets >= 0)
    surest = (doubt.sum(-1) / (targets >= 0).sum(-1)).argmin(0) + 1
    by_confidence = [every[int(surest[i])][i] for i in range(len(rows))]
    wanted = choice.table_of(built.task.kind, {"": Answers(rows, by_confidence)})[""]
    assert table["confidence"] == wanted
    assert set(surest.tolist()) != {4}


def _every_logits(model, built, rows):
    batch = built.objective.columns(rows).batch(np.arange(len(rows)), device=CPU)
    with torch.inference_mode():
        logits = [
            built.objective.forward(
                lambda *a, n=repeats, **o: model(*a, num_repeats=n, **o), batch
            ).logits
            for repeats in range(1, 10)
        ]
    return torch.stack(logits), batch.tensors["targets"]


def test_no_table_is_made_unasked_or_at_other_depths(built_from):
    built = built_from("evaluate.choose_repeats=[]", "evaluate.most_repeats=null")
    model = moeut.build(built.model_config)
    make = split_scorer(built.objective)
    scorer = make(model=model, built=built, config=built.config.evaluate, device=CPU)
    assert choice.NAME not in scorer.score("iid").score.tables
    asked = built_from()
    scorer = make(model=model, built=asked, config=asked.config.evaluate, device=CPU)
    assert choice.NAME not in scorer.score("iid", repeats=2).score.tables
    assert choice.NAME not in scorer.score("iid", oracle=False).score.tables


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("evaluate.choose_repeats=[sure]",), "did you mean|expected"),
        (("evaluate.choose_repeats=[]",), "most_repeats.*no effect without choose_repeats"),
        (("model.depth.repeats=1",), r"no layer is repeated \(model.depth.repeats=1\)"),
        (("model.halting=act",), "decides how deep a token goes"),
    ],
)
def test_what_cannot_be_chosen_is_refused(overrides, message, built_from):
    with pytest.raises(ConfigError, match=message):
        built_from(*overrides)


def test_a_task_of_whole_answers_is_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "task: {name: table_lookup}\n"
        "model: {architecture: universal, d_model: 16}\n"
        "evaluate: {choose_repeats: [confidence]}\n"
    )
    with pytest.raises(ConfigError, match="'table_lookup' has no label at each position"):
        build(read_run(file))
