"""The benchmark of steps: who meets whom, what its ratios are, and a contestant's process."""

import pytest

from runners.bench import __main__ as command
from runners.bench.step import rows_of, started
from runners.bench.step_cases import CONTESTS, GROUPS, PEERS
from runners.process.environment import ROOT


def test_every_size_meets_what_it_is_compared_with():
    assert sorted(name for group in GROUPS for name in group) == sorted(CONTESTS)
    for group in GROUPS:
        for name in group:
            contest = CONTESTS[name]
            others = {"base", *contest.peers, *group}
            assert contest.against in others - {name}
            assert set(contest.peers) <= {*PEERS, "llama"}


def test_ratios_are_taken_round_by_round():
    names = ["lm-transformer", "lm-moeut"]
    samples = {
        "lm-transformer": [1.0, 2.0, 4.0],
        "lm-transformer, nanoGPT": [2.0, 4.0, 4.0],
        "lm-moeut": [3.0, 2.0, 2.0],
    }
    rows = {(row["size"], row["whose"]): row for row in rows_of(names, samples)}
    dense, sparse = rows["lm-transformer", "ours"], rows["lm-moeut", "ours"]
    assert (dense["ratio"], dense["spread"], dense["ms"]) == (0.5, [0.5, 1.0], 2000.0)
    assert (sparse["against"], sparse["ratio"]) == ("lm-transformer", 1.0)
    assert "ratio" not in rows["lm-transformer", "nanoGPT"]


def test_a_contestant_runs_when_told_and_says_why_it_cannot_be_built():
    model = {"name": "transformer", "form": "decoder_lm", "vocabulary_size": 9, "d_model": 16}
    rows = [{"batch": 2, "shortest": 3, "longest": 5, "vocabulary": 9}]
    about = {"maker": "ours", "kind": "language", "architecture": model, "rows": rows}
    with (
        started(about, ROOT, threads=1) as turn,
        started(about, ROOT, threads=2, wall=True) as turn_of_two,
    ):
        assert 0 < turn(2) < 5
        assert 0 < turn_of_two(2) < 60
    with pytest.raises(ValueError, match=r"unknown|colour"):  # noqa: SIM117
        with started({**about, "architecture": {**model, "colour": 1}}, ROOT, threads=1):
            pass


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--sizes", "lm"], "lm-moeut"), (["-p", "GPT=/nowhere"], "NAME=PATH of a folder")],
)
def test_refuses_what_it_does_not_know(words, said, capsys):
    assert command.main(["step", *words]) == 2
    assert said in capsys.readouterr().err
