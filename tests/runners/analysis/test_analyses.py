"""Analyses of tiny models against numbers that are known."""

import math

import pytest
import torch

import moeut
from runners.analysis import attention, halting, lens, probes, routing, states, swap
from runners.analysis.findings import NotThere, to_csv
from runners.analysis.traces import trace
from runners.training.objective import OBJECTIVES
from runners.training.position_objective import POSITION_OBJECTIVES
from tasks.arithmetic import Arithmetic
from tasks.base.task import Example
from tasks.listops import ListOps
from tasks.table_lookup import TableLookup
from tasks.word_problem import WordProblem

SMALL = {"train_rows": 200, "iid_rows": 100, "valid_rows": 0, "test_rows": 50}


@pytest.fixture(scope="module")
def task():
    return TableLookup(
        bits=2,
        composed_functions=3,
        reserved_functions=0,
        reserved_chains=0,
        train_depths=(2, 4),
        test_depths=(5, 6),
        **SMALL,
    )


def build(task, architecture="universal", form="encoder_classifier", **options):
    objective = (OBJECTIVES | POSITION_OBJECTIVES)[task.kind][form](task)
    torch.manual_seed(0)
    config = moeut.architecture(
        architecture,
        form=form,
        d_model=16,
        **({"pooling": "last"} if form == "encoder_classifier" else {}),
        **{"attention": {"num_heads": 2}, **options},
        **objective.sizes(),
    )
    return moeut.build(config), objective


def traced(task, rows=60, split="iid", num_repeats=None, **options):
    model, objective = build(task, **options)
    return trace(model, objective, task.split(split), rows=rows, num_repeats=num_repeats)


def test_the_lens_at_the_last_state_is_the_model(task):
    traces = traced(task, depth={"repeats": 3})
    (finding,) = lens.logit_lens(traces)
    rows = [row for row in finding.rows if row["difficulty"] == "all"]
    assert [row["application"] for row in rows] == [0, 1, 2, 3]
    right = sum(int((b.output.logits.argmax(-1) == b.targets).sum()) for b in traces.batches)
    assert rows[-1]["accuracy"] == right / 60
    assert rows[-1]["agreement_with_last"] == 1
    losses = [
        torch.nn.functional.cross_entropy(b.output.logits, b.targets, reduction="sum")
        for b in traces.batches
    ]
    assert rows[-1]["cross_entropy"] == pytest.approx(float(sum(losses)) / 60, rel=1e-5)
    assert sum(r["predictions"] for r in finding.rows if r["difficulty"] != "all") == 4 * 60
    assert to_csv(finding.rows).startswith("application,repeat,layer,difficulty,accuracy")


def test_a_layer_that_adds_nothing_moves_no_state(task):
    model, objective = build(task, depth={"repeats": 2})
    with torch.no_grad():
        for name, parameter in model.encoder.layers.named_parameters():
            if "output" in name or "down" in name:
                parameter.zero_()
    (finding,) = states.state_change(trace(model, objective, task.split("iid"), rows=9))
    first, *others = finding.rows
    assert first["change"] is None
    for row in others:
        assert row["change"] == 0
        assert row["distance_to_last"] == 0
        assert row["cosine_with_previous"] == pytest.approx(1)
        assert row["norm"] == pytest.approx(first["norm"])


def test_overlap_of_sets_and_distributions():
    sets = routing.one_hot(torch.tensor([[0, 1], [2, 3], [1, -1], [-1, -1]]), 4)
    assert sets.sum(dim=-1).tolist() == [2, 2, 1, 0]
    assert float(routing.jaccard(sets[0], sets[2])) == 0.5
    assert float(routing.jaccard(sets[0], sets[1])) == 0
    assert math.isnan(float(routing.jaccard(sets[3], sets[3])))
    p, q = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0.5, 0.5, 0])
    assert float(routing.jensen_shannon(p, q)) == pytest.approx(1)
    assert float(routing.jensen_shannon(q, q)) == pytest.approx(0)
    assert float(routing.entropy(torch.full((8,), 1 / 8))) == pytest.approx(3)


