"""The curve over difficulty, one for each depth at evaluation."""

import copy

from runners.reporting.breakdown import depth_tables, depth_values
from runners.reporting.depth_curves import depth_curve_panels, depth_curve_tables, depth_labels
from runners.reporting.figures import depth_panels
from runners.reporting.results import SweepResults, load


def deepen(variant, seed, data):
    if variant != "a":
        return
    more = copy.deepcopy(data["scores"][1])
    more |= {"repeats": 2, "is_default_depth": False}
    more["by_difficulty"]["10"]["exact_match"] = 0.125
    data["scores"].append(more)


def test_a_curve_for_each_depth(make_sweep):
    results = load(make_sweep(a=[0.4, 0.6], b=[0.5], result=deepen))
    (panel,) = depth_curve_panels(results)
    assert (panel.title, panel.x, panel.y) == ("gen: a", "recursion depth", "exact_match")
    assert panel.curves == {
        "2 repeats": {2.0: [0.4, 0.6], 10.0: [0.125, 0.125]},
        "4 repeats": {2.0: [0.4, 0.6], 10.0: [0.2, 0.3]},
    }
    assert depth_labels(results) == ["2 repeats", "4 repeats"]
    (table,) = depth_curve_tables(results)
    assert table.columns == ["recursion depth", "2", "4*"]
    assert table.rows == [
        ["2", "0.500 ± 0.141", "0.500 ± 0.141"],
        ["10", "0.125 ± 0.000", "0.250 ± 0.071"],
    ]


def test_a_curve_on_a_part_of_the_rows_is_that_part_alone(make_sweep):
    """The score of all rows is the headline, and no point of the curve; the tables say how many."""

    def on_a_part(variant, seed, data):
        whole = data["scores"][1] | {"rows_available": 900}
        for repeats, value in ((2, 0.125), (4, 0.875)):
            part = {"repeats": repeats, "is_default_depth": False, "of_curve": True, "rows": 50}
            data["scores"].append(copy.deepcopy(whole) | part)
            data["scores"][-1]["metrics"]["exact_match"] = value

    results = load(make_sweep(a=[0.4, 0.6], result=on_a_part))
    (setting,) = results.settings
    assert setting.values("gen", "exact_match") == [0.4, 0.6]
    assert depth_values(results, setting, "gen") == {2: [0.125, 0.125], 4: [0.875, 0.875]}
    (table,) = depth_tables(results)
    assert table.notes == ["* the model's own depth.", "Each depth on the same 50 of 900 rows."]
    (panel,) = depth_panels(results)
    assert panel.x.endswith("(dotted: in training). Each depth on the same 50 of 900 rows.")


def test_a_table_of_one_setting_does_not_look_at_all_others(make_sweep, monkeypatch):
    """There is a table for each setting: 2,000 of them would look 4,000,000 times."""
    looked = []
    own = SweepResults.headline_metric

    def counted(results, setting):
        looked.append(setting.label)
        return own(results, setting)

    monkeypatch.setattr(SweepResults, "headline_metric", counted)

    def deepen_all(variant, seed, data):
        deepen("a", seed, data)

    found = {}
    for count in (2, 6):
        looked.clear()
        scores = {f"v{number}": [0.5] for number in range(count)}
        results = load(make_sweep(name=f"of{count}", result=deepen_all, **scores))
        assert len(depth_curve_tables(results)) == count
        found[count] = len(looked) / count
    assert found[6] <= found[2] + 1
