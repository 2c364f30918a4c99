import pytest

from runners.bench.targets import expert_targets, model_targets


def row(size, candidate, milliseconds, fraction=0.5):
    return {
        "size": size,
        "candidate": candidate,
        "forward_backward_ms": milliseconds,
        "roofline_forward_backward_fraction": fraction,
    }


def verdicts(section):
    return {(what, note): verdict for what, note, _wanted, _measured, verdict in section.rows}


def test_targets_of_the_experts():
    rows = [
        row("mlp-244m-64k", "ours", 4.0, 0.51),
        row("mlp-244m-64k", "torch grouped_mm", 7.0),
        row("mlp-244m-64k", "old", 5.9),
        row("mlp-244m-64k", "dense", 3.0),
        row("mlp-244m-64k", "ours, sorted before", 3.9),
        row("mlp-1b-64k", "ours", 4.0, 0.49),
        row("dispatch-244m-64k", "ours", 0.1),
        row("value-244m-64k", "ours", 1.0, 0.39),
        row("value-244m-64k", "old", 1.5),
        row("value-244m-64k", "new", 2.5),
    ]
    got = verdicts(expert_targets({"rows": rows, "peers": {"old": "cvmm", "new": "cvmm rewrite"}}))
    assert got["mlp-244m-64k, roofline, f+b", ""] == "reached"
    assert got["mlp-244m-64k, fastest public kernel, f+b", "old"] == "not reached"  # 1.475
    assert got["mlp-1b-64k, roofline, f+b", ""] == "not reached"
    assert got["mlp-1b-64k, fastest public kernel, f+b", ""] == "not measured"
    assert got["value-244m-64k, roofline, f+b", ""] == "not reached"
    assert got["value-244m-64k, CVMM of June 2026, f+b", "new"] == "reached"
    assert got["dispatch-244m-64k, share of the block, f+b", ""] == "reached"
    assert got["dispatch-44m-64k, share of the block, f+b", ""] == "not measured"


@pytest.mark.parametrize(("eager", "verdict"), [(1.5, "reached"), (1.6, "not reached")])
def test_targets_of_the_models(eager, verdict):
    times = {
        ("244m", "moeut", "eager"): (10.0, 5),
        ("244m", "transformer", "eager"): (9.0, 6),
        ("small", "moeut", "eager"): (eager, None),
        ("small", "moeut", "graph"): (1.0, None),
    }
    rows = [
        {"size": size, "model": model, "mode": mode, "step_ms": time, "peak_memory_bytes": peak}
        for (size, model, mode), (time, peak) in times.items()
    ]
    got = verdicts(model_targets({"rows": rows}))
    assert got["244m, step, eager", "transformer"] == "not reached"
    assert got["244m, peak memory, eager", "transformer"] == "reached"
    assert got["1b, step, compiled", "transformer"] == "not measured"
    assert got["small, step, eager", "graph"] == verdict
