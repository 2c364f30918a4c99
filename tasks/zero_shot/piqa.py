"""PIQA: which of two ways to reach a goal works (Bisk et al., AAAI 2020), on the validation set.

>>> question = parse({"goal": "dresser", "sol1": "replace drawer with bobby pin",
...                   "sol2": "finish, woodgrain with bobby pin"}, "1")
>>> question.context
'Question: dresser\\nAnswer:'
>>> question.continuations[question.answer]
' finish, woodgrain with bobby pin'

1838 questions; the right answers lie in a second file. Formatted as lm-evaluation-harness does,
with its ``acc`` and ``acc_norm``. The MoEUT paper's number is ``acc_token``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tasks.base.data_files import DataDamaged, DataFile, locate, read_lines
from tasks.zero_shot.benchmark import (
    Benchmark,
    Likelihood,
    Question,
    choices,
    parse_rows,
    read_json_lines,
)
from tasks.zero_shot.scoring import choice_values

COMMIT = "21edab439af693b961be2f069e8690a88d3b4e37"
REPOSITORY = f"https://raw.githubusercontent.com/ybisk/ybisk.github.io/{COMMIT}/piqa/data"
QUESTIONS = DataFile(
    path="piqa/valid.jsonl",
    url=f"{REPOSITORY}/valid.jsonl",
    sha256="93503cc97c679e459b065c3d13e848282e44b2a25213985bed3e5d458abef72d",
    rows=1838,
)
LABELS = DataFile(
    path="piqa/valid-labels.lst",
    url=f"{REPOSITORY}/valid-labels.lst",
    sha256="b4192dc3a2a0363d9d60ccf79800cbbe2f32ebb17726efdde6970e0b8131bceb",
    rows=1838,
)


def parse(row: dict[str, Any], label: str) -> Question:
    """Return the question of one line of the files and its line of the labels, 0 or 1."""
    return choices(
        f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], ("0", "1").index(label)
    )


class Piqa(Benchmark):
    """Physical common sense, two choices."""

    name = "piqa"
    title = "PIQA"
    files: ClassVar[tuple[DataFile, ...]] = (QUESTIONS, LABELS)
    metrics = ("acc", "acc_norm", "acc_token")
    headline = "acc_token"

    def read(self, limit: int | None = None) -> list[Question]:
        """Return the questions of the validation set, or the first ``limit``.

        Raises:
            DataMissing, DataDamaged: see ``tasks.base.data_files``; also if the labels are
                not as many as the questions.
        """
        questions, labels = self.files
        rows = read_json_lines(questions)
        answers = read_lines(labels)
        if len(rows) != len(answers):
            raise DataDamaged(f"{locate(labels)}: {len(answers)} labels for {len(rows)} questions")
        pairs = [{"row": row, "label": label} for row, label in zip(rows, answers, strict=True)]
        return parse_rows(pairs[:limit], lambda pair: parse(**pair), questions.path)

    def values(self, question: Question, answers: Sequence[Likelihood]) -> dict[str, float]:
        """Return the metrics of one question."""
        return choice_values(question, answers)
