"""ARC-Easy: science questions of primary school (Clark et al. 2018, arXiv 1803.05457), test set.

>>> question = parse({"id": "MEA_2013_5_17", "answerKey": "C", "question": {
...     "stem": "Which is hottest?", "choices": [{"text": "ice", "label": "A"},
...     {"text": "tea", "label": "B"}, {"text": "lava", "label": "C"}]}})
>>> question.context, question.continuations[question.answer]
('Question: Which is hottest?\\nAnswer:', ' lava')

2376 questions, nearly all with four choices. Formatted as lm-evaluation-harness does, with its
``acc`` and ``acc_norm``. The MoEUT paper's number is ``acc_token``; its code leaves out questions
that do not have four choices, and so does that metric here.

Upstream publishes one archive of 681 MB, whose SHA-256 is checked when it is fetched; of the file
taken out of it the number of lines is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tasks.base.data_files import DataFile
from tasks.zero_shot.benchmark import (
    Benchmark,
    Likelihood,
    Question,
    choices,
    parse_rows,
    read_json_lines,
)
from tasks.zero_shot.scoring import choice_values

ARCHIVE = DataFile(
    path="arc_easy/ARC-V1-Feb2018.zip",
    url="https://s3-us-west-2.amazonaws.com/ai2-website/data/ARC-V1-Feb2018.zip",
    sha256="6d2d5ab50b2ceec6ba5f79c921be77cf2de712ea25a2b3f4fff3acc101cecfa0",
)
TEST = DataFile(
    path="arc_easy/ARC-Easy-Test.jsonl",
    url=ARCHIVE.url,
    sha256=None,
    rows=2376,
    archive=ARCHIVE,
    member="ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl",
)

PAPER_CHOICES = 4
"""Choices of the questions that the MoEUT paper's score counts."""


def parse(row: dict[str, Any]) -> Question:
    """Return the question of one line of the file."""
    options = row["question"]["choices"]
    return choices(
        f"Question: {row['question']['stem']}\nAnswer:",
        [option["text"] for option in options],
        [option["label"] for option in options].index(row["answerKey"]),
    )


class ArcEasy(Benchmark):
    """Science questions, mostly with four choices."""

    name = "arc_easy"
    title = "ARC-Easy"
    files: ClassVar[tuple[DataFile, ...]] = (TEST,)
    metrics = ("acc", "acc_norm", "acc_token")
    headline = "acc_token"

    def read(self, limit: int | None = None) -> list[Question]:
        """Return the questions of the test set, or the first ``limit``."""
        (file,) = self.files
        return parse_rows(read_json_lines(file)[:limit], parse, file.path)

    def values(self, question: Question, answers: Sequence[Likelihood]) -> dict[str, float]:
        """Return the metrics of one question; the paper's is of questions with four choices."""
        values = choice_values(question, answers)
        if len(answers) != PAPER_CHOICES:
            del values["acc_token"]
        return values
