"""BLiMP: which of two sentences that differ minimally is grammatical (Warstadt et al., TACL 2020).

67 paradigms of 1000 pairs in 12 phenomena and 4 fields. The whole sentences are compared by their
log-likelihood, without normalisation, as lm-evaluation-harness and the MoEUT paper do; the headline
is ``acc``, the mean over the paradigms. Sentences that are equally likely count as right, as in
the harness; the paper's code counts them as wrong.

>>> line = {"sentence_good": "Who should Derek hug after shocking Richard?",
...         "sentence_bad": "Who should Derek hug Richard after shocking?",
...         "field": "syntax", "linguistics_term": "island_effects", "UID": "adjunct_island"}
>>> question = parse(line)
>>> question.context, question.continuations[question.answer]
('', ' Who should Derek hug after shocking Richard?')
>>> dict(question.groups)
{'field': 'syntax', 'phenomenon': 'island_effects', 'paradigm': 'adjunct_island'}

The files have a thirteenth term, ``s-selection``, whose two paradigms the paper counts under
argument structure, and write the field of ``principle_A_case_2`` in another way than its
siblings'; both are set right here. The paper moreover counts all of NPI licensing as semantics;
here two of its paradigms are under the field that the files give them, syntax_semantics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tasks.base.data_files import DataFile, file_table
from tasks.zero_shot.benchmark import (
    Benchmark,
    Likelihood,
    Question,
    choices,
    parse_rows,
    read_json_lines,
)
from tasks.zero_shot.scoring import choice_values

COMMIT = "3e56b06fcabca9b30822fc66435fca6b1aa40bb1"
REPOSITORY = f"https://raw.githubusercontent.com/alexwarstadt/blimp/{COMMIT}/data"

PHENOMENA = {"s-selection": "argument_structure"}
"""Terms of the files that the paper has under another phenomenon."""
FIELDS = {"syntax/semantics": "syntax_semantics"}


def _read_data_files() -> tuple[DataFile, ...]:
    return tuple(
        DataFile(path=f"blimp/{name}", url=f"{REPOSITORY}/{name}", sha256=sha256, rows=int(rows))
        for sha256, rows, name in file_table("blimp_sha256.txt")
    )


def parse(row: dict[str, Any]) -> Question:
    """Return the question of one line of the files."""
    return choices(
        "",
        [row["sentence_good"], row["sentence_bad"]],
        0,
        {
            "field": FIELDS.get(row["field"], row["field"]),
            "phenomenon": PHENOMENA.get(row["linguistics_term"], row["linguistics_term"]),
            "paradigm": row["UID"],
        },
    )


class Blimp(Benchmark):
    """Grammatical against ungrammatical sentences."""

    name = "blimp"
    title = "BLiMP"
    files: ClassVar[tuple[DataFile, ...]] = _read_data_files()
    metrics = ("acc",)
    headline = "acc"
    groupings = ("field", "phenomenon", "paradigm")
    averaged_over = "paradigm"

    def read(self, limit: int | None = None) -> list[Question]:
        """Return the pairs, of each paradigm the first ``limit``."""
        return [
            question
            for file in self.files
            for question in parse_rows(read_json_lines(file)[:limit], parse, file.path)
        ]

    def values(self, question: Question, answers: Sequence[Likelihood]) -> dict[str, float]:
        """Return ``acc`` of one pair."""
        return {"acc": choice_values(question, answers)["acc"]}
