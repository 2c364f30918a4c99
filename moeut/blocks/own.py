"""What each repeat of a shared layer has of its own, and what is shared by all of them.

Experts and the weights of a feed-forward are always shared. What may be a repeat's own are the
norms, the routers, the attention, the update's gate (arXiv 2605.09165 compares such choices for
mixtures of experts), low-rank adapters beside shared projections (arXiv 2410.20672)

    y = W x + scaling · B (A x)

and a factor for each channel after a recursion. A repeat beyond those that there are parameters for
uses those of the last one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from moeut import ops
from moeut.blocks.roles import Role, Roles, constant
from moeut.options import Options, require, require_finite

Part = TypeVar("Part", bound=nn.Module | nn.Parameter | None)


@dataclass(frozen=True, kw_only=True)
class Adapters(Options):
    """Low-rank changes of shared projections, others in each repeat (relaxed recursion)."""

    rank: int = 0
    """Rank of a change, at most that of the weight that it changes; 0: there are none."""
    scaling: float = 1.0
    """Factor on every change."""
    alpha: float = 0.0
    """Factor on a change over its rank, instead of ``scaling``; 0: it is ``scaling``."""
    query: bool = True
    """Change the queries' projection."""
    key: bool = True
    """Change the keys' projection."""
    value: bool = False
    """Change the values' projection, where it has no experts."""
    output: bool = False
    """Change the projection of what the heads give, where it has no experts."""
    feed_forward: bool = False
    """Change projections of the feed-forward, where it has no experts."""
    feed_forward_parts: tuple[str, ...] = ()
    """Which of them, of ``gate``, ``up`` and ``down``; empty: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank >= 0, "rank", self.rank, "must be a whole number of at least 0")
        require_finite(self, "scaling", "alpha")
        ok = not self.alpha or self.scaling == 1.0
        require(ok, "scaling", self.scaling, "has no effect beside alpha; expected one of the two")
        ok = self.feed_forward or not self.feed_forward_parts
        said = "has no effect with feed_forward=false"
        require(ok, "feed_forward_parts", list(self.feed_forward_parts), said)
        chosen = bool(self.of_attention()) or self.feed_forward
        said = "changes nothing: query, key, value, output and feed_forward are all false"
        require(chosen or not self.rank, "rank", self.rank, said)

    def of_attention(self) -> tuple[str, ...]:
        """Return the names of the projections of an attention that are changed."""
        return tuple(n for n in ("query", "key", "value", "output") if getattr(self, n))

    def of_feed_forward(self, projections: tuple[str, ...]) -> tuple[str, ...]:
        """Return which ``projections`` of a feed-forward are changed."""
        if not self.feed_forward:
            return ()
        return self.feed_forward_parts or projections

    def factor(self, rank: int) -> float:
        """Return the factor on a change of this rank."""
        return self.alpha / rank if self.alpha else self.scaling


@dataclass(frozen=True, kw_only=True)
class Own(Options):
    """What each repeat has of its own."""

    norms: bool = False
    """Norms of the layers."""
    routers: bool = False
    """Routers of experts, and gates of heads."""
    attention: bool = False
    """Attention with its routers and positions, but for experts of values and outputs."""
    update: bool = False
    """The copy gate, with the norm of what it lets in."""
    adapters: Adapters = field(default_factory=Adapters)
    """Low-rank changes of shared projections."""
    encoding: bool = False
    """A factor for each channel of the state after a recursion: after the last layer of the group,
    with ``order: sequence`` after every application."""

    def __post_init__(self) -> None:
        super().__post_init__()
        adapts = self.adapters.rank and bool(self.adapters.of_attention())
        said = "has no effect on projections that adapters.rank changes; expected one of the two"
        require(not (self.attention and adapts), "attention", self.attention, said)

    @property
    def is_nothing(self) -> bool:
        """Whether repeats share everything."""
        parts = (self.norms, self.routers, self.attention, self.update, self.encoding)
        return not any(parts) and not self.adapters.rank

    def check(
        self,
        heads: Relaxable,
        mapping: Relaxable,
        named: Mapping[str, str],
        *,
        has_gate: bool,
        shared_keys: str,
    ) -> None:
        """Raise ``OptionError`` for what these blocks cannot have for each repeat.

        Args:
            heads: the attention.
            mapping: the feed-forward.
            named: what messages call attention, feed_forward and update.
            has_gate: whether the update has parameters.
            shared_keys: the option of that name.
        """
        adapters = self.adapters
        if shared_keys == "first":
            said = "has no effect on keys and values, which shared_keys=first takes from the first"
            for name in ("key", "value") if adapters.rank else ():
                require(not getattr(adapters, name), f"adapters.{name}", True, said)
            require(not self.attention, "attention", True, said)
        said = f"has no effect with {named['update']}, which has no parameters"
        require(has_gate or not self.update, "update", True, said)
        both = f"{named['attention']} and {named['feed_forward']}"
        said = f"has no effect with {both}, which have no router and no gate"
        require(not self.routers or heads.decides or mapping.decides, "routers", True, said)
        for name in adapters.of_attention() if adapters.rank else ():
            said = (
                f"{named['attention']} has no dense projection there that an adapter could change; "
                f"expected {', '.join(heads.projections) or 'none in attention'}"
            )
            require(name in heads.projections, f"adapters.{name}", True, said)
        said = f"{named['feed_forward']} has no dense layer to adapt"
        wanted = bool(adapters.rank) and adapters.feed_forward
        require(not wanted or bool(mapping.projections), "adapters.feed_forward", True, said)
        chosen = adapters.feed_forward_parts
        said = f"expected some of {', '.join(mapping.projections)} with {named['feed_forward']}"
        known = set(chosen) <= set(mapping.projections)
        require(not wanted or known, "adapters.feed_forward_parts", list(chosen), said)


# --- one of each for every repeat -------------------------------------------------------


class PerRepeat(nn.ModuleList):
    """Modules of one kind, each of one repeat; the last serves all later repeats, too."""


@overload
def of_repeat(part: nn.ParameterList, repeat: int | None) -> nn.Parameter: ...
@overload
def of_repeat(part: Part, repeat: int | None) -> Part: ...
def of_repeat(part: Any, repeat: int | None) -> Any:
    """Return what the repeat uses of a part of a layer: its own, or the part itself if shared."""
    if isinstance(part, PerRepeat | nn.ParameterList):
        assert repeat is not None, "outside the repeats there is nothing of their own"
        return part[index_of(part, repeat)]
    return part


def index_of(part: nn.Module | nn.Parameter | None, repeat: int | None) -> int:
    """Return which of its copies a part uses in a repeat; 0 if it is shared."""
    if isinstance(part, PerRepeat | nn.ParameterList) and repeat is not None:
        return min(repeat, len(part) - 1)
    return 0


def per_repeat(build: Callable[[], Any], count: int) -> Any:
    """Return the module that ``build`` makes, or one for each of ``count`` repeats if not 0."""
    return PerRepeat(build() for _ in range(count)) if count else build()


def copies(part: nn.Module) -> Iterator[Any]:
    """Yield the part itself or, if each repeat has its own, all of them."""
    yield from part if isinstance(part, PerRepeat) else (part,)


def of_one_repeat(module: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of ``module`` that one repeat uses, where others are shared by all."""
    kinds = (PerRepeat, nn.ParameterList)
    lists = [part for part in module.modules() if isinstance(part, kinds)]
    return {parameter for part in lists for parameter in part.parameters()}


