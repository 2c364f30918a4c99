"""COGS: from an English sentence to its logical form, with words and structures in new places.

A row of the official files (Kim and Linzen 2020, https://github.com/najoungkim/COGS, MIT licence)
is a sentence, its logical form, and a category; tokens are separated by blanks:

>>> from tasks.cogs.logical_form import logical_form
>>> logical_form("A shark ate the cake on a bed .").split(" ; ")[0]
'* cake ( x _ 4 )'
>>> logical_form("A shark ate the cake on a bed .").split(" ; ")[1].split(" AND ")[:3]
['shark ( x _ 1 )', 'eat . agent ( x _ 2 , x _ 1 )', 'eat . theme ( x _ 2 , x _ 4 )']

Training shows 24,000 sentences, 143 single words with their meaning, and 12 exposures: a word once,
in one role. ``gen`` has 1,000 rows in each of 21 categories, 18 lexical (an exposed or single word
in another role) and 3 structural: prepositional phrases on subjects, and clauses or phrases nested
3 to 12 deep where training has at most 2.

A model trained from scratch cannot get them all: training targets name positions up to 18, and
1,634 gen rows need a token beyond those, so that the ceiling is 92.2 % (cp_recursion 15.6 %,
pp_recursion 21.8 %).

The pinned commit is the one of 2022-09-13 that gave unaccusative subjects the role of theme in 50
rows of obj_pp_to_subj_pp; results on older copies of gen.tsv are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tasks.base.about import About
from tasks.base.data_files import DataDamaged, DataFile, locate, read_lines
from tasks.base.options import exact_text
from tasks.base.task import Example, ExampleTask
from tasks.cogs.logical_form import read

COMMIT = "165a7b669eade971fa47bf568a2e51925360fed8"
REPOSITORY = f"https://raw.githubusercontent.com/najoungkim/COGS/{COMMIT}/data"


def _file(split: str, rows: int, sha256: str) -> DataFile:
    name = f"{split}.tsv"
    return DataFile(path=f"cogs/{name}", url=f"{REPOSITORY}/{name}", sha256=sha256, rows=rows)


DATA_FILES: dict[str, DataFile] = {
    "train": _file(
        "train", 24_155, "220b3804b562c0156ee986eff1bdd15c27e52142549362a64f57baf86e304c78"
    ),
    "dev": _file("dev", 3_000, "ab66388a309c7ac1ad210c781a6a0ce12281a9ef24619a12422a752cef61bc21"),
    "test": _file(
        "test", 3_000, "68f8e51e9f6d9cd22d64efe68dd21d7ea5ba327e9a2359481030161aea757035"
    ),
    "gen": _file("gen", 21_000, "d013d9eee0bafc153f8decc85f42814ac97260f84964d980e1e2b84577b82361"),
}
"""Split -> its file."""

LEXICAL = (
    "subj_to_obj_common",
    "subj_to_obj_proper",
    "obj_to_subj_common",
    "obj_to_subj_proper",
    "prim_to_subj_common",
    "prim_to_subj_proper",
    "prim_to_obj_common",
    "prim_to_obj_proper",
    "prim_to_inf_arg",
    "active_to_passive",
    "passive_to_active",
    "obj_omitted_transitive_to_transitive",
    "unacc_to_transitive",
    "do_dative_to_pp_dative",
    "pp_dative_to_do_dative",
    "only_seen_as_transitive_subj_as_unacc_subj",
    "only_seen_as_unacc_subj_as_obj_omitted_transitive_subj",
    "only_seen_as_unacc_subj_as_unerg_subj",
)
"""Categories of gen that put a word in a role it was not seen in."""
RECURSION = ("cp_recursion", "pp_recursion")
"""Categories of gen that nest deeper than training: clauses and prepositional phrases."""
STRUCTURAL = ("obj_pp_to_subj_pp", *RECURSION)
"""Categories of gen that put a structure where it was not seen."""


def example(sentence: str, logical_form: str, category: str) -> Example:
    """Return a row as an example, its difficulty the recursion depth of the sentence.

    Depth is the number of nested ``that`` clauses or of nested prepositional phrases, whichever is
    more: 0 to 2 in training, and the 3 to 12 of the two recursion categories.
    """
    return Example(
        source=tuple(sentence.split(" ")),
        target=tuple(logical_form.split(" ")),
        category=category,
        difficulty=read(sentence).depth,
    )


def generalisation_tables(
    examples: Sequence[Example], correct: Sequence[bool]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return exact match for lexical and structural rows, and per depth of each recursion.

    Rows of other categories count in no table, and a table without rows is left out.
    """
    scored: dict[str, dict[str, list[bool]]] = {}
    for row, is_correct in zip(examples, correct, strict=True):
        if row.category in LEXICAL:
            labels = [("lexical/structural", "lexical")]
        elif row.category in STRUCTURAL:
            labels = [("lexical/structural", "structural")]
        else:
            labels = []
        if row.category in RECURSION:
            labels.append((f"{row.category} by depth", exact_text(row.difficulty)))
        for table, label in labels:
            scored.setdefault(table, {}).setdefault(label, []).append(is_correct)
    return {
        table: {
            label: {"exact_match": sum(right) / len(right), "rows": len(right)}
            for label, right in sorted(by_label.items(), key=lambda item: _label_order(item[0]))
        }
        for table, by_label in sorted(scored.items())
    }


def _label_order(label: str) -> tuple[float, str]:
    return (float(label), "") if label.isdigit() else (0.0, label)


@dataclass(frozen=True, kw_only=True)
class Cogs(ExampleTask):
    """COGS, from the official files."""

    name: ClassVar[str] = "cogs"
    about: ClassVar[About] = About(
        family="semantic parsing",
        hard="words in new roles, and clauses nested deeper than in train",
        source="arXiv 2010.05465; najoungkim/COGS 165a7b66",
        published=(
            "gen: .35 ± .06 (paper), .80–.81 (arXiv 2108.12284); the three structural cases 0 but "
            "for a few",
        ),
        fetch="python -m tasks.fetch cogs",
    )
    difficulty_name: ClassVar[str] = "recursion depth"
    in_distribution_split = "test"
    selection_splits: ClassVar[tuple[str, ...]] = ("dev",)

    def build_splits(self) -> dict[str, list[Example]]:
        """Read train, dev, test and gen from the official files.

        Raises:
            DataMissing: a file is not there; the message has the command that fetches it.
            DataDamaged: a file is there with another checksum.
        """
        return {split: read_rows(file) for split, file in DATA_FILES.items()}

    def tables(
        self, examples: Sequence[Example], correct: Sequence[bool]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return the tables of :func:`generalisation_tables`."""
        return generalisation_tables(examples, correct)


def read_rows(file: DataFile) -> list[Example]:
    """Return the rows of a file of COGS' own sentences and forms.

    Raises:
        DataMissing, DataDamaged: it is not there, or not the published one.
    """
    return [example(*columns) for columns in read_columns(file)]


def read_columns(file: DataFile) -> list[tuple[str, str, str]]:
    """Return sentence, logical form and category of each row of a file in COGS' format.

    Raises:
        DataMissing, DataDamaged: it is not there, or not the published one.
    """
    rows = []
    for number, line in enumerate(read_lines(file), start=1):
        columns = line.split("\t")
        if len(columns) != 3:
            raise DataDamaged(f"{locate(file)}:{number}: {len(columns)} columns, expected 3")
        rows.append((columns[0], columns[1], columns[2]))
    return rows
