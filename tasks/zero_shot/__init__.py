"""Zero-shot benchmarks: what a language model knows without being trained for it.

>>> get("lambada").headline
'greedy_acc'
"""

from __future__ import annotations

from tasks.base.options import nearest
from tasks.zero_shot.arc_easy import ArcEasy
from tasks.zero_shot.benchmark import Benchmark, Likelihood, Question
from tasks.zero_shot.blimp import Blimp
from tasks.zero_shot.cbt import ChildrensBookTest
from tasks.zero_shot.hellaswag import HellaSwag
from tasks.zero_shot.lambada import Lambada
from tasks.zero_shot.piqa import Piqa
from tasks.zero_shot.scoring import Result, Score, score

__all__ = ["ZERO_SHOT", "Benchmark", "Likelihood", "Question", "Result", "Score", "get", "score"]

ZERO_SHOT: dict[str, Benchmark] = {
    "blimp": Blimp(),
    "piqa": Piqa(),
    "hellaswag": HellaSwag(),
    "arc_easy": ArcEasy(),
    "lambada": Lambada(),
    "cbt": ChildrensBookTest(),
}


def get(name: str) -> Benchmark:
    """Return the benchmark of a name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in ZERO_SHOT:
        raise ValueError(
            f"--task {name}: expected one of {', '.join(ZERO_SHOT)}{nearest(name, ZERO_SHOT)}"
        )
    return ZERO_SHOT[name]
