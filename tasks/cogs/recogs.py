"""ReCOGS: COGS with a logical form that asks for meaning, not for the numbers of words.

The sentences, splits and categories are those of COGS; the form is one of three (Wu, Manning and
Potts 2023, arXiv 2303.13716):

    positional_index   a variable is the place of its word; train has preposed objects, hesitations
                       and 3,072 concatenations of three sentences
    v2                 variables are drawn, five times for each row, and so are concatenations
    variable_free      ``eat ( agent = Emma , theme = * cake )``

>>> from tasks.cogs.graph import positional_form, read_graph
>>> positional_form(read_graph("A cake rolled ."))
'cake ( 1 ) ; roll ( 2 ) AND theme ( 2 , 1 )'

Score by ``semantic_match``, which takes any names and any order, and one name for two variables:
two whole copies of the form are right by it, and wrong by ``one_to_one_match``.

``made: rules`` makes them from the files of COGS alone. All rows of variable_free are the official
ones, and dev, test and gen of the positional index; of v2 they are so but for the names that were
drawn. The train of these two has other draws, and their results are not ReCOGS'.

22 rows of gen need a word that no target of train has, so that the ceiling is 99.90 %.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.base.about import About
from tasks.base.data_files import DataFile, file_table
from tasks.base.metrics import Answers, is_renaming
from tasks.base.options import require
from tasks.base.scoring import table_by
from tasks.base.task import Example, ExampleTask
from tasks.cogs import official
from tasks.cogs.changes import Row, concatenations, read_row, varied
from tasks.cogs.graph import positional_form, positional_primitive
from tasks.cogs.logical_form import read
from tasks.cogs.variable_free import variable_free

COMMIT = "1b6eca8ff4dca5fd2fb284a7d470998af5083beb"
REPOSITORY = f"https://raw.githubusercontent.com/frankaging/ReCOGS/{COMMIT}"
SPLITS = ("train", "dev", "test", "gen")
CONCATENATIONS = 3072
"""Of train, of each copy."""
COPIES = 5
"""Of each row of v2's train."""
CHANGED = ("preposing", "sprinkle", "concat", "length_ood")
"""Words in the categories of rows that are no sentences of COGS."""
NAMES = tuple(str(number) for number in range(60) if number not in (55, 57, 58))
"""Variables of v2: those that the published vocabulary has."""


def _read_data_files() -> dict[str, DataFile]:
    files = {}
    for name, git_sha1, rows in file_table("recogs_files.txt"):
        of_recogs = name.startswith(("positional_index", "v2"))
        upstream = f"recogs_{name}" if of_recogs else name
        files[name] = DataFile(
            path=f"recogs/{name}",
            url=f"{REPOSITORY}/{upstream.replace('+', '%2B')}",
            sha256=None,
            git_sha1=git_sha1,
            rows=None if rows == "-" else int(rows),
            by_default=not name.startswith("cogs"),
        )
    return files


DATA_FILES: dict[str, DataFile] = _read_data_files()
"""Official files by their path under the collection, variants of COGS among them."""


