"""Results of benchmarks that survive a stop: written after every size, continued by --resume.

A result is plain data: the conditions that it depends on, ``rows`` of numbers, ``failures`` (the
error of each size or competitor that has one), the sizes ``done``, and the one that runs now
(``trying``): a size, or one competitor in it as ``size, competitor``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runners.bench.timing import DeviceFailedError
from tasks.base.storage import write_json


def fresh_result(
    benchmark: str, command: str, machine: dict[str, Any], **conditions: Any
) -> dict[str, Any]:
    """Return a result without rows: what it depends on, and where it stands."""
    versions = (machine.get(key) for key in ("torch", "triton"))
    hardware = [machine.get("gpu", machine["cpu"]), *versions]
    return {
        "benchmark": benchmark,
        "command": command,
        "conditions": ", ".join(str(one) for one in hardware),
        "machine": machine,
        **conditions,
        "rows": [],
        "failures": {},
        "done": [],
        "trying": None,
    }


def resumed(options: argparse.Namespace, fresh: dict[str, Any], *same: str) -> dict[str, Any]:
    """Return the result in the file of ``--json`` to go on with, or ``fresh`` without --resume.

    ``rows``, ``failures`` and ``done`` come from the file.

    Raises:
        ValueError: the file is of another benchmark or of other conditions (``same``), or is not
            named.
    """
    if not options.resume:
        return fresh
    if options.json is None:
        raise ValueError("--resume: expected --json FILE too")
    if not options.json.exists():
        return fresh
    before = json.loads(options.json.read_text(encoding="utf-8"))
    for key in ("benchmark", "conditions", *same):
        if before.get(key) != fresh[key]:
            raise ValueError(
                f"--resume: {options.json} has {key} {before.get(key)!r}: expected {fresh[key]!r}"
            )
    return fresh | {key: before[key] for key in ("rows", "failures", "done")}


def measure_sizes(
    result: dict[str, Any],
    options: argparse.Namespace,
    measure: Callable[[str], list[dict[str, Any]]],
) -> None:
    """Measure the sizes that are not done, and write the result after each.

    Raises:
        DeviceFailedError: the device works no longer; what it failed in counts as failed.
    """
    for name in options.sizes:
        if name in result["done"]:
            continue
        result["trying"] = name
        save(result, options)
        try:
            rows = measure(name)
        except DeviceFailedError as error:
            record_failure(result, str(error))
            save(result, options)
            raise
        result["rows"] += rows
        result["done"].append(name)
        result["trying"] = None
        save(result, options)


def record_failure(result: dict[str, Any], problem: str) -> None:
    """Say why what was being tried has failed, and that it is not to be tried again."""
    trying = result["trying"]
    size, is_competitor, _ = trying.partition(", ")
    result["failures"][trying] = problem
    if not is_competitor:
        result["done"].append(size)
    result["trying"] = None


def save(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write a result, or what there is of it, to ``--json`` where that is given."""
    if options.json is not None:
        write_result(options.json, result)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result to a file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def notes_of(result: dict[str, Any]) -> list[str]:
    """Return a line for each thing that was left out."""
    return [f"{where}: left out, {problem}" for where, problem in result["failures"].items()]
