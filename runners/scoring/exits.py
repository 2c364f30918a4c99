"""Tokens that leave early while a model is scored: by which rule, after how many repeats."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from moeut.options import OptionError
from moeut.recurrence.exit_rules import THRESHOLDS, ExitRule
from moeut.recurrence.inputs import StackOutput
from moeut.recurrence.stack import DepthStack
from runners.process.ranks import World
from runners.training.experiment import Built
from runners.training.operations import macs_at


class RepeatsUsed:
    """Counts the tokens that stacks read, and the repeats that these took."""

    def __init__(self) -> None:
        self._counts: dict[str, list[float]] = {}  # stack → [tokens, repeats]

    def count(self, stack: str, output: StackOutput) -> None:
        """Count a pass of a stack, if anything in it says what tokens took."""
        for name, taken in (output.decisions or {}).items():
            if name.endswith(".repeats"):
                counts = self._counts.setdefault(stack, [0, 0])
                counts[0] += int((taken > 0).sum())  # padding took none
                counts[1] += float(taken.sum())

    def share(self, world: World) -> None:
        """Add up the counts of all ranks, each of which has to call it."""
        total: dict[str, list[float]] = {}
        for counts in world.gather(self._counts):  # empty of a rank that read nothing
            for stack, (tokens, repeats) in counts.items():
                before = total.get(stack, [0, 0])
                total[stack] = [before[0] + tokens, before[1] + repeats]
        self._counts = total

    def means(self) -> dict[str, float]:
        """Return the mean repeats of a token by stack; a token counts each time that it is read."""
        return {
            stack: repeats / max(tokens, 1)
            for stack, (tokens, repeats) in sorted(self._counts.items(), reverse=True)
        }

    def metrics(self, built: Built, rule: ExitRule | None = None) -> dict[str, float]:
        """Return the mean repeats of a token, and what a token cost; empty if none counts.

        With two stacks there are two means. The cost is that of the tokens that took part, unless
        the states of halted tokens are updated too.
        """
        means = self.means()
        if not means:
            return {}
        named = {
            f"{stack}_repeats_used" if len(means) > 1 else "repeats_used": mean
            for stack, mean in means.items()
        }
        steering: Any = rule or built.model_config.halting
        if getattr(steering, "halted", "freeze") == "update":
            return named
        readings = next(iter(means.values())) if rule is not None and rule.reads_logits else 0.0
        used = macs_at(built.model_config, built.objective, means, readings=readings)
        return named | {"macs_per_token_used": used}


@contextlib.contextmanager
def exits(model: Any, rule: ExitRule | None) -> Iterator[RepeatsUsed]:
    """Let the tokens of a model leave by a rule, if any, and count the repeats that they take.

    Raises:
        ValueError: tokens of this model cannot leave by a rule.
    """
    used = RepeatsUsed()
    stacks = {name: part for name, part in model.named_children() if isinstance(part, DepthStack)}
    if rule is not None:
        last = next(reversed(stacks.values()))  # a decoder, where there are two
        if (reason := last.options.refuses_exits()) is not None:
            raise ValueError(f"--exit {rule.criterion}: {reason}")
    handles = [
        stack.register_forward_hook(lambda _, __, output, name=name: used.count(name, output))
        for name, stack in stacks.items()
    ]
    before, model.exit_rule = model.exit_rule, rule
    try:
        yield used
    finally:
        model.exit_rule = before
        for handle in handles:
            handle.remove()


def add_exit_argument(parser: argparse._ActionsContainer) -> None:
    """Add the option that names a rule by which tokens leave."""
    parser.add_argument(
        "--exit",
        type=_rule,
        metavar="RULE",
        help=f"let tokens leave once a repeat changes them by little: {', '.join(THRESHOLDS)}, or "
        "with a threshold of your own as kl=1e-4; what they took is printed as repeats used",
    )


def _rule(text: str) -> ExitRule:
    try:
        return ExitRule.parse(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