def test_routing_of_one_layer_whose_states_stay(task):
    """Nothing moves, so every repeat chooses the same experts, and a token meets top_k of them."""
    model, objective = build(
        task,
        architecture="moeut",
        depth={"group": 1, "repeats": 3},
        feed_forward={"num_experts": 6, "expert_size": 4, "top_k": 2},
        attention={"num_heads": 2, "num_experts": 3, "top_k": 1},
    )
    with torch.no_grad():
        model.encoder.layers[0].feed_forward.down.zero_()
        model.encoder.layers[0].attention.output.zero_()
    traces = trace(model, objective, task.split("iid"), rows=30)
    found = {finding.name: finding.rows for finding in routing.routing(traces)}
    of_router = [row for row in found["routing_overlap"] if row["router"] == "feed_forward"]
    assert [(row["first"], row["second"]) for row in of_router] == [(1, 2), (1, 3), (2, 3)]
    for row in of_router:
        assert row["jaccard"] == 1
        assert row["jensen_shannon_bits"] == pytest.approx(0, abs=1e-12)
        assert row["jaccard_by_chance"] < 1
    uses = [row for row in found["routing_use"] if row["router"] == "feed_forward"]
    assert [row["experts_met"] for row in uses] == [2, 2, 2]
    shares = [row for row in found["routing_experts_by_repeat"] if row["router"] == "feed_forward"]
    assert sum(row["share"] for row in shares if row["repeat"] == 1) == pytest.approx(1)
    unused = sum(row["share"] == 0 for row in shares if row["repeat"] == 1)
    assert uses[0]["dead_experts"] == unused
    begin = [row for row in found["routing_experts_by_token"] if row["router"] == "feed_forward"]
    assert sum(row["share"] for row in begin[:6]) == pytest.approx(1)


def test_dense_models_have_no_routing_and_no_halting(task):
    traces = traced(task, rows=4)
    with pytest.raises(NotThere, match="no layer has a router"):
        routing.routing(traces)
    with pytest.raises(NotThere, match="no token halts"):
        halting.halting_depth(traces)


def test_halting_depth_is_that_of_the_decisions(task):
    traces = traced(task, rows=20, depth={"repeats": 4}, halting={"kind": "act"})
    found = {finding.name: finding.rows for finding in halting.halting_depth(traces)}
    taken = [
        b.output.decisions["encoder"]["halting.repeats"][b.real].float() for b in traces.batches
    ]
    rows = found["halting_by_position"]
    mean = sum(row["mean_repeats"] * row["tokens"] for row in rows) / sum(
        row["tokens"] for row in rows
    )
    assert mean == pytest.approx(float(torch.cat(taken).mean()))
    difficulties = {row.difficulty for b in traces.batches for row in b.examples}
    assert [row["difficulty"] for row in found["halting_by_difficulty"]] == sorted(difficulties)


def test_attention_of_each_query_adds_up_to_one(task):
    (finding,) = attention.attention_maps(traced(task, depth={"repeats": 2}))
    sums = {}
    for row in finding.rows:
        key = row["application"], row["head"], row["query"]
        sums[key] = sums.get(key, 0) + row["weight"]
    assert len(sums) == 2 * 2 * 7  # BOS, argument, four functions, EOS: the most frequent length
    assert list(sums.values()) == pytest.approx([1] * len(sums))


def test_a_probe_finds_what_is_there_and_control_what_is_not():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 8, generator=generator).numpy()
    values = (states[:, 0] > 0).astype(str)
    keys = [f"{number}" for number in range(400)]
    control = [probes.control_label(key, "x", ["a", "b"]) for key in keys]
    fitted, scored = range(200), range(200, 400)
    assert probes.probe_accuracy(states, values, list(fitted), list(scored)) > 0.95
    by_chance = probes.probe_accuracy(states, probes.np.array(control), [*fitted], [*scored])
    assert 0.35 < by_chance < 0.65
    assert abs(control.count("a") - 200) < 40
    assert control[0] == probes.control_label("0", "x", ["a", "b"])


