"""Every mechanism with every kind of block and every form: builds, trains and decodes, or refused.

The rows and columns come from the registries, so a new kind is tried with all that there is.
``docs/architectures.md`` has the table, which ``WRITE_TABLE=1 pytest tests/moeut/test_pairs.py``
writes anew.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from moeut import architecture
from moeut.blocks.attention import ATTENTION
from moeut.blocks.feed_forward import FEED_FORWARD
from moeut.blocks.norms import NormKind, NormPlacement
from moeut.blocks.positions import INPUT_POSITION, POSITION
from moeut.blocks.updates import UPDATE
from moeut.config import Form, ModelConfig
from moeut.decoding import greedy_decode
from moeut.models import build
from moeut.options import OptionError
from moeut.recurrence.conditioning import CONDITIONING
from moeut.recurrence.controller import HALTING
from moeut.recurrence.injection import INJECTION
from moeut.recurrence.schedule import RECURSION
from moeut.recurrence.start import START
from moeut.recurrence.state import State

DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- pairs: written by tests/moeut/test_pairs.py -->", "<!-- end of pairs -->"

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
TOKENS = torch.tensor([[3, 4, 5, 3], [5, 4, 4, 6]])


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
COLUMNS: dict[str, Tree] = {
    **{f"attention {name}": attention(name) for name in ATTENTION},
    **{f"feed_forward {name}": feed_forward(name) for name in FEED_FORWARD},
    **{f"form {name}": {"form": name} for name in FORMS},
}


def configure(form: str, options: Tree) -> ModelConfig:
    tree = {"depth": {"group": 1, "repeats": 2}, "position": "none", "d_model": 8}
    tree |= attention("dense") | feed_forward("dense") | options
    tree["depth"] = {"group": 1, "repeats": 2} | tree["depth"]
    return architecture("universal", form=form, vocabulary_size=8, **FORMS[form], **tree)  # type: ignore[arg-type]


def choose(mechanism: str, column: str) -> ModelConfig | str:
    """Return the config of a pair in the first form that takes it, or why none does."""
    options = MECHANISMS[mechanism] | COLUMNS[column]
    chosen = options.pop("form", None)
    reasons = []
    for form in FORMS if chosen is None else (chosen,):
        try:
            return configure(form, options)
        except OptionError as error:
            reasons.append(f"{error.option}: {error.expected}")
    return reasons[-1]


def run(config: ModelConfig) -> str | None:
    """Train three steps and decode; return why no cache can be used, if none can."""
    torch.manual_seed(0)
    model = build(config)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    both = config.form == "encoder_decoder"
    inputs = (TOKENS, TOKENS) if both else (TOKENS,)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        output = model(*inputs)
        logits = output.logits.flatten(0, -2)
        loss = F.cross_entropy(logits, torch.zeros(logits.shape[0], dtype=torch.int64))
        (loss + output.auxiliary_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.isfinite(loss)
    after = list(model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    moved = sum(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert moved > len(before) // 2
    model.eval()
    with torch.no_grad():
        whole = model(*inputs).logits
        assert torch.isfinite(whole).all()
    if config.form not in ("decoder_lm", "encoder_decoder"):
        return None
    try:
        model.new_cache()
    except ValueError as error:
        return str(error)
    real = torch.ones_like(TOKENS, dtype=torch.bool)
    decoded = greedy_decode(
        model, TOKENS, real, bos=1, eos=2, pad=0, max_length=2, suppress_eos=True,
        bidirectional_prompt=False,
    )  # fmt: skip
    assert decoded.tokens.shape == (2, 2)
    return None


OUTCOMES: dict[tuple[str, str], str | None] = {}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_mechanism_with_every_block_and_form(mechanism: str) -> None:
    failed = []
    for column in COLUMNS:
        config = choose(mechanism, column)
        if isinstance(config, str):
            assert ": " in config
            OUTCOMES[mechanism, column] = config
            continue
        try:
            reason = run(config)
        except Exception as error:  # noqa: BLE001 - every pair is tried before the first is told
            failed.append(f"{column} ({config.form}): {type(error).__name__}: {error}")
            continue
        OUTCOMES[mechanism, column] = None if reason is None else f"no cache: {reason}"
    assert failed == []
    assert None in {OUTCOMES[mechanism, column] for column in COLUMNS}, "refused by all"


def table() -> str:
    """Return the table of all outcomes, with the reasons below."""
    reasons: dict[str, int] = {}
    groups = {name.split()[0]: [] for name in COLUMNS}
    for name in COLUMNS:
        groups[name.split()[0]].append(name.split()[1])
    heads = [name.split()[1].replace("_", " ") for name in COLUMNS]
    lines = ["| mechanism | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 1)]
    for mechanism in MECHANISMS:
        cells = []
        for column in COLUMNS:
            reason = OUTCOMES[mechanism, column]
            number = None if reason is None else reasons.setdefault(reason, len(reasons) + 1)
            cells.append("✓" if number is None else str(number))
        lines.append(f"| `{mechanism}` | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines)


def test_the_document_has_the_table() -> None:
    if len(OUTCOMES) < len(MECHANISMS) * len(COLUMNS):
        pytest.skip("needs the outcomes of all mechanisms, run before it")
    text = DOCUMENT.read_text(encoding="utf-8")
    if os.environ.get("WRITE_TABLE"):
        parted = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.S)
        DOCUMENT.write_text(parted, encoding="utf-8")
        text = parted
    assert f"{BEGIN}\n{table()}\n{END}" in text, "write it anew: WRITE_TABLE=1"
