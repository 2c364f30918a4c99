"""Every mechanism of recurrence by its options, for the tests that try all of them.

The names come from the registries, so a new kind is tried with all that there is.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from moeut import architecture
from moeut.blocks.norms import NormKind, NormPlacement
from moeut.blocks.positions import INPUT_POSITION, POSITION
from moeut.blocks.updates import UPDATE
from moeut.config import Form, ModelConfig
from moeut.recurrence.conditioning import CONDITIONING
from moeut.recurrence.controller import HALTING
from moeut.recurrence.injection import INJECTION
from moeut.recurrence.schedule import RECURSION
from moeut.recurrence.start import START
from moeut.recurrence.state import State

Tree = dict[str, Any]
FORMS: dict[str, Tree] = {
    form: {
        "encoder_decoder": {"source_vocabulary_size": 7},
        "encoder_classifier": {"num_classes": 3},
        "encoder_labeller": {"num_classes": 3},
    }.get(form, {})
    for form in typing.get_args(Form)
}
OPTIONS: dict[str, Tree] = {
    "abacus": {"digits": [3], "source_digits": [3]},
    "token_mixing": {"max_length": 8, "hidden_size": 4},
    "mixture_of_attention": {"num_experts": 3},
    "switch_head": {"num_experts": 2, "top_k": 1},
    "sigma_moe": {"num_experts": 4, "expert_size": 4, "top_k": 2},
    "softmax_moe": {"num_experts": 3, "expert_size": 4, "top_k": 2},
    "dense": {},
}
HEADS = {"num_heads": 2}


def kind(name: str) -> Tree:
    """Return a block of a kind, small."""
    return {"kind": name, **OPTIONS.get(name, {})}


def attention(name: str) -> Tree:
    heads = {} if name == "token_mixing" else HEADS
    return {"attention": kind(name) | heads}


def feed_forward(name: str) -> Tree:
    block = kind(name)
    return {"feed_forward": block if "num_experts" in block else block | {"hidden_size": 8}}


def mechanisms() -> Iterator[tuple[str, Tree]]:
    """Yield the name and the options of each mechanism, one at a time."""
    for name in ("order: sequence", "prelude: 1", "coda: 1"):
        option, value = name.split(": ")
        depth = {"group": 2, option: int(value) if value.isdigit() else value}
        yield f"depth.{name}", {"depth": depth}
    for name in RECURSION:
        yield f"recursion: {name}", {"recursion": name}
    for name in START:
        yield f"state.start: {name}", {"state": {"start": name, "injection": "add"}}
    for name in INJECTION:
        yield f"state.injection: {name}", {"state": {"injection": name}}
    for name in typing.get_args(typing.get_type_hints(State)["output"]):
        yield f"state.output: {name}", {"state": {"output": name}}
    for name in HALTING:
        yield f"halting: {name}", {"halting": name}
    for name in CONDITIONING:
        yield f"conditioning: {name}", {"conditioning": name}
    for name in POSITION:
        yield f"position: {name}", {"position": kind(name)}
    for name in INPUT_POSITION:
        yield f"input_position: {name}", {"input_position": kind(name)}
    for name in UPDATE:
        yield f"update: {name}", {"update": name} | ({"norm": "post"} if name == "deepnorm" else {})
    for name in typing.get_args(NormPlacement):
        yield f"norm: {name}", {"norm": name}
    for name in typing.get_args(NormKind):
        yield f"norm_kind: {name}", {"norm_kind": name}
    yield "repeat_norm: true", {"repeat_norm": True}
    looped = {"state": {"start": "zero", "injection": "add"}, "repeat_norm": True}
    yield "looped: start zero, add, repeat_norm", looped
    for name in ("norms", "routers", "attention", "update", "encoding"):
        update = {"update": "copy_gate"} if name == "update" else {}
        yield f"own.{name}: true", {"own": {name: True}} | update
    yield "own.adapters.rank: 1", {"own": {"adapters": {"rank": 1}}}
    for name in ("first", "update"):
        yield f"shared_keys: {name}", {"shared_keys": name}
    yield "value_embeddings", {"value_embeddings": {"layers": "alternate"}}


MECHANISMS = {name: options for name, options in mechanisms() if not name.endswith(": none")}


def configure(form: str, options: Tree) -> ModelConfig:
    tree = {"depth": {"group": 1, "repeats": 2}, "position": "none", "d_model": 8}
    tree |= attention("dense") | feed_forward("dense") | options
    tree["depth"] = {"group": 1, "repeats": 2} | tree["depth"]
    return architecture("universal", form=form, vocabulary_size=8, **FORMS[form], **tree)  # type: ignore[arg-type]


Outcomes = Mapping[tuple[str, str], str | None]
"""By row and column of a table: None where it holds, or why not."""

UNKNOWN, FAILED = "its test has not run", "its test fails"


def outcome_table(rows: Collection[str], columns: Mapping[str, str], outcomes: Outcomes) -> str:
    """Return a table of outcomes, with the reasons numbered below.

    Args:
        rows: its mechanisms.
        columns: by the name in ``outcomes``, what stands at the head.
        outcomes: of each cell.
    """
    reasons: dict[str, int] = {}
    lines = [f"| mechanism | {' | '.join(columns.values())} |", "|" + "---|" * (len(columns) + 1)]
    for row in rows:
        cells = []
        for column in columns:
            reason = outcomes.get((row, column), UNKNOWN)
            number = None if reason is None else reasons.setdefault(reason, len(reasons) + 1)
            cells.append("✓" if number is None else str(number))
        lines.append(f"| `{row}` | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines)


def read_outcomes(table: str, columns: Mapping[str, str]) -> dict[tuple[str, str], str | None]:
    """Return the outcomes that ``outcome_table`` wrote, of those columns that are there."""
    heads, _, *lines = (line for line in table.splitlines() if line.startswith("|"))
    cut = [line.strip("| ").split(" | ") for line in (heads, *lines)]
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", table, flags=re.M))
    by_head = {head: name for name, head in columns.items()}
    # Heads may be alike, so they tell columns apart only where some are missing.
    is_whole = cut[0][1:] == list(columns.values())
    names = list(columns) if is_whole else [by_head[head] for head in cut[0][1:]]
    return {
        (row.strip("`"), name): reasons.get(cell)
        for row, *cells in cut[1:]
        for name, cell in zip(names, cells, strict=True)
    }


def assert_document_has(
    document: Path,
    outcomes: Outcomes,
    rows: Collection[str],
    columns: Mapping[str, str],
    *,
    begin: str,
    end: str,
) -> None:
    """Compare outcomes with the table between two marks, or write them there (``WRITE_TABLE=1``).

    Cells whose tests did not run in this process stay as they are. ``columns`` are as in
    ``outcome_table``.
    """
    text = document.read_text(encoding="utf-8")
    written = text[text.index(begin) : text.index(end)]
    known = read_outcomes(written, columns) | dict(outcomes)
    block = f"{begin}\n{outcome_table(rows, columns, known)}\n"
    if os.environ.get("WRITE_TABLE"):
        document.write_text(text.replace(written, block), encoding="utf-8")
    else:
        assert block == written, "write it anew: WRITE_TABLE=1"
        assert UNKNOWN not in written, "run what has not run with WRITE_TABLE=1"
        assert FAILED not in written, "a check that failed has no mark"
