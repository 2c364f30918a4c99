"""Every analysis by name, and what runs them on a finished run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from runners.analysis.attention import attention_maps
from runners.analysis.findings import Finding, NotThere
from runners.analysis.halting import halting_depth
from runners.analysis.lens import logit_lens
from runners.analysis.probes import linear_probes
from runners.analysis.routing import routing
from runners.analysis.states import state_change
from runners.analysis.swap import swapped_states
from runners.analysis.traces import Traces, trace
from runners.scoring.finished_run import FinishedRun
from tasks.base.options import nearest

ANALYSES: dict[str, Callable[[Traces], list[Finding]]] = {
    "lens": logit_lens,
    "states": state_change,
    "routing": routing,
    "attention": attention_maps,
    "halting": halting_depth,
    "values": linear_probes,
    "swap": swapped_states,
}
"""What ``--probe`` names."""


def analyse(
    run: FinishedRun, names: Sequence[str], *, split: str | None, rows: int, repeats: int | None
) -> tuple[list[Finding], dict[str, str]]:
    """Return what the analyses found, and of those that found nothing the reason.

    Args:
        run: the run.
        names: of analyses; none: all.
        split: its name; None: the last one that the run scores at its end.
        rows: at most so many.
        repeats: depth of the passes; None: the model's own.

    Raises:
        ValueError: an unknown analysis or split, or a depth that the model cannot take.
    """
    for name in names:
        if name not in ANALYSES:
            expected = f"expected one of {', '.join(ANALYSES)}{nearest(name, list(ANALYSES))}"
            raise ValueError(f"--probe {name}: {expected}")
    split = split or run.built.final_splits(run.config)[-1]
    known = list(run.built.task.splits())
    if split not in known:
        expected = f"expected one of {', '.join(known)}{nearest(split, known)}"
        raise ValueError(f"--split {split}: {expected}")
    found: list[Finding] = []
    left_out: dict[str, str] = {}
    wanted = list(names) or list(ANALYSES)
    try:
        traces = trace(
            run.model,
            run.built.objective,
            run.built.task.split(split),
            rows=rows,
            num_repeats=_as_models_take(run.built.default_repeats, repeats),
            device=run.device,
        )
    except NotThere as error:
        return [], dict.fromkeys(wanted, str(error))
    for name in wanted:
        try:
            found += ANALYSES[name](traces)
        except NotThere as error:
            left_out[name] = str(error)
    return found, left_out


def _as_models_take(own: int | list[int], repeats: int | None) -> Any:
    """Return a depth as the model takes it; None stays the model's own."""
    return repeats if repeats is None or isinstance(own, int) else (repeats, repeats)
