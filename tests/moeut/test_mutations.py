"""For every mechanism, mistakes that a test of its formula must notice.

Each test here makes one mistake in the source and asks that the test that it names fails, with
what is an error of numbers. That this test passes without the mistake, the suite says itself.
"""

from __future__ import annotations

import mutations_of_conditioning
import mutations_of_decisions
import mutations_of_layers
import mutations_of_others
import mutations_of_positions
import mutations_of_states
import mutations_of_training
import pytest
import torch
from mechanism_cases import FAILED, assert_document_has
from mutating import Mutation, outcomes
from property_cases import BEGIN, COLUMNS, DOCUMENT, END, ROWS

TABLES = (
    mutations_of_states.MUTATIONS,
    mutations_of_decisions.MUTATIONS,
    mutations_of_conditioning.MUTATIONS,
    mutations_of_positions.MUTATIONS,
    mutations_of_layers.MUTATIONS,
    mutations_of_others.MUTATIONS,
    mutations_of_training.MUTATIONS,
)
MUTATIONS = [(name, one) for table in TABLES for name, several in table.items() for one in several]
CASES = {f"{name} ({one.mistake})": (name, one) for name, one in MUTATIONS}
OUTCOMES: dict[tuple[str, str], str | None] = {}
needs_copies = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="beside a GPU's threads PyTorch forbids a forked process to differentiate",
)
ADDS = Mutation(
    "nothing is another",
    "moeut.recurrence.injection:AddRule.forward",
    "state + embedded",
    "embedded + state",
    "moeut/recurrence/test_injection.py::test_repeats_read_state_and_input[zero-add]",
)


def test_every_mechanism_has_a_mutation() -> None:
    assert len(CASES) == len(MUTATIONS), "two are called alike"
    named = {name for name, _ in MUTATIONS}
    missing = [name for name in ROWS if name not in named]
    assert not missing, f"mechanisms without a mistake that a test of theirs notices: {missing}"


@needs_copies
def test_what_is_no_mistake_is_not_noticed() -> None:
    assert [one.result for one in outcomes(ADDS.check, ADDS)] == ["passed"]


@needs_copies
@pytest.mark.parametrize("new", ["unknown", "[][0]", "state[..., :3] + embedded"])
def test_what_breaks_is_not_noticed(new: str) -> None:
    (broken,) = outcomes(ADDS.check, ADDS._replace(new=new))
    assert broken.result in ("NameError", "IndexError", "RuntimeError")
    assert not broken.is_noticed


@needs_copies
def test_what_the_source_asserts_is_not_noticed() -> None:
    asserts = ADDS._replace(old="return state + embedded", new="raise AssertionError")
    (broken,) = outcomes(ADDS.check, asserts)
    assert broken.result == "AssertionError"
    assert not broken.is_noticed


@pytest.mark.parametrize("old", ["state - embedded", "state"])
def test_source_that_is_not_there_once_is_named(old: str) -> None:
    with pytest.raises(AssertionError, match=r"AddRule\.forward: '.*' occurs \d times, not once"):
        outcomes(ADDS.check, ADDS._replace(old=old))


@needs_copies
@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_noticed(case: str) -> None:
    name, mutation = CASES[case]
    cell = (name, "mutation")
    before, OUTCOMES[cell] = OUTCOMES.get(cell), FAILED
    found = outcomes(mutation.check, mutation)
    assert found, f"no test is called {mutation.check}"
    assert found[-1].is_noticed, f"{mutation.check}: {found[-1]}"
    OUTCOMES[cell] = before  # of all mistakes of the mechanism


def test_the_document_has_the_table() -> None:
    assert_document_has(DOCUMENT, OUTCOMES, ROWS, COLUMNS, begin=BEGIN, end=END)
