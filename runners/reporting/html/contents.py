"""What the page shows besides scores: claims, example predictions, configs, where runs ran."""

from __future__ import annotations

import functools
import itertools
import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from runners.reporting import comparison
from runners.reporting.results import Outcome, SweepResults
from runners.reporting.statistics import LEVEL, TOO_SMALL, mean_and_std
from runners.reporting.tables import MISSING, Table, number
from tasks.base.lines import numbered_lines
from tasks.base.metrics import is_lower_better

# --- the headline -----------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """What stands first: sentences, each a paragraph or an item of a list."""

    compared: list[str]
    budget: list[str]
    claims: list[str]
    no_claims: list[str]


def headline(results: SweepResults) -> Headline:
    """Return what was compared, under which budget, and what can be claimed of it and what not."""
    if not any(run.result for run in results.runs):
        return Headline(
            [f"{len(results.runs)} runs planned."], [], [], ["No run has a result yet."]
        )
    claims, no_claims = _verdicts(results)
    variants = list(dict.fromkeys(setting.variant for setting in results.settings))
    task = next(run.result.task.name for run in results.runs if run.result is not None)
    split = comparison.common(results, results.headline_split) or "its main split"
    metric = results.headline_metric(results.settings[0])
    done = sum(run.status == "done" for run in results.runs)
    compared = [
        f"{', '.join(variants)} on {task}, by {metric} on {split}"
        f"{' (lower is better)' if is_lower_better(metric) else ''}.",
        f"{done} of {len(results.runs)} runs have a result; baseline: {results.baseline}.",
    ]
    if done < len(results.runs):
        no_claims.append(f"{len(results.runs) - done} runs are missing; means are over the others.")
    if results.ours:
        no_claims.append(f"Not among the paper's models: {', '.join(results.ours)}.")
    return Headline(compared, comparison.matching_notes(results), claims, no_claims)


def _verdicts(results: SweepResults) -> tuple[list[str], list[str]]:
    tests = comparison.against_baseline(results)
    claims, no_claims = [], []
    for setting in results.settings:
        test = tests.get(setting.hash)
        if test is None:
            continue
        metric = results.headline_metric(setting)
        mean = number(mean_and_std(comparison.headline_values(results, setting))[0], metric)
        pair = f"{setting.label} ({mean}) and {results.baseline}"
        if test.adjusted is None:
            no_claims.append(f"{pair}: {TOO_SMALL}; no corrected p can be below {LEVEL}.")
        elif not test.is_different:
            no_claims.append(
                f"{pair} cannot be told apart (p = {test.adjusted:.3f}, Holm-corrected)."
            )
        else:
            better = (test.difference < 0) == is_lower_better(metric)
            claims.append(
                f"{setting.label} ({mean}) is {'better' if better else 'worse'} than "
                f"{results.baseline} by {number(abs(test.difference), metric)} "
                f"(p = {test.adjusted:.3f}, Holm-corrected)."
            )
    return claims, no_claims


# --- example predictions ----------------------------------------------------------------

WRONG, RIGHT = 4, 2
"""Examples shown of each split and category of a model."""
MOST_OF_A_MODEL = 60
MOST = 1500
LONGEST = 240
"""Characters of a text that are shown."""


