"""Every mechanism with every kind of block and every form: builds, trains and decodes, or refused.

The rows and columns come from the registries, so a new kind is tried with all that there is.
``docs/architectures.md`` has the table, which ``WRITE_TABLE=1 pytest tests/moeut/test_pairs.py``
writes anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mechanism_cases import (
    FORMS,
    MECHANISMS,
    Tree,
    assert_document_has,
    attention,
    configure,
    feed_forward,
)
from torch.nn import functional as F

from moeut.blocks.attention import ATTENTION
from moeut.blocks.feed_forward import FEED_FORWARD
from moeut.config import ModelConfig
from moeut.decoding import greedy_decode
from moeut.models import build
from moeut.options import OptionError

DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- pairs: written by tests/moeut/test_pairs.py -->", "<!-- end of pairs -->"

TOKENS = torch.tensor([[3, 4, 5, 3], [5, 4, 4, 6]])
COLUMNS: dict[str, Tree] = {
    **{f"attention {name}": attention(name) for name in ATTENTION},
    **{f"feed_forward {name}": feed_forward(name) for name in FEED_FORWARD},
    **{f"form {name}": {"form": name} for name in FORMS},
}


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


def test_the_document_has_the_table() -> None:
    heads = {name: name.split()[1].replace("_", " ") for name in COLUMNS}
    assert_document_has(DOCUMENT, OUTCOMES, MECHANISMS, heads, begin=BEGIN, end=END)
