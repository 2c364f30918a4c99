"""Two ranks score text as one does, where tokens leave early too: by a rule, or as trained.

Of five windows the ranks have unequal shares, and of one window the second rank has nothing.
``docs/recurrence.md`` has the outcomes of what acts in evaluation alone.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mechanism_cases import assert_document_has
from property_cases import BEGIN, COLUMNS, DOCUMENT, END, ROWS, Case

from runners.process import ranks as distributed
from runners.process.ranks import World
from runners.scoring.exits import exits
from runners.scoring.text import loss_by_position
from runners.training.objective import LanguageObjective

LEAVING = [name for name in ROWS if name.startswith(("exit: ", "halting: "))]


class Text:
    """Five windows of six tokens."""

    context_length = 6
    tokens = np.random.default_rng(0).integers(1, 7, (5, 7))

    def __len__(self) -> int:
        return len(self.tokens)

    def windows(self, rows: np.ndarray) -> np.ndarray:
        return self.tokens[rows]


class Scored(NamedTuple):
    losses: list[float]
    own: dict[str, float]
    """Mean repeats of the tokens that this rank read."""
    used: dict[str, float]
    """Those of all."""


def score(name: str, count: int, world: World) -> Scored:
    """Score the first windows with a model of a mechanism."""
    model = Case(name).model.eval()
    objective = LanguageObjective(SimpleNamespace(attend_across_documents=True))
    with torch.inference_mode(), exits(model, model.exit_rule) as used:
        losses = loss_by_position(
            model,
            objective,
            objective.columns(Text()),
            np.arange(count),
            at_once=2,
            device=torch.device("cpu"),
            world=world,
        )
        own = used.means()
        used.share(world)
    return Scored(losses.tolist(), own, used.means())


@pytest.mark.parametrize("count", [5, 1])
def test_two_ranks_score_tokens_that_leave_as_one(count, start):
    assert {"exit: kl", "exit: latent_diff", "halting: act"} < {*LEAVING}

    def work() -> dict[str, Scored]:
        world = distributed.join()
        return {name: score(name, count, world) for name in LEAVING}

    ranks = start(work)
    alone = {name: score(name, count, World()) for name in LEAVING}
    for found in ranks.results():
        for name, wanted in alone.items():
            assert found[name].losses == pytest.approx(wanted.losses, rel=1e-6), name
            assert found[name].used == pytest.approx(wanted.used, rel=1e-12), name
        # What a rank has counted by itself would be told from it.
        assert count == 1 or any(found[name].own != alone[name].used for name in LEAVING)
    means = [mean for one in alone.values() for mean in one.used.values()]
    assert any(1 < mean < 3 for mean in means)
    outcomes = {(name, "ranks"): None for name in LEAVING if name.startswith("exit: ")}
    assert_document_has(DOCUMENT, outcomes, ROWS, COLUMNS, begin=BEGIN, end=END)
