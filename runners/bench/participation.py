"""Time a pass in which half of the tokens take no part beside the full pass.

A stack of width 256 repeats one layer; everyone takes part in the first repeat, and in later ones
those tokens that a coin said. Who halts is given, so that a controller costs what it costs and the
share is known. All ways run in turn in every round; medians of CPU time are shown, which what other
processes do does not enter. `share` is the part of all tokens' repeats that are computed, and
`ratio` the time over that of the full pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import moeut
from moeut.recurrence.exit_rules import ExitRule, RuleRun
from moeut.recurrence.halting import ActController
from moeut.recurrence.schedule import Place
from moeut.recurrence.stick_breaking import StickBreakingController
from runners.bench.command import add_json_option, check_counts, command_line, deliver
from runners.bench.timing import describe_machine
from runners.reporting.tables import Table

WIDTH = 256
BLOCKS: dict[str, dict[str, Any]] = {
    "dense": {
        "architecture": "universal",
        "position": "rotary",
        "attention": {"num_heads": 4},
        "feed_forward": {"hidden_size": 1024},
    },
    "experts": {
        "architecture": "moeut",
        "attention": {"num_heads": 4, "num_experts": 4, "top_k": 2},
        "feed_forward": {"num_experts": 16, "expert_size": 128, "top_k": 4},
    },
    "sut": {"architecture": "sut"},
}
CASES = [
    ("act", "dense"),
    ("act", "experts"),
    ("stick_breaking", "sut"),
    ("exit_rule", "dense"),
    ("exit_rule", "experts"),
    ("expert_choice", "dense"),
    ("expert_choice", "experts"),
]


def models(way: str, blocks: str, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield the model in which all tokens take part, and the one in which half of them halt."""
    generator = torch.Generator().manual_seed(0)
    halts = torch.rand(options.batch, options.length, generator=generator) < 0.5
    for name, out in (("full", torch.zeros_like(halts)), ("half", halts)):
        chosen: dict[str, Any] = dict(BLOCKS[blocks])
        if way == "act":
            chosen["halting"] = {"kind": "act"}
        elif way == "expert_choice":
            later = 0.5 if name == "half" else 1.0
            capacity = [1.0] + [later] * (options.repeats - 1)
            chosen["halting"] = {"kind": "expert_choice", "capacity": capacity}
        torch.manual_seed(0)
        config = moeut.architecture(
            chosen.pop("architecture"),
            form="decoder_lm",
            vocabulary_size=64,
            d_model=WIDTH,
            depth={"group": 1, "repeats": options.repeats},
            **chosen,
        )
        model: Any = moeut.build(config).eval()
        if way == "exit_rule":
            model.exit_rule = GivenRule(criterion="cosine", out=out)
        elif way != "expert_choice":
            _give(model.decoder.controllers["halting"], out)
        yield name, model


class GivenRule(ExitRule):
    """A rule that measures states as it does, and lets given tokens (B, T) leave."""

    def __init__(self, *, criterion: Any, out: Tensor) -> None:
        super().__init__(criterion=criterion)
        object.__setattr__(self, "out", out)

    def begin(self, about: Any, read_out: Callable[[Tensor], Tensor] | None) -> RuleRun:
        """Return the run of a pass."""
        return RuleRun(self, about, read_out)

    def leaves(self, measure: Tensor) -> Tensor:
        """Return the tokens that leave, whatever the ``measure`` of them is."""
        return self.out  # type: ignore[attr-defined,no-any-return]


def _give(controller: Any, out: Tensor) -> None:
    """Have a controller compute what it decides by, and halt the tokens ``out`` (B, T)."""
    never, surely = 1e-4, 1.0
    if isinstance(controller, ActController):
        compute = controller.probability

        def probability(x: Tensor, place: Place, about: Any) -> Tensor:
            return compute(x, place, about) * 0.0 + torch.where(out, surely, never)

        controller.probability = probability  # type: ignore[method-assign]
        return
    assert isinstance(controller, StickBreakingController)
    shares = controller.log_shares

    def log_shares(x: Tensor, place: Place, first_layer: int) -> tuple[Tensor, Tensor]:
        goes_on, halts = shares(x, place, first_layer)
        part = torch.where(out, surely - never, never)
        return goes_on * 0.0 + torch.log1p(-part), halts * 0.0 + part.log()

    controller.log_shares = log_shares  # type: ignore[method-assign]


def seconds(model: Any, tokens: Tensor, *, learns: bool) -> float:
    """Return the CPU time of a pass over tokens (B, T), with its backward pass where it learns."""
    model.train(learns)
    model.zero_grad(set_to_none=True)
    began = time.process_time()
    with torch.set_grad_enabled(learns):
        output = model(tokens)
        if learns:
            (output.logits.logsumexp(-1).mean() + output.auxiliary_loss).backward()
    return time.process_time() - began


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time every case; return the result with what it depends on."""
    torch.set_num_threads(1)
    tokens = torch.randint(0, 64, (options.batch, options.length))
    rows = []
    for way, blocks in CASES:
        made = dict(models(way, blocks, options))
        for learns in (False,) if way == "exit_rule" else (True, False):
            times: dict[str, list[float]] = {name: [] for name in made}
            for number in range(options.rounds + 1):
                for name, model in made.items():
                    spent = seconds(model, tokens, learns=learns)
                    times[name] += [spent] if number else []  # the first of each warms up
            half, full = (statistics.median(times[name]) for name in ("half", "full"))
            rows.append(
                {"way": way, "blocks": blocks, "learns": learns, "half": half, "full": full}
            )
    return {
        "benchmark": "participation",
        "command": command_line(options),
        "share": (1 + (options.repeats - 1) / 2) / options.repeats,
        "machine": describe_machine(torch.device("cpu")),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> Table:
    """Return what was measured, in milliseconds."""
    rows = [
        [
            row["way"],
            row["blocks"],
            "training" if row["learns"] else "evaluation",
            f"{1e3 * row['full']:.0f}",
            f"{1e3 * row['half']:.0f}",
            f"{row['half'] / row['full']:.2f}",
        ]
        for row in result["rows"]
    ]
    return Table(
        name="participation",
        title="Half of the tokens take no part",
        columns=["who halts", "blocks", "pass", "full, ms", "half, ms", "ratio"],
        rows=rows,
        num_names=3,
    )


def run(options: argparse.Namespace) -> int:
    """Measure and show; return the exit status."""
    check_counts(options, "batch", "length", "repeats", "rounds")
    result = measure(options)
    heading = f"share {result['share']:.3f}; {options.batch} rows of {options.length} tokens"
    deliver(result, options, heading, [table(result)])
    return 0


def add_parser(subparsers: Any, name: str) -> None:
    """Add this benchmark to the command line."""
    parser = subparsers.add_parser(
        name,
        help="a pass in which half of the tokens take no part",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=16, help="rows")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=9, help="applications of the layer")
    parser.add_argument("--rounds", type=int, default=9, help="timings of each way")
    add_json_option(parser)
    parser.set_defaults(run=run)
