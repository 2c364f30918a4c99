"""Mutants of the shipped configs: each is taken, or refused in one line.

A mutant is a shipped file with one to three faults of the kinds that people and editors make. No
answer but acceptance or a ValueError of one line is right, and what is accepted is written and
read back to the same run. ``nox -s mutants`` tries thousands; one that fails is named by its
number, from which it can be made again.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moeut import architectures
from runners.config.grid import expand, plan_record, read_sweep
from runners.config.run_file import from_yaml, read_run, to_yaml
from runners.sweep import job_of, run_labels

FOLDER = Path(__file__).parents[3] / "configs"
COUNT = int(os.environ.get("MOEUT_MUTANTS", "300"))

VALUES = [
    "0", "1", "-1", "3", "7", "1e9", "1e999", "-1e-999", ".nan", "-.inf", "18446744073709551616",
    "9" * 400, "9" * 5000, "1." + "0" * 5000, "0x10", "012", "1_000", "1:30", "2024-01-01", "null",
    "~", "true", "yes", "''", "' '", "'3'", "a", "[]", "{}", "[1]", "[1, 1]", "[[1]]", "[null]",
    "{a: 1}", "{kind: rotary}", "{kind: }", "{kind: 7}", "{kind: [x]}", "{values: [1, 2]}",
    "{value: 1}", "{values: 1}", "final", "best:", "best:test", "moeut", "universal", "moeut_44m",
    "*a", "&a 1", "&a [*a]", "!!int 3", "!!python/name:os.system", "!x {}", "? a", "- 1", "|", ">",
    "%", "@a", "`a`", "\t1", "1 # x", "1: 2", "a: b: c", "\u2028", "\ud7ff", "🙂", "/", "..", "%s",
    "{}.{}", "[/x]", "<<", "=", "244m.yaml", "mutant.yaml", ".", "/dev/null", "\\x00",
]  # fmt: skip
KEYS = [
    "<<", "", "''", "1", "null", "kind", "base", "seed", "seeds", "name", "model", "task", "train",
    "variants", "parameters", "exclude", "values", "model.kind", "model.depth.group", "a.b.c", ".",
    "early_terminate", "method", "headline", "ours", "num_layers", "attention", "position", "[1]",
    "train.", ".train", "é", "? x", "-", "preset", "architecture", "match_parameters", "match",
    "form",
]  # fmt: skip
PIECES = ["\0", "\t", "\r", "\x85", "\u2028", "\ufeff", " ", "\n", "{", "}", "[", "]", ":", "- ",
          "#", "'", '"', "&", "*", "!", "|", ",", "---\n", "...\n", "\x07", "[" * 2000]  # fmt: skip

PAIR = re.compile(r"([\w.+-]+)(: *)([^\n{},\[\]#]*)")

Mutate = Callable[[str, random.Random], str]


def _replace(text: str, found: re.Match[str] | None, group: int, new: str) -> str:
    return text if found is None else text[: found.start(group)] + new + text[found.end(group) :]


def _pair(text: str, draw: random.Random) -> re.Match[str] | None:
    found = [
        m
        for m in PAIR.finditer(text)
        if "#" not in text[text.rfind("\n", 0, m.start()) + 1 : m.start()]
    ]
    return draw.choice(found) if found else None


def another_value(text: str, draw: random.Random) -> str:
    return _replace(text, _pair(text, draw), 3, draw.choice(VALUES))


def a_value_from_elsewhere(text: str, draw: random.Random) -> str:
    other = _pair(text, draw)
    return text if other is None else _replace(text, _pair(text, draw), 3, other[3])


def another_key(text: str, draw: random.Random) -> str:
    return _replace(text, _pair(text, draw), 1, draw.choice(KEYS))


def a_key_from_elsewhere(text: str, draw: random.Random) -> str:
    other = _pair(text, draw)
    return text if other is None else _replace(text, _pair(text, draw), 1, other[1])


def a_letter_wrong(text: str, draw: random.Random) -> str:
    found = _pair(text, draw)
    if found is None:
        return text
    at = draw.randrange(found.start(1), found.end(1))
    return text[:at] + draw.choice(["", "x", text[at] * 2]) + text[at + 1 :]


def a_line_elsewhere(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    line = draw.choice(lines)
    action = draw.randrange(4)
    if action != 3:
        lines.remove(line)
    if action != 0:
        lines.insert(draw.randint(0, len(lines)), line)
    return "".join(lines)


def another_indent(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    number = draw.randrange(len(lines))
    lines[number] = draw.choice(["", " ", "    ", "\t", "- "]) + lines[number].lstrip()
    return "".join(lines)


def a_piece_more(text: str, draw: random.Random) -> str:
    at = draw.randint(0, len(text))
    return text[:at] + draw.choice(PIECES) + text[at + draw.choice([0, 0, 1, 5]) :]


def cut_short(text: str, draw: random.Random) -> str:
    return text[: draw.randint(0, len(text))]


MUTATIONS: list[Mutate] = [
    *(another_value, another_value, another_value, a_value_from_elsewhere, another_key),
    *(a_key_from_elsewhere, a_letter_wrong, a_line_elsewhere, another_indent, a_piece_more),
    cut_short,
]


def mutant(text: str, draw: random.Random) -> str:
    """Return the text with one to three faults, most of them behind its header."""
    header = re.match(r"(#[^\n]*\n)*\n*", text)
    assert header is not None
    body = text[header.end() :]
    for _ in range(draw.choice([1, 1, 2, 3])):
        body = draw.choice(MUTATIONS)(body, draw) or body
    return text[: draw.choice([0, header.end()])] + body


def check(path: Path) -> None:
    """Do with a config what a command does before it reads data."""
    if "\nvariants" not in path.read_text(encoding="utf-8", errors="replace"):
        configs = [read_run(path)]
    else:
        sweep = read_sweep(path)
        planned = expand(sweep, data_hash=lambda task: "")
        plan_record(sweep, planned)
        assert len(set(run_labels(planned).values())) == len(planned)
        for run in planned:
            job_of(run)
        configs = list({run.hash: run.config for run in planned}.values())[:4]
    for config in configs:
        assert from_yaml(to_yaml(config)) == config
        architectures.configure(
            config.model.blueprint,
            form=config.model.form,
            match_parameters=config.match.parameters,
            vocabulary_size=100,
            source_vocabulary_size=100 if config.model.form == "encoder_decoder" else None,
            num_classes=5 if config.model.form == "encoder_classifier" else None,
        )


@pytest.mark.timeout(3000)
def test_mutants_of_configs_are_taken_or_refused_in_one_line(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    shipped = sorted(Path("configs").rglob("*.yaml"))
    originals = {path: path.read_text(encoding="utf-8") for path in shipped}
    taken, failures = 0, []
    for number in range(COUNT):
        draw = random.Random(f"configs {number}")
        source = draw.choice(shipped)
        text = mutant(originals[source], draw)
        path = source.with_name("mutant.yaml")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            check(path)
            taken += 1
        except ValueError as error:
            shown = str(error)
            if not shown.strip() or len(shown.splitlines()) != 1 or len(shown) > 2000:
                failures.append(f"{number} ({source}): {shown[:300]!r}")
        except Exception as error:  # noqa: BLE001 - what is looked for
            failures.append(f"{number} ({source}): {type(error).__name__}: {str(error)[:300]}")
        finally:
            path.unlink()
    assert not failures, "\n".join(failures)
    assert (
        COUNT / 40 < taken < COUNT * 3 / 4
    )  # neither so gentle nor so rough that nothing is tried
