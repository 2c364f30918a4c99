"""Models of one cost: a budget, the sizes that follow from it, and what it leaves unmet."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from moeut import sizing
from moeut.blocks.feed_forward import FEED_FORWARD
from moeut.blocks.feed_forward.base import FeedForwardOptions
from moeut.config import ENCODERS, ModelConfig
from moeut.design import Blueprint
from moeut.options import OptionError

TOLERANCE = 0.01
"""Relative distance from a budget up to which it counts as met."""

HEAD_SIZES = 16
"""Head sizes on either side of the nearest that are tried where a model does not take it."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a model is to cost; what is left out is free."""

    parameters: int | None = None
    """Parameters."""
    flops_per_token: float | None = None
    """Operations of a forward pass for each token read, two for each multiply-accumulate."""
    cache_bytes_per_token: int | None = None
    """Bytes that a key/value cache holds of a token, in float32."""

    def given(self) -> dict[str, float]:
        """Return the budgets that are given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Miss:
    """A budget that a model does not meet."""

    name: str
    budget: float
    found: float

    def __str__(self) -> str:
        budget, found = (
            f"{number:,.0f}" if number < 1e10 else f"{number:.4g}"
            for number in (self.budget, self.found)
        )
        off = self.found / self.budget - 1
        return f"{self.name} {budget} is not met: {found} ({off:+.1%})"


def free_options(kind: type[FeedForwardOptions], budgets: Collection[str]) -> dict[str, str]:
    """Return the option that each budget sizes, as far as a kind of feed-forward has one for it.

    Cache bytes size ``attention.head_size``; parameters the width of the feed-forward
    (``hidden_size`` or ``num_experts``); operations its active experts (``top_k``), or the width
    where it has no experts and no budget of parameters has taken it.
    """
    free = {}
    if "cache_bytes_per_token" in budgets:
        free["cache_bytes_per_token"] = "attention.head_size"
    if "parameters" in budgets:
        free["parameters"] = f"feed_forward.{kind.free_width}"
    if "flops_per_token" in budgets:
        if kind.active_width is not None:
            free["flops_per_token"] = f"feed_forward.{kind.active_width}"
        elif "parameters" not in budgets:
            free["flops_per_token"] = f"feed_forward.{kind.free_width}"
    return free


def with_free_options(
    tree: Mapping[str, Any], given: Mapping[str, Any], budgets: Collection[str]
) -> Blueprint:
    """Read ``tree``, whose free options budgets will replace.

    One that was ``given`` is refused, unless it is the one that stands there without: so a
    blueprint written out can be read again.

    Args:
        tree: the options of a blueprint, defaults filled in.
        given: those of them that were asked for.
        budgets: names of the budgets.

    Raises:
        OptionError: a value that is not valid, or has no effect.
    """
    block, heads = tree["feed_forward"], tree["attention"]
    kind = block.get("kind") if isinstance(block, Mapping) else None
    if not isinstance(kind, str) or kind not in FEED_FORWARD:
        return Blueprint.from_dict(tree)  # which refuses it
    chosen = FEED_FORWARD[kind]
    free = free_options(chosen, budgets)
    roomy = dict(block)
    if f"feed_forward.{chosen.active_width}" in free.values():
        roomy[str(chosen.active_width)] = 1
    if f"feed_forward.{chosen.free_width}" in free.values():
        roomy[chosen.free_width] = sys.maxsize
        wide = Blueprint.from_dict({**tree, "feed_forward": roomy}).feed_forward
        roomy = wide.with_width(max(chosen().width, wide.smallest_width)).to_dict()
    if "cache_bytes_per_token" in free and isinstance(heads, Mapping):
        heads = {name: value for name, value in heads.items() if name != "head_size"}
    found = Blueprint.from_dict({**tree, "feed_forward": roomy, "attention": heads})
    for budget, path in free.items():
        part, _, option = path.partition(".")
        asked = given.get(part)
        value = asked.get(option) if isinstance(asked, Mapping) else None
        if value not in (None, getattr(getattr(found, part), option)):
            said = f"has no effect with a budget of {budget}, which sizes it"
            raise OptionError(path, value, said)
    return found


def sized_to(
    config: ModelConfig,
    budget: Budget,
    *,
    sequence_length: int = 1,
    target_length: int | None = None,
) -> ModelConfig:
    """Return ``config`` with its free options such that it comes nearest to each budget.

    They are sized one after another, in the order of ``free_options``, so that none changes what
    an earlier budget counts, but that operations of a model without experts are.

    Args:
        config: the model, whose free options are replaced.
        budget: what it is to cost.
        sequence_length: tokens of a row, as ``sizing.macs_per_token`` takes them.
        target_length: the same of a target.

    Raises:
        OptionError: a budget below that of the smallest model, or one of a cache without a cache.
    """
    free = free_options(type(config.feed_forward), budget.given())

    def flops(config: ModelConfig) -> int:
        macs = sizing.macs_per_token(
            config, sequence_length=sequence_length, target_length=target_length
        )
        return 2 * macs

    if budget.cache_bytes_per_token is not None:
        config = _with_cache(config, budget.cache_bytes_per_token)
    if budget.parameters is not None:
        try:
            config = sizing.match_parameters(config, budget.parameters)
        except OptionError as error:
            raise OptionError("parameters", error.value, error.expected) from None
    if (option := free.get("flops_per_token")) is not None:
        assert budget.flops_per_token is not None
        config = _nearest(config, option.partition(".")[2], flops, budget.flops_per_token)
    return config


def misses(
    config: ModelConfig,
    budget: Budget,
    *,
    sequence_length: int = 1,
    target_length: int | None = None,
) -> list[Miss]:
    """Return the budgets that ``config`` does not come near, with what it costs instead."""
    macs = sizing.macs_per_token(
        config, sequence_length=sequence_length, target_length=target_length
    )
    found = {
        "parameters": sizing.count_parameters(config),
        "flops_per_token": 2 * macs,
        "cache_bytes_per_token": sizing.cache_bytes_per_token(config),
    }
    return [
        Miss(name, wanted, found[name])
        for name, wanted in budget.given().items()
        if abs(found[name] - wanted) > TOLERANCE * wanted
    ]


def _with_cache(config: ModelConfig, budget: int) -> ModelConfig:
    """Return ``config`` with heads of the size whose keys and values come nearest ``budget``."""
    if config.form in ENCODERS or not config.attention.has_keys:
        owner = f"form={config.form!r}" if config.form in ENCODERS else "attention without keys"
        raise OptionError("cache_bytes_per_token", budget, f"has no effect with {owner}")
    held = sizing.cache_bytes_per_token(config)
    stack = config.stacks["decoder"]
    core = stack.of_layer(config.depth.prelude).attention
    if core.value_heads[1] != core.head_size:
        said = "cannot be combined with attention.value_head_size, since it sizes both"
        raise OptionError("cache_bytes_per_token", budget, said)
    per_channel = 4 * 2 * core.key_width // core.head_size * stack.num_applications
    rest = held - per_channel * core.head_size  # what convolutions keep
    ideal = (budget - rest) / per_channel
    if ideal < 0.5:  # half a channel is still nearest to one
        said = f"the smallest head already holds {per_channel + rest}"
        raise OptionError("cache_bytes_per_token", budget, said)
    nearest = max(1, round(ideal))
    sizes = range(max(1, nearest - HEAD_SIZES), nearest + HEAD_SIZES + 1)
    for size in sorted(sizes, key=lambda size: abs(size - ideal)):
        sized = config.attention.with_head_size(size)
        with contextlib.suppress(OptionError):  # as one that rotary positions cannot rotate
            return dataclasses.replace(config, attention=sized)
    said = f"the model takes no head size near {nearest}, which that would be"
    raise OptionError("cache_bytes_per_token", budget, said)


def _nearest(
    config: ModelConfig, option: str, cost: Callable[[ModelConfig], int], budget: float
) -> ModelConfig:
    """Return ``config`` with an option of its feed-forward that brings ``cost`` nearest ``budget``.

    Cost grows with the option, from 1 on.
    """

    def at(size: int) -> ModelConfig:
        sized = dataclasses.replace(config.feed_forward, **{option: size})
        return dataclasses.replace(config, feed_forward=sized)

    most = config.feed_forward.width if option == config.feed_forward.active_width else None
    low, high = 1, most or 2
    smallest = cost(at(low))
    # Half a step below the smallest model is still nearest to it.
    if 2 * (smallest - budget) > cost(at(min(2, high))) - smallest:
        said = f"the smallest feed-forward already takes {smallest}"
        raise OptionError("flops_per_token", budget, said)
    while most is None and cost(at(high)) < budget:
        low, high = high, 2 * high
    while high - low > 1:  # the nearest lies between them
        middle = (low + high) // 2
        low, high = (middle, high) if cost(at(middle)) < budget else (low, middle)
    return min((at(low), at(high)), key=lambda each: abs(cost(each) - budget))