def test_probes_read_the_argument_where_it_stands(task):
    """The embedded input of the first function does not hold its value, which attention brings."""
    traces = traced(task, rows=100, depth={"repeats": 2})
    (finding,) = probes.linear_probes(traces)
    rows = [
        row
        for row in finding.rows
        if (row["value"], row["read_at"]) == ("after function 1", "token")
    ]
    assert [row["application"] for row in rows] == [0, 1, 2]
    assert rows[0]["accuracy"] < 0.6
    assert rows[-1]["accuracy"] > rows[0]["accuracy"] + 0.2


def test_intermediate_values_of_tasks(task):
    row = task.split("iid")[0]
    found = task.intermediate_values(row)
    assert [one.token for one in found] == list(range(1, len(row.source)))
    assert found[-1].value == row.target[0]
    assert found[0].key == " ".join(row.source[:2])
    rows = Arithmetic(train_rows=200, iid_rows=40, valid_rows=0, test_rows=20, train_depths=(1, 3))
    for row in rows.split("iid"):
        found = rows.intermediate_values(row)
        assert found[-1].value == row.target[0]
        assert found[-1].key == "".join(row.source)
        assert all(row.source[one.token] == ")" and one.key[0] == "(" for one in found)


def test_intermediate_values_of_listops_are_those_of_its_brackets():
    text = "[MED 9 [SM 8 5 ] [MAX 2 [MIN 7 4 ] ] ]"
    found = ListOps().intermediate_values(Example(tuple(text.split()), ("4",)))
    assert [(one.name, one.value, one.token) for one in found] == [
        ("operation 1", "3", 5), ("operation 2", "4", 11), ("operation 3", "4", 12),
        ("operation 4", "4", 13),
    ]  # fmt: skip
    assert [one.key for one in found[:2]] == ["[SM 8 5 ]", "[MIN 7 4 ]"]
    assert found[-1].key == text


def test_intermediate_values_of_a_word_are_its_running_products():
    row = WordProblem(group="Z5", train_lengths=(4, 4), test_lengths=[8]).row([1, 3, 2, 0, 4])
    found = WordProblem().intermediate_values(row)
    assert [(one.name, one.value, one.token, one.key) for one in found] == [
        ("after element 2", "4", 1, "1 3"),
        ("after element 4", "1", 3, "1 3 2 0"),
        ("after element 5", "0", 4, "1 3 2 0 4"),
    ]


def test_probes_read_the_products_of_words():
    task = WordProblem(
        group="Z2", train_rows=200, iid_rows=60, train_lengths=(4, 4), test_lengths=[6]
    )
    model, objective = build(task, form="encoder_labeller", depth={"repeats": 2})
    (finding,) = probes.linear_probes(trace(model, objective, task.split("iid"), rows=60))
    assert {row["value"] for row in finding.rows} == {"after element 2", "after element 4"}
    assert {(row["labels"], row["rows"]) for row in finding.rows} == {(2, 60)}


def test_a_swap_after_the_last_application_follows_the_donor(task):
    """The answer is read off the last column: only there does the last state decide."""
    (finding,) = swap.swapped_states(traced(task, rows=60, depth={"repeats": 2}))
    last = {row["from_end"]: row for row in finding.rows if row["application"] == 2}
    assert last[0]["follows_donor"] == 1
    assert all(row["follows_own"] == 1 for column, row in last.items() if column)
    for row in finding.rows:
        assert row["follows_own"] + row["follows_donor"] + row["neither"] == pytest.approx(1)
    first = [row for row in finding.rows if row["application"] == 1]
    assert any(row["follows_own"] < 1 for row in first if row["from_end"])


def test_recursion_of_latent_states_is_refused(task):
    with pytest.raises(NotThere, match="latent states"):
        traced(task, architecture="trm", rows=4)
