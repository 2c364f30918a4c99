"""Children's Book Test: which of ten words fills the gap in the 21st sentence (Hill et al., ICLR
2016, arXiv 1511.02301), test sets.

>>> lines = ["1 The cat sat .", "2 `` Who 's there ? '' it asked .",
...          "3 The XXXXX ran , and fell .\\tmouse\\t\\tcat|mouse"]
>>> question = parse(lines, "nouns", num_candidates=2)
>>> question.context
'The cat sat. "Who\\'s there?" it asked. The '
>>> question.continuations[question.answer]
'mouse ran, and fell.'

A file for each category of the missing word: named entities, common nouns, verbs, prepositions;
2500 questions each. The context is twenty sentences and the words before the gap; a
continuation is a candidate **with the rest of the sentence**. The tokenisation of the Penn
Treebank is undone first. The headline is the MoEUT paper's, ``acc_token`` averaged over the
categories. Questions that do not name ten candidates with the right one among them are left out, as
in the paper. The paper's code tokenizes context and continuation apart, which with its tokenizer
puts a space before the candidate, and never cuts a context that is longer than the model's. Here
they are tokenized as one text, which differs where the gap follows a quotation mark or a hyphen,
and a long context is cut on the left.

Upstream publishes one archive of 121 MB, whose SHA-256 is checked when it is fetched; the files
taken out of it are checked by their number of questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from tasks.base.data_files import DataDamaged, DataFile, locate, read_lines
from tasks.zero_shot.benchmark import Benchmark, Likelihood, Question, choices
from tasks.zero_shot.scoring import choice_values

ARCHIVE = DataFile(
    path="cbt/cbt.tar.gz",
    url="http://parl.ai/downloads/cbt/cbt.tar.gz",
    sha256="932df0cadc1337b2a12b4c696b1041c1d1c6d4b6bd319874c6288f02e4a61e92",
)
CATEGORIES = {
    "NE": "named entities",
    "CN": "common nouns",
    "V": "verbs",
    "P": "prepositions",
}
"""Name in the files → category."""
QUESTIONS_PER_FILE = 2500
NUM_CANDIDATES = 10
GAP = "XXXXX"

DETOKENIZE = (
    (" '", "'"),
    (" n't", "n't"),
    ("`` ", '"'),
    ("''", '"'),
    *((f" {mark}", mark) for mark in (":", ";", "!", "?", ",", ".")),
)
"""Replacements, in their order, that undo the tokenisation of the Penn Treebank."""


def detokenize(text: str) -> str:
    """Return text as it is written."""
    for old, new in DETOKENIZE:
        text = text.replace(old, new)
    return text


def parse(
    lines: Sequence[str], category: str, num_candidates: int = NUM_CANDIDATES
) -> Question | None:
    """Return the question of a block of numbered lines; None where it does not name ten candidates.

    Raises:
        ValueError: the lines are not such a block.
    """
    sentences = []
    for line in lines:
        number, space, text = line.strip().partition(" ")
        if not number.isdigit() or not space:
            raise ValueError(f"{line[:60]!r}: expected a number and a sentence")
        sentences.append(text)
    query, *fields = [part for part in sentences[-1].split("\t") if part]
    if len(fields) != 2 or query.count(GAP) < 1:
        raise ValueError(f"{query[:60]!r}: expected a sentence with {GAP}, answer and candidates")
    answer, candidates = fields[0], [word for word in fields[1].split("|") if word]
    if len(candidates) != num_candidates or candidates.count(answer) != 1:
        return None
    before, _, after = detokenize(query).partition(GAP)
    context = " ".join([*map(detokenize, sentences[:-1]), before])
    return choices(
        context,
        [word + after for word in candidates],
        candidates.index(answer),
        {"category": category},
        delimiter="",
    )


def blocks(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the blocks between blank lines, each with the number of its first line."""
    block: list[str] = []
    start = 1
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line)
        else:
            if block:
                yield start, block
            block, start = [], number + 1


class ChildrensBookTest(Benchmark):
    """Missing words in children's books, ten candidates."""

    name = "cbt"
    title = "CBT"
    files: ClassVar[tuple[DataFile, ...]] = tuple(
        DataFile(
            path=f"cbt/cbtest_{key}_test_2500ex.txt",
            url=ARCHIVE.url,
            sha256=None,
            archive=ARCHIVE,
            member=f"CBTest/data/cbtest_{key}_test_2500ex.txt",
        )
        for key in CATEGORIES
    )
    questions_per_file: ClassVar[int] = QUESTIONS_PER_FILE
    metrics = ("acc", "acc_norm", "acc_token")
    headline = "acc_token"
    groupings = ("category",)
    averaged_over = "category"

    def read(self, limit: int | None = None) -> list[Question]:
        """Return the questions, the first ``limit`` of each category.

        Raises:
            DataMissing, DataDamaged: see ``tasks.base.data_files``; also for a malformed question.
        """
        questions = []
        for file, category in zip(self.files, CATEGORIES.values(), strict=True):
            found = list(blocks(read_lines(file)))
            if len(found) != self.questions_per_file:
                raise DataDamaged(
                    f"{locate(file)}: {len(found)} questions, expected {self.questions_per_file}"
                )
            for start, block in found[:limit]:
                try:
                    question = parse(block, category)
                except ValueError as error:
                    raise DataDamaged(f"{locate(file)}:{start}: {error}") from error
                if question is not None:
                    questions.append(question)
        return questions

    def values(self, question: Question, answers: Sequence[Likelihood]) -> dict[str, float]:
        """Return the metrics of one question."""
        return choice_values(question, answers)
