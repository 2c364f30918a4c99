"""MCWQ: the questions of CFQ over Wikidata, in four languages (arXiv 2108.03509).

>>> row = example("IN: Did M0 direct M1 OUT: ASK WHERE { M1 wdt:P57 M0 }")
>>> row.source, row.target[:4]
(('Did', 'M0', 'direct', 'M1'), ('ASK', 'WHERE', '{', 'M1'))

mcd1 to mcd3 differ from train in their compounds, as those of CFQ do; random does not. Questions in
Hebrew, Kannada and Chinese are translated by machine; the queries are the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.base.about import About
from tasks.base.data_files import DataDamaged, DataFile, files_of_git, locate, read_lines
from tasks.base.task import Example, ExampleTask

COMMIT = "7f9d6e64109f7a600539d2186b33b06d7d80abd3"
REPOSITORY = f"https://raw.githubusercontent.com/coastalcph/seq2sparql/{COMMIT}/mcwq/official"
LINE = re.compile("IN: (.+?) OUT: (.+)")
DATA_FILES: dict[str, DataFile] = files_of_git(
    "mcwq_files.txt", "mcwq", REPOSITORY, lambda name: name.endswith(".en.txt")
)
"""Official files by their path in the repository's folder of official data."""


def example(line: str) -> Example:
    """Return a line as a row, its difficulty the tokens of the query.

    Raises:
        ValueError: it is no ``IN: … OUT: …``.
    """
    found = LINE.fullmatch(line.strip())
    if found is None:
        raise ValueError(f"{line!r}: expected 'IN: … OUT: …'")
    target = tuple(found[2].split())
    return Example(tuple(found[1].split()), target, target[0], len(target))


def read_rows(name: str) -> list[Example]:
    """Return the rows of an official file.

    Raises:
        DataMissing, DataDamaged: it is not there, or not the published one.
    """
    file = DATA_FILES[name]
    rows = []
    for number, line in enumerate(read_lines(file), start=1):
        try:
            rows.append(example(line))
        except ValueError as error:
            raise DataDamaged(f"{locate(file)}:{number}: {error}") from None
    return rows


@dataclass(frozen=True, kw_only=True)
class Mcwq(ExampleTask):
    """MCWQ: questions to queries over Wikidata, from the official files."""

    name: ClassVar[str] = "mcwq"
    about: ClassVar[About] = About(
        family="questions",
        hard="known words and rules, combined as train never combines them, in four languages",
        source="arXiv 2108.03509; coastalcph/seq2sparql 7f9d6e64",
        published=(
            "English, mean of mcd1 to mcd3: LSTM .194, Evolved Transformer .293, T5-base .281, "
            "mT5-small .383; random .966–.991 (README)",
        ),
        fetch="python -m tasks.fetch mcwq (English; mcwq/mcd1 and so on for all languages)",
    )
    difficulty_name: ClassVar[str] = "tokens of the query"
    selection_splits: ClassVar[tuple[str, ...]] = ("dev",)

    variant: Literal["mcd1", "mcd2", "mcd3", "random_split"] = "mcd1"
    """Which split."""
    language: Literal["en", "he", "kn", "zh"] = "en"
    """Language of the questions: English, Hebrew, Kannada or Chinese."""

    @property
    def in_distribution_split(self) -> str | None:  # type: ignore[override]
        """The test of random_split; the others have none."""
        return "test" if self.variant == "random_split" else None

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, dev and test.

        Raises:
            DataMissing, DataDamaged: a file is not there, or not the published one.
        """
        return {
            split: read_rows(f"{self.variant}/{split}.{self.language}.txt")
            for split in ("train", "dev", "test")
        }
