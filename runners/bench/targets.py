"""What the expert kernels are meant to reach on a GPU, and whether a result reaches it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from runners.bench.command import Section

LONG, LARGE = ("44m", "244m", "1b"), ("244m", "1b")
"""Sizes of the paper, at 64 x 1024 tokens."""

NOT_PUBLIC = ("ours", "ours, sorted before", "ours, shared", "dense", "loop", "all experts")


@dataclasses.dataclass(frozen=True)
class Target:
    """Hold one target: a number that is to be at least, or at most, another."""

    what: str
    measured: float | None
    """None if it was not measured."""

    wanted: float
    at_least: bool = True
    unit: str = "×"
    note: str = ""

    @property
    def verdict(self) -> str:
        """Return whether it is reached."""
        if self.measured is None:
            return "not measured"
        reached = self.measured >= self.wanted if self.at_least else self.measured <= self.wanted
        return "reached" if reached else "not reached"

    def cells(self) -> list[str]:
        """Return a line of the table."""
        factor = 100 if self.unit == "%" else 1
        form = ".0f" if self.unit == "%" else ".2f"
        measured = "" if self.measured is None else f"{factor * self.measured:{form}} {self.unit}"
        sign = "≥" if self.at_least else "≤"
        wanted = f"{sign} {factor * self.wanted:{form}} {self.unit}"
        return [self.what, self.note, wanted, measured, self.verdict]


def section(targets: list[Target]) -> Section:
    """Return targets as a table."""
    headings = ("target", "against", "wanted", "measured", "")
    return Section("Targets", headings, [target.cells() for target in targets])


def expert_targets(result: dict[str, Any]) -> Section:
    """Return the targets of the expert operations."""
    return section(list(_expert_targets(result)))


def _expert_targets(result: dict[str, Any]) -> Iterator[Target]:
    times: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        times.setdefault(row["size"], {})[row["candidate"]] = row
    both = "forward_backward_ms"

    def ours(size: str, key: str) -> float | None:
        row = times.get(size, {}).get("ours")
        return None if row is None else row[key]

    def speed_up(size: str, rows: dict[str, dict[str, Any]]) -> tuple[float | None, str]:
        own = ours(size, both)
        if own is None or not rows:
            return None, ""
        name, fastest = min(rows.items(), key=lambda item: item[1][both])
        return fastest[both] / own, name

    fraction = "roofline_forward_backward_fraction"
    for label in LARGE:
        size = f"mlp-{label}-64k"
        yield Target(f"{size}, roofline, f+b", ours(size, fraction), 0.5, unit="%")
        public = {k: row for k, row in times.get(size, {}).items() if k not in NOT_PUBLIC}
        ratio, name = speed_up(size, public)
        yield Target(f"{size}, fastest public kernel, f+b", ratio, 1.5, note=name)
    rewrites = {name for name, kind in result["peers"].items() if kind == "cvmm rewrite"}
    for use in ("value", "output"):
        for label in LONG:
            size = f"{use}-{label}-64k"
            yield Target(f"{size}, roofline, f+b", ours(size, fraction), 0.4, unit="%")
            theirs = {k: row for k, row in times.get(size, {}).items() if k in rewrites}
            ratio, name = speed_up(size, theirs)
            yield Target(f"{size}, CVMM of June 2026, f+b", ratio, 2.0, note=name)
    for label in LONG:
        sort, block = (ours(f"{use}-{label}-64k", both) for use in ("dispatch", "mlp"))
        share = None if sort is None or block is None else sort / block
        yield Target(
            f"dispatch-{label}-64k, share of the block, f+b", share, 0.05, at_least=False, unit="%"
        )


def model_targets(result: dict[str, Any]) -> Section:
    """Return the targets of whole training steps."""
    return section(list(_model_targets(result)))


def _model_targets(result: dict[str, Any]) -> Iterator[Target]:
    rows = {(row["size"], row["model"], row["mode"]): row for row in result["rows"]}
    for label in LARGE:
        for mode in ("eager", "compiled"):
            pair = [rows.get((label, model, mode)) for model in ("moeut", "transformer")]
            for key, what in (("step_ms", "step"), ("peak_memory_bytes", "peak memory")):
                ratio = _ratio(*(None if row is None else row[key] for row in pair))
                yield Target(
                    f"{label}, {what}, {mode}", ratio, 1.0, at_least=False, note="transformer"
                )
    for mode, graph in (("eager", "graph"), ("compiled", "compiled-graph")):
        pair = [rows.get(("small", "moeut", key)) for key in (mode, graph)]
        ratio = _ratio(*(None if row is None else row["step_ms"] for row in pair))
        yield Target(f"small, step, {mode}", ratio, 1.5, at_least=False, note=graph)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs
