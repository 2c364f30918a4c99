"""For every mechanism, mistakes that a test of its formula must notice.

Each test here makes one mistake in the source and asks that the test that it names fails, with
what is an error of numbers. That this test passes without the mistake, the suite says itself.
"""

from __future__ import annotations

import mutations_of_decisions
import mutations_of_layers
import mutations_of_others
import mutations_of_positions
import mutations_of_states
import pytest
from mechanism_cases import FAILED, assert_document_has
from mutating import outcomes
from property_cases import BEGIN, COLUMNS, DOCUMENT, END, ROWS

MUTATIONS = {
    **mutations_of_states.MUTATIONS,
    **mutations_of_decisions.MUTATIONS,
    **mutations_of_positions.MUTATIONS,
    **mutations_of_layers.MUTATIONS,
    **mutations_of_others.MUTATIONS,
}
CASES = {
    f"{name} ({mutation.mistake})": (name, mutation)
    for name, mutations in MUTATIONS.items()
    for mutation in mutations
}

OUTCOMES: dict[tuple[str, str], str | None] = {}


def test_every_mechanism_has_a_mutation() -> None:
    missing = [name for name in ROWS if not MUTATIONS.get(name)]
    assert not missing, f"mechanisms without a mistake that a test of theirs notices: {missing}"


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
