"""LAMBADA: the last word of a passage (Paperno et al., ACL 2016), in OpenAI's version of the test
set.

>>> question = parse({"text": "He looked at the sea, and the sea looked back at him"})
>>> question.context, question.continuations
('He looked at the sea, and the sea looked back at', (' him',))

5153 passages. The word counts as right (``greedy_acc``) if each of its tokens is the most likely
one after those before it; that is the number of the MoEUT paper and the ``acc`` of lm-evaluation-
harness's ``lambada_openai``. ``perplexity`` is the harness's, of the whole last word;
``token_perplexity``, of its tokens, is the number that the paper's code logs.
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
from tasks.zero_shot.scoring import word_values

TEST = DataFile(
    path="lambada/lambada_test.jsonl",
    url="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
    sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    rows=5153,
)


def parse(row: dict[str, Any]) -> Question:
    """Return the passage of one line of the file, cut before its last word."""
    context, space, word = row["text"].rpartition(" ")
    return choices(context, [word], 0, delimiter=space)


class Lambada(Benchmark):
    """Prediction of a last word that needs the whole passage."""

    name = "lambada"
    title = "LAMBADA"
    files: ClassVar[tuple[DataFile, ...]] = (TEST,)
    metrics = ("greedy_acc", "perplexity", "token_perplexity")
    headline = "greedy_acc"

    def read(self, limit: int | None = None) -> list[Question]:
        """Return the passages, or the first ``limit``."""
        (file,) = self.files
        return parse_rows(read_json_lines(file)[:limit], parse, file.path)

    def values(self, question: Question, answers: Sequence[Likelihood]) -> dict[str, float]:
        """Return the metrics of one passage."""
        (answer,) = answers
        return word_values(answer)
