"""Every mechanism with every block, form and position: builds, trains and decodes, or is refused.

The rows and columns come from the registries, so a new kind is tried with all that there is.
``docs/architectures.md`` has the table, which ``WRITE_TABLE=1 pytest tests/moeut/test_pairs.py``
writes anew.
"""

from __future__ import annotations

import functools
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
    kind,
)
from torch import Tensor
from torch.nn import functional as F

from moeut.base import Model
from moeut.blocks.attention import ATTENTION
from moeut.blocks.feed_forward import FEED_FORWARD
from moeut.blocks.positions import POSITION
from moeut.config import ModelConfig
from moeut.decoding import greedy_decode
from moeut.models import build
from moeut.options import OptionError

DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- pairs: written by tests/moeut/test_pairs.py -->", "<!-- end of pairs -->"

TOKENS = torch.tensor([[3, 4, 5, 3], [5, 4, 4, 6]])
EXPERTS = {**attention("switch_head"), **feed_forward("sigma_moe")}
THRESHOLD: Tree = {"halting": {"kind": "expert_choice", "evaluate": "threshold"}}
SHARES: Tree = {"halting": THRESHOLD["halting"] | {"capacity": [1.0, 0.75]}}
AROUND: dict[str, Tree] = {
    "own.routers: true": EXPERTS,
    "own.update: true": {"update": "copy_gate"},
    "shared_keys: update": SHARES,
    "state.output: final_norm": {"depth": {"coda": 1}},
    "update: deepnorm": {"norm": "post"},
}
"""What a mechanism acts on, where the plain model does not have it."""
ADAPTERS = {"rank": 1, "query": False, "key": False}
MECHANISMS = MECHANISMS | {
    "halting: expert_choice, threshold": THRESHOLD,
    "position: rotary, pairs": {"position": {"kind": "rotary", "pairs": True}},
    "position: relative, absolute_gate": {"position": {"kind": "relative", "absolute_gate": True}},
    "own.adapters: key": {"own": {"adapters": ADAPTERS | {"key": True}}},
    "own.adapters: feed_forward": {"own": {"adapters": ADAPTERS | {"feed_forward": True}}},
}
COLUMNS: dict[str, Tree] = {
    **{f"attention {name}": attention(name) for name in ATTENTION},
    **{f"feed_forward {name}": feed_forward(name) for name in FEED_FORWARD},
    **{f"form {name}": {"form": name} for name in FORMS},
    **{f"position {name}": {"position": kind(name)} for name in POSITION},
}
IS_DEFAULT = ("state.start: input", "update: residual", "norm: pre", "norm_kind: layer")
"""What a plain model has too, so that it makes no difference."""
ONE_POSITION = "position: a model has one; input_position takes another that is added"


def options_of(mechanism: str, column: str) -> tuple[Tree, Tree] | str:
    """Return the options of a pair, and those of the model without the mechanism; or why not."""
    tree = MECHANISMS[mechanism]
    around = dict(AROUND.get(mechanism, {}))
    if "depth" in tree:
        around["depth"] = {"group": tree["depth"]["group"]}
    if mechanism.startswith("state.start"):
        around["state"] = {"injection": "add"}
    if "position" in tree and column.startswith("position"):
        return ONE_POSITION
    return around | tree | COLUMNS[column], around | COLUMNS[column]


def choose(mechanism: str, column: str) -> tuple[ModelConfig, ModelConfig] | str:
    """Return the config of a pair in the first form that takes it, and without the mechanism.

    Columns of positions begin with one form after the other. The reason if no form takes it.
    """
    options = options_of(mechanism, column)
    if isinstance(options, str):
        return options
    paired, plain = options
    chosen = COLUMNS[column].get("form")
    forms = list(FORMS)
    if column.startswith("position"):
        first = (list(MECHANISMS).index(mechanism) + list(COLUMNS).index(column)) % len(forms)
        forms = forms[first:] + forms[:first]
    reasons = []
    for form in forms if chosen is None else (chosen,):
        trees = [{k: v for k, v in tree.items() if k != "form"} for tree in (paired, plain)]
        try:
            return configure(form, trees[0]), configure(form, trees[1])
        except OptionError as error:
            reasons.append(f"{error.option}: {error.expected}")
    return reasons[-1]


@functools.cache
def describe_plain(config: ModelConfig) -> tuple[dict[str, torch.Size], Tensor]:
    """Return the shapes of a model's parameters, and its first logits."""
    torch.manual_seed(0)
    model = build(config)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    return shapes, first_logits(model)


@torch.no_grad()
def first_logits(model: Model) -> Tensor:
    """Return logits in training, where top-k leaves tokens out whatever the weights are."""
    torch.manual_seed(1)
    logits: Tensor = model(*inputs_of(model.config)).logits
    return logits


def inputs_of(config: ModelConfig) -> tuple[Tensor, ...]:
    return (TOKENS, TOKENS) if config.form == "encoder_decoder" else (TOKENS,)


def run(config: ModelConfig, plain: ModelConfig, *, acts: bool) -> str | None:
    """Train three steps and decode; return why no cache can be used, if none can.

    What ``acts`` has parameters, all of which get gradients, or its logits are other than those of
    the plain model with the same weights.
    """
    torch.manual_seed(0)
    model = build(config)
    shapes, plain_logits = describe_plain(plain)
    stuck = {name for name, _ in model.named_parameters()}
    own = {name for name, w in model.named_parameters() if shapes.get(name) != w.shape}
    inputs = inputs_of(config)
    if acts and not own:
        apart = (first_logits(model) - plain_logits).abs().max()
        assert apart > 1e-3, "makes no difference"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        output = model(*inputs)
        logits = output.logits.flatten(0, -2)
        loss = F.cross_entropy(logits, torch.zeros(logits.shape[0], dtype=torch.int64))
        (loss + output.auxiliary_loss).backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None and bool(weight.grad.any()):
                stuck.discard(name)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert len(stuck) < len(shapes) // 2
    assert not stuck & own, f"learns nothing: {sorted(stuck & own)}"
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
        configs = choose(mechanism, column)
        if isinstance(configs, str):
            assert ": " in configs
            OUTCOMES[mechanism, column] = configs
            continue
        config, plain = configs
        try:
            reason = run(config, plain, acts=mechanism not in IS_DEFAULT)
        except Exception as error:  # noqa: BLE001 - every pair is tried before the first is told
            failed.append(f"{column} ({config.form}): {type(error).__name__}: {error}")
            continue
        OUTCOMES[mechanism, column] = None if reason is None else f"no cache: {reason}"
    assert failed == []
    assert None in {OUTCOMES[mechanism, column] for column in COLUMNS}, "refused by all"


def test_the_document_has_the_table() -> None:
    heads = {name: name.split()[1].replace("_", " ") for name in COLUMNS}
    assert_document_has(DOCUMENT, OUTCOMES, MECHANISMS, heads, begin=BEGIN, end=END)
