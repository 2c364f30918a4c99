r"""CFQ: questions about films to SPARQL queries, split so that compounds differ (arXiv 1912.09713).

mcd1 to mcd3 have in test the same words and rules as train, combined as differently as can be; the
others split at random, by the length of question or query, or by their patterns. ``dev`` is drawn
like test, so that choosing a model by it is choosing by the test.

Questions and queries are prepared as published (google-research/cfq): punctuation stands apart, and
of a query's token the first ``ns:`` goes, no later one:

>>> question_tokens("Did M0's producer edit M1")
('Did', 'M0', "'", 's', 'producer', 'edit', 'M1')
>>> " ".join(query_tokens("SELECT count(*) WHERE {\nM1 ns:film.editor.film|ns:film.x ns:m.02\n}"))
'SELECT count ( * ) WHERE { M1 film.editor.film|ns:film.x m_02 }'
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tasks.base.about import About
from tasks.base.data_files import DataDamaged, DataFile, checked_path, locate, read_bytes, unpacked
from tasks.base.task import Example, ExampleTask

ARCHIVE = DataFile(
    path="cfq/cfq.tar.gz",
    url="https://storage.googleapis.com/cfq_dataset/cfq.tar.gz",
    sha256="979d719271eae12611643b89151f639d94092800e7e71f2d23a754c43f3eb1ba",
)
"""Version 1.0, 267,599,061 bytes."""
SIZES = {
    "mcd1": (95_743, 11_968, 11_968),
    "mcd2": (95_743, 11_968, 11_968),
    "mcd3": (95_743, 11_968, 11_968),
    "random_split": (95_744, 11_967, 11_967),
    "question_complexity_split": (98_999, 10_339, 10_340),
    "query_complexity_split": (100_654, 9_512, 9_512),
    "question_pattern_split": (95_654, 12_115, 11_909),
    "query_pattern_split": (94_600, 12_489, 12_589),
}
"""Split -> rows of train, dev and test."""


def _member(name: str) -> DataFile:
    return DataFile(f"cfq/{name}", ARCHIVE.url, None, archive=ARCHIVE, member=f"cfq/{name}")


DATA_FILES: dict[str, DataFile] = {
    name: _member(name) for name in ("dataset.json", *(f"splits/{split}.json" for split in SIZES))
}
"""Files of the archive that are read."""

_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
_FIELD = re.compile(rb'"(question|sparql)PatternModEntities"\s*:\s*("(?:[^"\\]|\\.)*")')


def question_tokens(question: str) -> tuple[str, ...]:
    """Return the tokens of a question: words, and each ASCII punctuation mark by itself."""
    return tuple(_PUNCTUATION.sub(r" \1 ", question).split())


def query_tokens(query: str) -> tuple[str, ...]:
    """Return the tokens of a query, its namespaces shortened."""
    tokens = []
    for token in query.replace("count(*)", "count ( * )").split():
        token = token.removeprefix("ns:")
        tokens.append(f"m_{token[2:]}" if token.startswith("m.") else token)
    return tuple(" ".join(tokens).replace("\\n", " ").split(" "))


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield question and query of each entry of a ``dataset.json``, without its many other fields.

    The official file has gigabytes, of which no more than a page lies in memory at a time.

    Raises:
        DataDamaged: a question without its query.
    """
    with contextlib.ExitStack() as stack:
        if path.suffix == ".gz":
            data: bytes | mmap.mmap = unpacked(path)
        else:
            file = stack.enter_context(open(path, "rb"))
            data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        waiting: dict[bytes, str] = {}
        for field in _FIELD.finditer(data):
            if field[1] in waiting:
                raise DataDamaged(f"{path}: byte {field.start()}: a question or query too many")
            waiting[field[1]] = json.loads(field[2])
            if len(waiting) == 2:
                yield waiting[b"question"], waiting[b"sparql"]
                waiting = {}


def example(question: str, query: str) -> Example:
    """Return an entry as a row, its difficulty the tokens of the query."""
    target = query_tokens(query)
    return Example(question_tokens(question), target, target[1], len(target))


def split_rows(
    rows: Sequence[Example], indices: dict[str, list[int]], name: str
) -> dict[str, list[Example]]:
    """Return train, dev and test of a split file's ``trainIdxs``, ``devIdxs`` and ``testIdxs``.

    Raises:
        DataDamaged: an index beyond the last row.
    """
    try:
        return {
            split: [rows[index] for index in indices[f"{split}Idxs"]]
            for split in ("train", "dev", "test")
        }
    except (IndexError, KeyError) as error:
        raise DataDamaged(f"{name}: not of this dataset.json of {len(rows)} rows") from error


@dataclass(frozen=True, kw_only=True)
class Cfq(ExampleTask):
    """CFQ: questions to queries, from the official files."""

    name: ClassVar[str] = "cfq"
    about: ClassVar[About] = About(
        family="questions",
        hard="known words and rules, combined as train never combines them",
        source="arXiv 1912.09713; google-research/cfq, version 1.0",
        published=(
            "mcd1 / mcd2 / mcd3: Transformer .349 / .082 / .106, Universal Transformer .374 / "
            ".081 / .113, HPD .720 / .661 / .639 (README, 35,000 steps)",
            "random_split near 1; output length about .66 (arXiv 2108.12284, plot script)",
        ),
        fetch="python -m tasks.fetch cfq (268 MB)",
    )
    difficulty_name: ClassVar[str] = "tokens of the query"
    selection_splits: ClassVar[tuple[str, ...]] = ("dev",)

    variant: Literal[
        "mcd1",
        "mcd2",
        "mcd3",
        "random_split",
        "question_complexity_split",
        "query_complexity_split",
        "question_pattern_split",
        "query_pattern_split",
    ] = "mcd1"
    """Which split; query_complexity_split is by the length of the output."""

    @property
    def in_distribution_split(self) -> str | None:  # type: ignore[override]
        """The test of random_split; the others have none."""
        return "test" if self.variant == "random_split" else None

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, dev and test.

        Raises:
            DataMissing, DataDamaged: a file is not there, or not the published one.
        """
        file = DATA_FILES[f"splits/{self.variant}.json"]
        indices = json.loads(read_bytes(file))
        pairs = read_pairs(checked_path(DATA_FILES["dataset.json"]))
        splits = split_rows([example(*pair) for pair in pairs], indices, str(locate(file)))
        sizes = tuple(map(len, splits.values()))
        if sizes != SIZES[self.variant]:
            raise DataDamaged(f"{locate(file)}: {sizes} rows, expected {SIZES[self.variant]}")
        return splits
