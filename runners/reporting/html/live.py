"""How far a sweep is, from what its runs have on disk: for the page of ``runners.watch``."""

from __future__ import annotations

import html
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from runners.reporting.html.charts import all_charts
from runners.reporting.html.document import embedded, section, text, to_html
from runners.reporting.results import Outcome, SweepResults
from runners.reporting.tables import MISSING
from tasks.base.console import duration

SECONDS = 5
"""Time between two questions of the page to the server."""
LAST_LINES = 8
TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    steps: int | None
    """Planned; None where the config does not say."""
    loss: float | None
    seconds: float | None
    """Time that it has taken so far."""

    @property
    def share(self) -> float:
        """Return the part of the steps that is done, 0 to 1."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


def progress_of(run: Outcome) -> Progress:
    """Return how far a run is, from its learning curve, its config and the ages of its files."""
    rows = run.metrics_rows()
    losses = [row["loss"] for row in rows if "loss" in row]
    seconds = run.timings.wall_seconds if run.status == "done" and run.timings else None
    began, last = run.directory / "env.json", run.directory / "metrics.jsonl"
    if run.status == "running" and began.is_file() and last.is_file():
        seconds = max(0.0, last.stat().st_mtime - began.stat().st_mtime)
    return Progress(
        step=max((row["step"] for row in rows), default=0),
        steps=_planned_steps(run.directory / "config.yaml"),
        loss=losses[-1] if losses else None,
        seconds=seconds,
    )


def _planned_steps(path: Path) -> int | None:
    if not path.is_file():
        return None
    train = re.search(r"^train:\n((?:[ \n].*\n?)*)", path.read_text(encoding="utf-8"), re.M)
    found = re.search(r"^  steps: (\d+)$", train.group(1), re.M) if train else None
    return int(found.group(1)) if found else None


def seconds_left(results: SweepResults) -> float | None:
    """Return an estimate of the time until every run has ended; None while nothing tells.

    A whole run takes the mean of those that are done, or what those at work make expected; as many
    runs go on at a time as are at work now. A run that has failed is not waited for.
    """
    found = {run.directory: progress_of(run) for run in results.runs}
    done = [found[run.directory].seconds for run in results.runs if run.status == "done"]
    whole = [seconds for seconds in done if seconds]
    if not whole:
        whole = [p.seconds / p.share for p in found.values() if p.seconds and p.share]
    if not whole:
        return None
    mean = sum(whole) / len(whole)
    open_runs = [run for run in results.runs if run.status in ("running", "missing")]
    shares = [1 - found[run.directory].share for run in open_runs]
    at_work = sum(run.status == "running" for run in results.runs)
    return mean * sum(shares) / max(1, at_work)


def last_lines(path: Path) -> str:
    """Return the last lines of a file, nothing where it is not there."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LAST_LINES:])


def progress_html(results: SweepResults) -> str:
    """Return the rows of progress, the time left, and the failures with their last lines."""
    counts = Counter(run.status for run in results.runs)
    left = seconds_left(results) if counts["running"] else None
    words = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    parts = [f"<p>{len(results.runs)} runs: {words}"]
    parts.append(f"; about {duration(left)} left.</p>" if left is not None else ".</p>")
    rows = [
        _row(f"{setting.label} seed {run.seed}", run)
        for setting in results.settings
        for run in setting.runs
        if run.status == "running"
    ]
    if rows:
        head = "".join(f'<th scope="col">{n}</th>' for n in ("run", "done", "step", "loss"))
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")
    for setting in results.settings:
        for run in setting.runs:
            if run.status == "failed":
                lines = html.escape(last_lines(run.directory / "log.txt"))
                parts.append(f"<h3>{text(f'{setting.label} seed {run.seed}')} has failed</h3>")
                parts.append(f'<p>{text(run.message)}</p><pre tabindex="0">{lines}</pre>')
    return "".join(parts)


def _row(label: str, run: Outcome) -> str:
    found = progress_of(run)
    bar = f'<progress value="{found.share:.3f}" aria-label="{text(label)}"></progress>'
    steps = f"{found.step:,}" + (f" of {found.steps:,}" if found.steps else "")
    loss = MISSING if found.loss is None else f"{found.loss:.4f}"
    return (
        f'<tr><th scope="row">{text(label)}</th><td>{bar}</td><td>{steps}</td><td>{loss}</td></tr>'
    )


def live_page(results: SweepResults) -> str:
    """Return the page of a sweep under way, which asks its server for what is new.

    Raises:
        PageUnavailable: the plotting library is not installed.
    """
    body = f'<div id="progress-body">{progress_html(results)}</div>'
    body += '<p id="progress-state" role="status"></p>'
    return to_html(results, extra=section("progress", "Progress", body), follow=SECONDS)


def live_data(results: SweepResults) -> str:
    """Return as JSON what the page asks for: the progress, and the rows of every figure."""
    charts = [chart.to_json() for chart in all_charts(results)]
    return embedded({"progress": progress_html(results), "charts": charts})
