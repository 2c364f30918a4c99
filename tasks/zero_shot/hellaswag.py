"""HellaSwag: which of four endings follows (Zellers et al., ACL 2019), on the validation set.

>>> question = parse({"activity_label": "Roof shingle removal", "ctx_a": "A man sits on a roof.",
...     "ctx_b": "he", "label": 3, "endings": ["is using wrap.", "is ripping tiles [step] off.",
...     "is holding a cube.", "starts pulling up roofing."]})
>>> question.context
'Roof shingle removal: A man sits on a roof. He'
>>> question.continuations[1], question.continuations[question.answer]
(' is ripping tiles off.', ' starts pulling up roofing.')

10,042 questions. What WikiHow left in the text is removed as lm-evaluation-harness does:
``[title]`` becomes a full stop, anything else in brackets goes, double spaces become single ones.
The MoEUT paper's number is ``acc_token``. Its code means to clean the text too, but its pattern
matches a backslash instead of a bracket, so that ``[header]``, ``[step]`` and their like stay in
its numbers.
"""

from __future__ import annotations

import re
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

COMMIT = "a29ff8e9a04bba4bd6588223785ce105328adc57"
VALIDATION = DataFile(
    path="hellaswag/hellaswag_val.jsonl",
    url=f"https://raw.githubusercontent.com/rowanz/hellaswag/{COMMIT}/data/hellaswag_val.jsonl",
    sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
    rows=10042,
)


def clean(text: str) -> str:
    """Return text without what WikiHow's pages left in it."""
    without = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return without.replace("  ", " ")


def parse(row: dict[str, Any]) -> Question:
    """Return the question of one line of the file."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return choices(clean(context), [clean(ending) for ending in row["endings"]], int(row["label"]))


class HellaSwag(Benchmark):
    """Everyday situations, four endings."""

    name = "hellaswag"
    title = "HellaSwag"
    files: ClassVar[tuple[DataFile, ...]] = (VALIDATION,)
    metrics = ("acc", "acc_norm", "acc_token")
    headline = "acc_token"

    def read(self, limit: int | None = None) -> list[Question]:
        """Return the questions of the validation set, or the first ``limit``."""
        (file,) = self.files
        return parse_rows(read_json_lines(file)[:limit], parse, file.path)

    def values(self, question: Question, answers: Sequence[Likelihood]) -> dict[str, float]:
        """Return the metrics of one question."""
        return choice_values(question, answers)
