"""COGS with training rows added or changed, as ReCOGS takes its score apart (arXiv 2303.13716).

    concat                  three sentences of like length run together, ``num`` times
    preposing               an object with a phrase moved to the front, in a twentieth of the rows
                            that have one
    preposing_sprinkles     the same, and hesitations in a twentieth of all rows

dev, test and gen are COGS' own, and so is the logical form:

>>> from tasks.cogs.changes import preposed, read_row
>>> from tasks.cogs.graph import cogs_form
>>> cogs_form(preposed(read_row("Ava ate a cake on the bed .", "")).graph)
'* bed ( x _ 4 ) ; cake ( x _ 1 ) AND cake . nmod . on ( x _ 1 , x _ 4 ) AND eat . theme ( x _ 6 , \
x _ 1 ) AND eat . agent ( x _ 6 , Ava )'

``made: rules`` needs the files of COGS alone; which rows are changed or joined is drawn anew, so
that its results are not the published ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.base.about import About
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask
from tasks.cogs import official
from tasks.cogs.changes import concatenations, read_row, varied
from tasks.cogs.graph import cogs_form
from tasks.cogs.logical_form import primitive_form
from tasks.cogs.recogs import DATA_FILES, example, read_rows

FOLDERS = {"preposing": "cogs_preposing", "preposing_sprinkles": "cogs_preposing+sprinkles"}


@dataclass(frozen=True, kw_only=True)
class CogsVariant(ExampleTask):
    """COGS with concatenations or preposed objects in train."""

    name: ClassVar[str] = "cogs_variant"
    about: ClassVar[About] = About(
        family="semantic parsing",
        hard="as COGS; longer or reordered training rows show numbers and places that gen needs",
        source="arXiv 2303.13716; frankaging/ReCOGS 1b6eca8f",
        published=(
            "Transformer, concat against COGS: cp_recursion .48–.50, .002; pp_recursion .58, .087",
            "the same, obj_pp_to_subj_pp: preposing .132, preposing_sprinkles .202, COGS 0 (README "
            "and logs of the repository)",
        ),
        fetch="python -m tasks.fetch cogs recogs/cogs_concat recogs/cogs_preposing "
        "recogs/cogs_preposing+sprinkles (or cogs alone, with made=rules)",
    )
    difficulty_name: ClassVar[str] = "recursion depth"
    in_distribution_split = "test"
    selection_splits: ClassVar[tuple[str, ...]] = ("dev",)

    variant: Literal["concat", "preposing", "preposing_sprinkles"] = "concat"
    """What train has beside, or in place of, COGS' rows; the module's docstring describes each."""
    num: Literal[256, 512, 1024, 2048, 3072] = 3072
    """Concatenations in train, the longest first; with variant=concat only."""
    made: Literal["official", "rules"] = "official"
    """Read the official training file, or make it from COGS' by the rules, with its own draws."""
    seed: int = 0
    """Seed of the draws of made=rules."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant != "concat":
            require(self, "num", self.num == 3072, "left out unless variant=concat")
        if self.made == "official":
            require(self, "seed", self.seed == 0, "left out unless made=rules")

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, dev, test and gen.

        Raises:
            DataMissing, DataDamaged: a file is not there, or not the published one.
        """
        if self.made == "rules":
            train = self._make()
        elif self.variant == "concat":
            train = read_rows(DATA_FILES[f"cogs_concat/train_k_{self.num}.tsv"])
        else:
            train = read_rows(DATA_FILES[f"{FOLDERS[self.variant]}/train.tsv"])
        others = {name: file for name, file in official.DATA_FILES.items() if name != "train"}
        return {"train": train} | {name: official.read_rows(f) for name, f in others.items()}

    def tables(
        self, examples: Sequence[Example], correct: Sequence[bool]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return the tables of COGS."""
        return official.generalisation_tables(examples, correct)

    def _make(self) -> list[Example]:
        generator = random.Random(f"cogs_variant {self.variant} {self.seed}")
        rows = [read_row(row[0], row[2]) for row in official.read_columns(TRAIN)]
        if self.variant == "concat":
            rows += concatenations(rows, self.num, generator, "concat")
        else:
            rows = varied(rows, generator, sprinkles=self.variant == "preposing_sprinkles")
        return [
            example(
                " ".join(row.tokens),
                cogs_form(row.graph) if row.graph else primitive_form(row.tokens[0]),
                row.category,
            )
            for row in rows
        ]


TRAIN = official.DATA_FILES["train"]