# --- inside a block ---------------------------------------------------------------------


class Adapter(nn.Module):
    """scaling · B (A x), with A (r, fan_in) and B (fan_out, r) of each repeat."""

    def __init__(self, options: Adapters, weight: Tensor, count: int) -> None:
        super().__init__()
        fan_out, fan_in = weight.shape
        rank = min(options.rank, fan_in, fan_out)
        self.scaling = options.factor(rank)
        self.down = _parameters(torch.empty(rank, fan_in), count)
        self.up = _parameters(torch.empty(fan_out, rank), count)

    def roles(self) -> Roles:
        """Return the roles: B is 0, so that a new adapter changes nothing."""
        rank, fan_in = self.down[0].shape
        return {"down": Role("weight", fan_in, rank, is_matrix=False), "up": constant(0.0)}

    def forward(self, x: Tensor, repeat: int | None) -> Tensor:  # (..., fan_out)
        """Return the change of a projection of x (..., fan_in)."""
        down, up = of_repeat(self.down, repeat), of_repeat(self.up, repeat)
        return ops.linear(ops.linear(x, down), up) * self.scaling


class Relaxable(nn.Module):
    """A block that may have routers or adapters of each repeat, beside weights of all of them."""

    routers: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that decide experts or gates, where it has them."""
    projections: ClassVar[tuple[str, ...]] = ()
    """Names of the dense layers that an adapter can change."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters: nn.ModuleDict | None = None

    @property
    def decides(self) -> bool:
        """Whether the block has a router or a gate."""
        return any(getattr(self, name, None) is not None for name in self.routers)

    def separate_routers(self, count: int) -> None:
        """Give each of ``count`` repeats routers of its own."""
        for name in self.routers:
            router = getattr(self, name)
            if isinstance(router, nn.Parameter):
                delattr(self, name)
                setattr(self, name, _parameters(router.detach(), count))
            elif isinstance(router, nn.Module):
                setattr(self, name, PerRepeat(copy.deepcopy(router) for _ in range(count)))

    def adapt(self, options: Adapters, names: tuple[str, ...], count: int) -> None:
        """Give each of ``count`` repeats an adapter of each of the dense layers ``names``."""
        self.adapters = nn.ModuleDict(
            # A convolution is a dense layer of the tokens that it reads, side by side.
            {n: Adapter(options, getattr(self, n).weight.flatten(1), count) for n in names}
        )

    def project(self, name: str, x: Tensor, repeat: int | None) -> Tensor:
        """Apply the dense layer ``name`` to x (..., fan_in), with what the repeat changes in it."""
        result = getattr(self, name)(x)
        if self.adapters is not None and name in self.adapters:
            result = result + self.adapters[name](x, repeat)
        return result

    def router_index(self, repeat: int | None) -> int:
        """Return which of its copies a router of this block is in a repeat; 0 if it is shared."""
        # No default of max: the compiler cannot read it.
        return max([0, *(index_of(getattr(self, name), repeat) for name in self.routers)])


class Encoding(nn.Module):
    """A factor (D) for each channel of the state, of each repeat."""

    def __init__(self, d_model: int, count: int) -> None:
        super().__init__()
        self.scale = _parameters(torch.empty(d_model), count)

    def roles(self) -> Roles:
        """Return the role: a new factor is 1."""
        return {"scale": constant(1.0)}

    def forward(self, x: Tensor, repeat: int | None) -> Tensor:
        """Return the state x (B, T, D) times the repeat's factor."""
        return x * of_repeat(self.scale, repeat)


def _parameters(like: Tensor, count: int) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.empty_like(like)) for _ in range(count))


def expanded(roles: Roles, module: nn.Module) -> Roles:
    """Return roles in which each repeat's parameter has that of the name that they share."""
    every: Roles = {}
    for name, role in roles.items():
        part = getattr(module, name) if name in dict(module.named_children()) else None
        own = isinstance(part, nn.ParameterList)
        names = [f"{name}.{i}" for i in range(len(cast(nn.ParameterList, part)))] if own else [name]
        every |= dict.fromkeys(names, role)
    return every