@dataclass(frozen=True, kw_only=True)
class Recogs(ExampleTask):
    """ReCOGS: the sentences of COGS with forms whose variables may have any name."""

    name: ClassVar[str] = "recogs"
    about: ClassVar[About] = About(
        family="semantic parsing",
        hard="words in new roles and deeper clauses, as COGS, without its fixed numbers",
        source="arXiv 2303.13716; frankaging/ReCOGS 1b6eca8f",
        published=(
            "gen, mean of five logs of the repository, whose metric they do not say: "
            "positional_index .862 ± .011, variable_free .840 ± .013, v2 .623 ± .072",
            "recipe: 2 + 2 layers, batch 128, AdamW 1e-4 with linear decay, 300 epochs (README)",
        ),
        fetch="python -m tasks.fetch recogs (or cogs, with made=rules)",
    )
    difficulty_name: ClassVar[str] = "recursion depth"
    in_distribution_split = "test"
    selection_splits: ClassVar[tuple[str, ...]] = ("dev",)

    form: Literal["positional_index", "v2", "variable_free"] = "positional_index"
    """Which logical form; the module's docstring describes them."""
    made: Literal["official", "rules"] = "official"
    """Read the official files, or make all from COGS' files by the rules, with draws of its own."""
    seed: int = 0
    """Seed of the draws of made=rules."""

    def __post_init__(self) -> None:
        super().__post_init__()
        drawn = self.made == "rules" and self.form != "variable_free"
        said = "left out unless made=rules, and with variable_free"
        require(self, "seed", drawn or self.seed == 0, said)

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """Both semantic matches, of forms with variables."""
        return () if self.form == "variable_free" else ("semantic_match", "one_to_one_match")

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, dev, test and gen.

        Raises:
            DataMissing, DataDamaged: a file is not there, or not the published one.
        """
        if self.made == "rules":
            return self._make() if self.form != "variable_free" else _without_variables()
        files = {split: DATA_FILES[f"{self.form}/{split}.tsv"] for split in SPLITS}
        return {split: read_rows(file) for split, file in files.items()}

    def tables(
        self, examples: Sequence[Example], correct: Sequence[bool]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return the tables of COGS."""
        return official.generalisation_tables(examples, correct)

    def answer_tables(self, answers: Answers) -> dict[str, dict[str, dict[str, float]]]:
        """Return the semantic match of each category."""
        if not self.own_metrics:
            return {}
        return {"semantic_match by category": semantic_by_category(answers)}

    # --- by the rules -------------------------------------------------------------------

    def _make(self) -> dict[str, list[Example]]:
        generator = random.Random(f"recogs {self.form} {self.seed}")
        made = {
            split: [read_row(row[0], row[2]) for row in official.read_columns(file)]
            for split, file in official.DATA_FILES.items()
        }
        base = varied(made["train"], generator, sprinkles=True)
        few = self.form == "positional_index"
        category = "concat" if few else "length_ood"
        splits: dict[str, list[Example]] = {}
        for split in SPLITS:
            sentences = base if split == "train" else made[split]
            copies = COPIES if split == "train" and not few else 1
            examples = []
            for _ in range(copies):
                examples += self._examples(sentences, generator)
            if split == "train":
                for _ in range(copies):
                    longer = concatenations(base, CONCATENATIONS, generator, category)
                    examples += self._examples(longer, generator)
            splits[split] = list(dict.fromkeys(examples))
        return splits

    def _examples(self, rows: Iterable[Row], generator: random.Random) -> list[Example]:
        examples = []
        for row in rows:
            form = form_of(row)
            if self.form == "v2":
                form = drawn_names(form, generator)
            examples.append(example(" ".join(row.tokens), form, row.category))
        return examples


def example(sentence: str, form: str, category: str) -> Example:
    """Return a row as an example; its difficulty is the depth that COGS gives the sentence.

    That of a changed sentence, which COGS' grammar does not have, is 0.
    """
    is_changed = any(word in category for word in CHANGED)
    depth = 0 if is_changed else read(sentence).depth
    return Example(tuple(sentence.split(" ")), tuple(form.split(" ")), category, depth)


def _without_variables() -> dict[str, list[Example]]:
    return {
        split: [
            example(sentence, variable_free(form), category)
            for sentence, form, category in official.read_columns(file)
        ]
        for split, file in official.DATA_FILES.items()
    }


def read_rows(file: DataFile) -> list[Example]:
    """Return the rows of an official file.

    Raises:
        DataMissing, DataDamaged: it is not there, or not the published one.
    """
    return [example(*columns) for columns in official.read_columns(file)]


def form_of(row: Row) -> str:
    """Return ReCOGS' form of a row with the positional index."""
    return positional_form(row.graph) if row.graph else positional_primitive(row.tokens[0])


def drawn_names(form: str, generator: random.Random) -> str:
    """Return a form whose variables have names drawn without repetition from those of v2."""
    variables = dict.fromkeys(re.findall(r"\d+", form))
    names = dict(zip(variables, generator.sample(NAMES, len(variables)), strict=True))
    return " ".join(names.get(token, token) for token in form.split(" "))


def semantic_by_category(answers: Answers) -> dict[str, dict[str, float]]:
    """Return ``semantic_match`` of the rows of each category."""
    correct = [
        is_renaming(*pair) for pair in zip(answers.examples, answers.predictions, strict=True)
    ]
    return table_by(answers.examples, correct, lambda row: row.category or None, "semantic_match")
