"""A run is scored by its rules: its splits, its depths, its stop."""

from types import SimpleNamespace

import pytest
import torch

from runners.config.run_file import read_run
from runners.process.messages import ScoringProgress
from runners.process.ranks import Agreement, World
from runners.process.signals import Stop, Stopped
from runners.scoring.scorer import Scorer
from runners.scoring.splits import SplitScorer
from runners.training.batches import padded_batch
from runners.training.experiment import build, build_model
from runners.training.journal import Clock

CPU = torch.device("cpu")


@pytest.fixture
def scorer(tmp_path, run_text):
    file = tmp_path / "run.yaml"
    file.write_text(run_text(architecture="universal"))
    return scorer_of(read_run(file, ["evaluate.repeats=[1]", *INTERVAL]))


INTERVAL = ["evaluate.interval_splits=[dev, train]"]


def scorer_of(config):
    messages = []
    journal = SimpleNamespace(clock=Clock(), progress=messages.append)
    agreement = Agreement(World(), Stop())
    made = Scorer(config, build(config), device=CPU, agreement=agreement, journal=journal)
    made.messages = messages
    return made


@pytest.fixture
def model(scorer):
    torch.manual_seed(0)
    return build_model(scorer.built.model_config, CPU)


def test_on_the_way_the_interval_splits_are_scored_without_the_oracle(scorer, model):
    metrics = scorer.on_the_way(model, step=4)
    assert list(metrics) == ["dev", "train"]
    assert "exact_match" in metrics["dev"]
    assert "eos_oracle_match" not in metrics["dev"]
    assert scorer.journal.clock.scoring_seconds > 0
    assert scorer.messages[0] == ScoringProgress(split="dev", step=4, steps=12, rows=0, of_rows=8)


def test_at_the_end_the_chosen_weights_are_scored_at_every_depth(scorer, model):
    chosen = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    found = []
    scorer.at_the_end(model, chosen, step=4, write=found.extend)
    places = [(each.score.split, each.score.repeats) for each in found]
    assert places == [(split, [n, n]) for split in ("dev", "test") for n in (2, 1)]
    assert all(float(value.abs().sum()) == 0 for value in model.state_dict().values())


def test_a_curve_is_scored_on_the_same_few_rows_at_every_depth(
    scorer, model, tmp_path, monkeypatch
):
    """And at the own depth twice, since the score of all rows is not comparable with the others."""

    def scored():
        found = []
        curve = scorer_of(read_run(tmp_path / "run.yaml", INTERVAL))
        curve.at_the_end(model, None, step=4, write=found.extend)
        return [each for each in found if each.score.split == "test"]

    whole = [each.score for each in scored()]
    assert [(s.repeats, s.rows, s.is_default_depth) for s in whole] == [
        ([2, 2], 8, True), ([1, 1], 8, False), ([4, 4], 8, False),
    ]  # fmt: skip
    assert all(score.of_curve is None for score in whole)
    monkeypatch.setattr(SplitScorer, "few", 5)
    found = scored()
    assert [(e.score.repeats, e.score.rows, e.score.of_curve) for e in found] == [
        ([2, 2], 8, None), ([1, 1], 5, True), ([4, 4], 5, True), ([2, 2], 5, True),
    ]  # fmt: skip
    assert [each.score.is_default_depth for each in found] == [True, False, False, False]
    own, *curve = ([example.source for example in each.answers.examples] for each in found)
    assert curve[0] == curve[1] == curve[2] == [row for row in own if row in curve[0]]


def test_a_stop_ends_scoring_before_the_next_batch(scorer, model):
    scorer.agreement.stop.request()
    with pytest.raises(Stopped, match="stopped while scoring dev at step 4"):
        scorer.on_the_way(model, step=4)


def test_where_halting_decides_the_repeats_stand_beside_the_difficulty(tmp_path, run_text):
    file = tmp_path / "run.yaml"
    file.write_text(run_text("encoder_classifier", "universal"))
    changes = ["model.halting=act", "model.depth.repeats=5", "evaluate.repeats=null"]
    made = scorer_of(read_run(file, changes))
    torch.manual_seed(2)
    model = build_model(made.built.model_config, CPU)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "halting" in name:
                parameter.mul_(20.0)
    found = []
    made.at_the_end(model, None, step=4, write=found.extend)
    table = found[-1].score.tables["difficulty, repeats used"]
    rows = made.built.task.split("test")
    assert list(map(float, table)) == sorted({row.difficulty for row in rows})
    for key, cell in table.items():
        chosen = [row for row in rows if row.difficulty == float(key)]
        prompts = [made.built.objective.encode_source(row) for row in chosen]
        tokens, mask = padded_batch(prompts, 0, CPU)
        with torch.no_grad():
            output = model.eval()(tokens, source_mask=mask)
        taken = output.decisions["encoder"]["halting.repeats"][mask]
        assert cell == {"repeats_used": pytest.approx(float(taken.float().mean())),
                        "rows": len(chosen)}  # fmt: skip
    assert len({cell["repeats_used"] for cell in table.values()}) > 1
