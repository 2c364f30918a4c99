"""What the tables claim, and what they refuse to claim."""

import copy
import json

import pytest

from runners.reporting.breakdown import problems_table
from runners.reporting.comparison import against_baseline, best_settings, main_table
from runners.reporting.results import load

STEADY = [0.81, 0.80, 0.82, 0.79, 0.83]
WILD = [0.99, 0.98, 0.35, 0.97, 0.99]
BETTER = [0.9, 0.91, 0.92, 0.93, 0.94]


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


def test_five_seeds(make_sweep):
    results = load(make_sweep(transformer=STEADY, wild=WILD, moeut=BETTER))
    table = main_table(results)
    assert column(table, "gen exact_match") == ["0.810 ± 0.016", "0.856 ± 0.283", "0.920 ± 0.016"]
    assert column(table, "test exact_match") == ["1.000 ± 0.000"] * 3
    assert column(table, "p against transformer") == ["baseline", "0.143", "0.016"]
    assert column(table, "n") == ["5", "5", "5"]
    assert column(table, "every seed")[1] == "0.990 0.980 0.350 0.970 0.990"
    assert column(table, "95 % CI")[0].startswith("[0.79")
    assert column(table, "parameters") == ["1,000"] * 3
    assert column(table, "wall time") == ["1 min 04 s"] * 3
    assert "Scoring: 25% of the runs' wall time." in table.notes
    notes = " ".join(table.notes)
    assert "select final" in notes
    assert "Holm-corrected over 2 comparisons" in notes
    assert "100 per category chosen by hash" in notes
    assert "gen: chance 0.000, majority 0.010, ceiling 0.922" in notes
    assert "Matched between variants: parameters, tokens seen" in notes
    assert "Not matched: MACs per token: transformer 500, wild 800, moeut 800." in notes
    # The best is moeut; the wild one cannot be told from it, the steady one can.
    assert {row for row, _ in table.bold} == {1, 2}
    assert {table.columns[c] for _, c in table.bold} == {"gen exact_match"}


@pytest.mark.parametrize(("seeds", "how"), [(10, "exact"), (11, "approximate (normal)")])
def test_notes_say_how_p_was_found(make_sweep, seeds, how):
    low, high = [n / 100 for n in range(seeds)], [n / 100 + 0.5 for n in range(seeds)]
    notes = main_table(load(make_sweep(transformer=low, moeut=high))).notes
    assert f"p: {how} two-sided Mann–Whitney, Holm-corrected over 1 comparison." in notes[1]


def test_three_seeds_claim_nothing(make_sweep):
    results = load(make_sweep(transformer=[0.1, 0.11, 0.12], moeut=[0.9, 0.91, 0.92]))
    table = main_table(results)
    assert column(table, "p against transformer") == ["baseline", "n too small to test"]
    assert table.bold == frozenset()
    assert best_settings(results) is None
    assert any("so few seeds (moeut (3))" in note for note in table.notes)


def test_one_seed_has_no_std(make_sweep):
    table = main_table(load(make_sweep(transformer=[0.5], moeut=[0.7])))
    assert column(table, "gen exact_match") == ["0.500", "0.700"]
    assert column(table, "95 % CI") == ["–", "–"]


def test_failed_and_missing_runs_are_counted(make_sweep):
    results = load(make_sweep(transformer=[*STEADY], moeut=[0.9, "loss is nan", None, 0.8, 0.7]))
    table = main_table(results)
    assert column(table, "n") == ["5", "3 of 5"]
    problems = problems_table(results)
    assert problems.title == "Without a usable result: 2 of 10 runs"
    assert [row[1:3] for row in problems.rows] == [["1", "failed"], ["2", "missing"]]
    assert "loss is nan" in problems.rows[0][3]
    assert problems_table(load(make_sweep("other", a=[0.5]))) is None


def test_no_result_at_all(make_sweep):
    table = main_table(load(make_sweep(a=[None, "out of memory"], b=[None, None])))
    assert column(table, "n") == ["0 of 2", "0 of 2"]
    assert table.notes == ["No run has a result yet."]


def test_grid_points_are_rows_compared_with_their_own_baseline(make_sweep):
    directory = make_sweep(transformer=STEADY, moeut=BETTER, parameters={"model.num_layers": 2})
    plan = json.loads((directory / "sweep.json").read_text())
    for run in copy.deepcopy(plan["runs"]):
        source = directory / run["directory"]
        run["hash"] = run["hash"].replace("0", "f")
        run["parameters"] = {"model.num_layers": 4}
        run["directory"] = f"{run['variant']}-{run['hash']}/seed{run['seed']}"
        plan["runs"].append(run)
        target = directory / run["directory"]
        target.mkdir(parents=True)
        (target / "result.json").write_text((source / "result.json").read_text())
    (directory / "sweep.json").write_text(json.dumps(plan))
    results = load(directory)
    table = main_table(results)
    assert column(table, "num_layers") == ["2", "2", "4", "4"]
    assert column(table, "p against transformer") == ["baseline", "0.016"] * 2
    assert len(against_baseline(results)) == 2


@pytest.mark.parametrize("spread", [0.005, 0.5])
def test_a_mismatch_is_shown(make_sweep, spread):
    def grow(variant, seed, data):
        if variant == "moeut":
            data["model"]["parameters"] = round(1000 * (1 + spread))

    notes = " ".join(
        main_table(load(make_sweep(transformer=[0.5], moeut=[0.5], result=grow))).notes
    )
    assert ("parameters within 0.5 %" in notes) == (spread == 0.005)
    assert ("Not matched: parameters: transformer 1,000, moeut 1,500" in notes) == (spread == 0.5)


def test_variants_that_the_paper_does_not_have_are_marked(make_sweep):
    directory = make_sweep(transformer=[0.5], universal=[0.6])
    assert not any(note.startswith("Ours") for note in main_table(load(directory)).notes)
    plan = json.loads((directory / "sweep.json").read_text())
    (directory / "sweep.json").write_text(json.dumps(plan | {"ours": ["universal"]}))
    assert "Ours, and not among the paper's: universal." in main_table(load(directory)).notes


def test_costs_beside_parameters_stand_in_the_table_where_runs_say_them(make_sweep):
    def say(variant, seed, data):
        data["model"] |= {"used_parameters": 4321, "cache_bytes_per_token": 512}

    table = main_table(load(make_sweep("with", result=say, transformer=[0.5])))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["used parameters"], cells["cache bytes/token"]) == ("4,321", "512")
    assert "used parameters" not in main_table(load(make_sweep(transformer=[0.5]))).columns


def test_a_grid_without_variants_is_tested_against_nothing(make_sweep):
    table = main_table(load(make_sweep(transformer=STEADY)))
    assert table.columns[-1] == "every seed"
    assert {len(row) for row in table.rows} == {len(table.columns)}
