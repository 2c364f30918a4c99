"""What a sweep is said to cost before it runs."""

import json
from types import SimpleNamespace

import pytest

from moeut import decoding
from runners.bench import __main__ as bench
from runners.bench import cost
from runners.scoring import answers

SWEEP = """
name: tiny
base:
  task: {name: string_functions, test: iid, max_target: 30, train_rows: 60, other_rows: 20}
  model: {d_model: 8, attention: {num_heads: 2}, feed_forward: {hidden_size: 8}}
  train: {steps: 25, batch_size: 4}
  evaluate: {batch_size: 8, interval: 10, rows_per_category: 30, repeats: [3]}
variants:
  own: {model: {architecture: transformer, depth: {group: 2}}}
  shared: {model: {architecture: universal, depth: {repeats: 2}}}
seeds: 3
baseline: own
"""


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


def ticking(function):
    """Call a function, and say that it took two seconds."""
    function()
    return 2.0


def test_parts_add_up(sweep, monkeypatch):
    """Of batches of 8 rows one is timed for each split and depth: 2 s for 8 rows."""
    monkeypatch.setattr(cost, "_timed", ticking)
    monkeypatch.setattr(cost, "_mean_seconds", lambda step, seconds: 0.5)
    own, shared = (
        cost.measure_setting(runs, seconds=1.0, batches=1) for runs in cost.settings_of(sweep, [])
    )
    assert (own.setting, own.runs, own.step) == ("own", 3, 0.5)
    assert own.training == shared.training == 25 * 0.5
    first = cost.settings_of(sweep, [])[0][0]
    built = cost.build(first.config)
    rows = {
        name: len(cost.select_rows(built.task.split(name), 30))
        for name in {*built.final_splits(first.config), *built.interval_splits(first.config)}
    }
    at_the_end = sum(2 / 8 * rows[name] for name in built.final_splits(first.config))
    # Evaluated after 10, 20 and 25 steps.
    [on_the_way] = built.interval_splits(first.config)
    assert own.on_the_way == pytest.approx(3 * 2 / 8 * rows[on_the_way])
    assert own.at_the_end == pytest.approx(at_the_end)
    assert shared.at_the_end == pytest.approx(2 * at_the_end)  # at 2 repeats and at 3
    assert own.total == 3 * (own.training + own.on_the_way + own.at_the_end)


def test_answers_are_decoded_to_the_end_whatever_the_model_says(sweep, monkeypatch):
    """No answer may end before its batch's longest target does."""
    seen = []

    def decode(*arguments, max_length, suppress_eos, **options):
        seen.append((max_length, suppress_eos))
        return decoding.greedy_decode(
            *arguments, max_length=max_length, suppress_eos=suppress_eos, **options
        )

    monkeypatch.setattr(answers, "greedy_decode", decode)
    [own, _] = cost.settings_of(sweep, [])
    cost.measure_setting(own, seconds=0.0, batches=2)
    assert all(suppressed for _, suppressed in seen)
    assert len({limit for limit, _ in seen}) > 1


def test_the_command(sweep, tmp_path, capsys):
    path = tmp_path / "cost.json"
    options = ["--seconds=0", "--batches=1", "--set=train.steps=5", f"--json={path}"]
    assert bench.main(["cost", str(sweep), *options]) == 0
    [found] = json.loads(path.read_text(encoding="utf-8"))["sweeps"]
    settings = found["settings"]
    assert [each["setting"] for each in settings] == ["own", "shared"]
    total = sum(cost.Cost(**each).total for each in settings) + 2 * found["data_seconds"]
    assert found["minutes"] == pytest.approx(total / 60)
    assert found["minutes_each"] == pytest.approx(total / 120)
    assert f"{found['minutes']:.0f} minutes of processor time" in capsys.readouterr().out


def test_two_batches_are_spread_over_the_lengths():
    rows = [SimpleNamespace(source="x" * length) for length in range(16)]
    config = SimpleNamespace(evaluate=SimpleNamespace(batch_size=2))
    scored = cost.Scoring(config, None, None, batches=2)
    assert [[len(row.source) for row in some] for some in scored._some(rows)] == [[4, 5], [12, 13]]
