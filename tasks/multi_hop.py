"""Chains of relations over entities, each relation a permutation that has to be learned by heart.

A row is an entity and a chain of relations; the label, at the last one, is the entity that the
chain leads to. The relations are drawn from the task's seed and are the same in all rows, so rows
of one hop are the facts that a model has to store:

>>> task = MultiHop(entities=4, relations=2, train_lengths=(1, 2), test_lengths=[3])
>>> row = task.split("longer")[0]
>>> facts = dict(((fact.source, fact.target[-1]) for fact in task.facts_as_rows()))
>>> found = row.source[0]
>>> for relation in row.source[1:]:
...     found = facts[found, relation]
>>> found == row.target[-1]
True
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tasks.base.about import About
from tasks.base.draws import Draws
from tasks.base.lengths import LengthTask
from tasks.base.options import require
from tasks.base.positions import NO_LABEL, Rows, tokens_of
from tasks.base.task import Example


@dataclass(frozen=True, kw_only=True)
class MultiHop(LengthTask):
    """Follow a chain of stored relations, over more hops than trained."""

    name: ClassVar[str] = "multi_hop"
    difficulty_name: ClassVar[str] = "hops"
    about: ClassVar[About] = About(
        family="recall and hops",
        hard="looking stored facts up one after the other, more often than in train",
        source="OSU-NLP-Group/Loop-Think-Generalize 4e47341",
        published=(
            "setting: 200 entities, 10 relations, 2 to 40 hops, 15,000 rows for each number of "
            "hops, which grows as each is learned (repository)",
            "trained on 5 hops or fewer, 10 hops with more loops (README)",
        ),
    )

    entities: int = 200
    """Entities that each relation permutes."""
    relations: int = 10
    """Relations."""
    every_hop: bool = False
    """Label every relation with the entity reached there, not the last one alone."""
    train_lengths: tuple[int, int] = (1, 20)
    """Fewest and most hops in train and iid; 1 is a fact."""
    test_lengths: list[int] = field(default_factory=lambda: [22, 24, 28, 32, 40])
    """Hops of longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("entities", "relations"):
            require(self, name, getattr(self, name) >= 2, "at least 2")

    def symbols(self) -> tuple[str, ...]:
        """Return the entities, and then the relations."""
        return (*self.labels(), *(f"r{number}" for number in range(self.relations)))

    def labels(self) -> tuple[str, ...]:
        """Return the entities."""
        return tuple(f"e{number}" for number in range(self.entities))

    def source_length(self, length: int) -> int:
        """Return the tokens of a chain with its first entity."""
        return length + 1

    def relation_tables(self) -> np.ndarray:
        """Return the relations (R, E): what each leads to from each entity."""
        draws = Draws(f"multi_hop {self.seed} relations", np.arange(self.relations))
        return draws.permutations(self.entities)

    def draw(self, draws: Draws, length: int) -> Rows:
        """Return chains of ``length`` hops."""
        return self._rows(draws.integers(self.entities), draws.integers(self.relations, length))

    def _rows(self, entity: np.ndarray, chain: np.ndarray) -> Rows:
        tables, length = self.relation_tables(), chain.shape[1]
        source = np.concatenate([entity[:, None], self.entities + chain], axis=1)
        target = np.full_like(source, NO_LABEL)
        for hop in range(length):
            entity = tables[chain[:, hop], entity]
            if self.every_hop or hop == length - 1:
                target[:, hop + 1] = entity
        return Rows(source, target)

    def facts_as_rows(self) -> list[Example]:
        """Return every fact: the row of one hop for each entity and relation."""
        entity, relation = np.divmod(np.arange(self.entities * self.relations), self.relations)
        made = self._rows(entity, relation[:, None])
        return [Example(*pair, difficulty=1.0) for pair in tokens_of(self, made)]
