"""Rows of recall and hops, against the solvers of the tasks."""

from __future__ import annotations

import numpy as np

import tasks
from tasks.mqar import recalled
from tasks.multi_hop import MultiHop
from tasks.p_hop import InductionHops
from tasks.path_star import PathStar
from tasks.reachability import Reachability

COMPARED = ("mqar.tsv", "phop.tsv", "graph_reachability.tsv")


def test_mqar(rows_of):
    for row in rows_of("mqar.tsv")["mqar"]:
        tokens, pairs = [int(n) for n in row["input"].split()], int(row["num_kv_pairs"])
        given = (pair.split(":") for pair in row["labels_position_value"].split())
        labels = {int(place): int(value) for place, value in given}
        found = {p: v for p, v in enumerate(recalled(tokens, pairs=pairs)) if v is not None}
        if row["random_non_queries"] == "0":
            assert found == labels
        assert len(labels) == pairs  # noise may repeat a key, and is then no question
        assert labels.items() <= found.items()
        vocabulary = int(row["vocab_size"])
        assert all(1 <= key < vocabulary // 2 for key in tokens[: 2 * pairs : 2])
        assert all(vocabulary // 2 <= value < vocabulary for value in labels.values())
        assert len({tokens[place] for place in labels}) == pairs


def test_mqar_of_our_own():
    """Rows have the published form, and queries lie as close to the pairs as the weights say."""
    task = tasks.create("mqar", vocabulary=128, noise=False, test_lengths=[64])
    made = task.split("train").arrays(np.arange(500))
    for source, target in zip(made.source.tolist(), made.target.tolist(), strict=True):
        labels = [None if value < 0 else 64 + value for value in target]
        assert labels == recalled(source, pairs=4)
    first = (made.target[:, 8::2] >= 0).mean(axis=0)
    assert 0.7 < first[0] < 0.78  # of weights 0.01 · k^-0.99
    assert (first[:-8] > first[8:] - 0.05).all()


def test_p_hop(rows_of):
    for row in rows_of("phop.tsv")["phop"]:
        example = InductionHops.row(row["input"], letters=int(row["letters"]))
        assert "".join(example.target) == row["output"]
        assert example.difficulty == int(row["hops"])
        assert all(a != b for a, b in zip(row["input"][1:], row["input"][2:], strict=False))


def test_reachability(rows_of):
    for row in rows_of("graph_reachability.tsv")["graph_reachability"]:
        edges = [tuple(map(int, edge.split(","))) for edge in row["edges"].split()]
        question = tuple(map(int, row["query"].split(",")))
        example = Reachability.row(int(row["nodes"]), edges, question)
        assert example.target[-1] == ("no", "yes")[int(row["label"])]
        assert [*map(int, example.source[:-3])] == [node for edge in edges for node in edge]


def test_shares_of_connected_pairs_are_those_measured():
    for nodes, share in ((8, 0.54), (16, 0.49), (32, 0.46)):
        task = Reachability(train_lengths=(nodes, nodes), test_lengths=[2])
        target = task.split("train").arrays(np.arange(4000)).target
        assert abs((target == 1).sum() / 4000 - share) < 0.03


def test_chains_follow_their_facts():
    task = MultiHop(entities=20, relations=3, every_hop=True)
    facts = {(row.source[0], row.source[1]): row.target[1] for row in task.facts_as_rows()}
    assert len(facts) == 60
    for relation in ("r0", "r1", "r2"):
        assert len({facts[f"e{i}", relation] for i in range(20)}) == 20  # a permutation
    for row in task.split("longer")[:50]:
        entity = row.source[0]
        for relation, label in zip(row.source[1:], row.target[1:], strict=True):
            entity = facts[entity, relation]
            assert label == entity


def test_paths_of_stars_are_the_only_ones():
    task = PathStar(arms=3, train_lengths=(1, 4), test_lengths=[5])
    for row in task.split("longer")[:50]:
        edges = [tuple(row.source[i : i + 2]) for i in range(0, 30, 2)]
        before = {last: first for first, last in edges}
        middle, goal = row.source[31], row.source[32]
        path = [goal]
        while before[path[0]] != middle:
            path.insert(0, before[path[0]])
        assert tuple(path) == row.target[-5:]
        assert sum(first == middle for first, _ in edges) == 3
