"""The curve over difficulty, one for each depth at evaluation."""

import copy

from runners.reporting.depth_curves import depth_curve_panels, depth_curve_tables
from runners.reporting.results import load


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
    (table,) = depth_curve_tables(results)
    assert table.columns == ["recursion depth", "2", "4*"]
    assert table.rows == [
        ["2", "0.500 ± 0.141", "0.500 ± 0.141"],
        ["10", "0.125 ± 0.000", "0.250 ± 0.071"],
    ]