def examples(results: SweepResults) -> list[dict[str, Any]]:
    """Return example predictions of the first finished seed of each model, with what went wrong."""
    deep = [setting for setting in results.settings if setting.done]
    share = min(MOST_OF_A_MODEL, MOST // max(1, len(deep)))
    return [
        {"model": setting.label, "seed": run.seed, **row}
        for setting in deep
        for run in setting.done[:1]
        for row in itertools.islice(_chosen(run), share)
    ]


def _chosen(run: Outcome) -> Iterator[dict[str, Any]]:
    path = run.directory / "predictions.jsonl"
    if not path.is_file():
        return
    seen: Counter[tuple[str, str, bool]] = Counter()
    for _, line in numbered_lines(path.read_text(encoding="utf-8")):
        try:
            row = json.loads(line)
            kind = row["split"], str(row["category"]), bool(row["correct"])
            texts = {name: str(row[name]) for name in ("source", "target", "prediction")}
        except (ValueError, KeyError, TypeError):
            continue  # a damaged line is no reason to have no page
        seen[kind] += 1
        if seen[kind] > (RIGHT if kind[2] else WRONG):
            continue
        yield {
            "split": kind[0],
            "category": kind[1],
            "correct": kind[2],
            **{name: _cut(text) for name, text in texts.items()},
            "wrong": "" if kind[2] else what_went_wrong(row),
        }


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def what_went_wrong(row: dict[str, Any]) -> str:
    """Return in words where a wrong prediction leaves its target."""
    target, written = row["target"].split(), row["prediction"].split()
    pairs = zip(target, written, strict=False)
    place = next((i for i, (gold, own) in enumerate(pairs) if gold != own), None)
    if place is not None:
        differing = sum(a != b for a, b in zip(target, written, strict=False))
        return (
            f"token {place + 1} of {len(target)}: {written[place]} instead of {target[place]}"
            f"{f'; {differing} tokens differ' if differing > 1 else ''}"
        )
    if not written:
        return "nothing was written"
    if len(written) < len(target):
        return f"stops after {len(written)} of {len(target)} tokens"
    if len(written) > len(target):
        return f"goes on for {len(written) - len(target)} tokens after the target"
    return "the end was not written" if not row.get("finished", True) else "counted as wrong"


# --- configs ----------------------------------------------------------------------------


def configs(results: SweepResults) -> dict[str, str]:
    """Return the text of each model's config, that of its first run which has one."""
    found = {}
    for setting in results.settings:
        for run in setting.runs:
            path = run.directory / "config.yaml"
            if path.is_file():
                found[setting.label] = path.read_text(encoding="utf-8")
                break
    return found


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where it is there: a tenth of the time, which counts for a hundred configs."""


def differences_table(texts: dict[str, str]) -> Table | None:
    """Return the keys in which the models' configs differ; None where none do."""
    flat = {label: dict(_flat(yaml.load(text, _LOADER) or {})) for label, text in texts.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    rows = []
    for key in keys:
        cells = [values.get(key, MISSING) for values in flat.values()]
        if len(set(cells)) > 1 and key != "seed":
            rows.append([key, *cells])
    if not rows:
        return None
    return Table(
        name="configs",
        title="Where the configs differ",
        columns=["key", *flat],
        rows=rows,
        num_names=1 + len(flat),
    )


REMEMBERED = 20_000
"""Texts of which it is remembered how YAML reads them: runs share most of theirs."""


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if _is_plain(value) else json.dumps(value, ensure_ascii=False)


def _is_plain(value: Any) -> bool:
    """Return whether a value is text that YAML reads as text without quotes."""
    return isinstance(value, str) and _reads_as_itself(value)


@functools.lru_cache(maxsize=REMEMBERED)
def _reads_as_itself(value: str) -> bool:
    try:
        return bool(yaml.safe_load(value) == value)
    except yaml.YAMLError:
        return False


# --- where it ran -----------------------------------------------------------------------


def environment_table(results: SweepResults) -> Table | None:
    """Return what the runs say of machine, versions and code; with counts where not all say it."""
    found: dict[str, Counter[str]] = {}
    for run in results.runs:
        shown = {k: v for k, v in run.environment.items() if k not in ("argv", "seed", "starts")}
        for key, value in _flat(shown):
            found.setdefault(key, Counter())[value.strip('"')] += 1
    if not found:
        return None
    told = sum(bool(run.environment) for run in results.runs)
    rows = [
        [key, "; ".join(v if n == told else f"{v} ({n} of {told} runs)" for v, n in values.items())]
        for key, values in found.items()
        if key
    ]
    return Table(
        name="environment",
        title="Machine, versions and code",
        columns=["what", "value"],
        rows=rows,
        num_names=2,
    )


def commands(results: SweepResults) -> list[str]:
    """Return the commands that make the runs and this page again, in a checkout of the suite."""
    commits = {
        str(run.environment["git"]["commit"])
        for run in results.runs
        if isinstance(run.environment.get("git"), dict) and run.environment["git"].get("commit")
    }
    made = results.commands or [run.command for run in results.runs]
    return [
        *(f"git checkout {commit}" for commit in sorted(commits)),
        *map(_typed, [*made, results.page_command]),
    ]


def run_commands(results: SweepResults) -> list[str]:
    """Return for each run of a planned sweep the command that makes it alone, elsewhere."""
    return [_typed(run.command) for run in results.runs] if results.commands else []


def _typed(command: list[str]) -> str:
    return f"python -m {shlex.join(command)}"
