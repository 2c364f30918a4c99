"""A stack of layers applied in depth, some of them many times: the recurrence of these models."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from moeut.blocks import masks, routing
from moeut.blocks.attention import AttentionContext, Source
from moeut.blocks.layer import Layer
from moeut.blocks.norms import Norm
from moeut.blocks.routing import RoutingContext, RoutingRecord
from moeut.config import StackConfig
from moeut.ops import SharedWeights
from moeut.recurrence.cache import StackCache, Window, whole_sequence


class LayerInput(NamedTuple):
    """What an application of a layer reads."""

    x: Tensor
    key_value_source: Tensor | None = None
    """(B, T, D) state that self-attention takes keys and values from, if not ``x``."""


class ControllerRun(Protocol):
    """What decides while one forward pass runs; it owns the state of that pass."""

    def before(self, application: int, x: Tensor) -> LayerInput | None:
        """Return what the application reads, or None to end the pass here."""

    def after(self, application: int, x: Tensor) -> Tensor:
        """Return the state that the next application starts from."""

    def finish(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the result of the stack and an auxiliary loss, if there is one."""


class Controller(Protocol):
    """Starts a run for each forward pass: adaptive computation time, input injection, …

    The stack knows of no particular one. A controller with parameters is an ``nn.Module``; it
    keeps no state of a pass, its runs do.
    """

    def start(self, x: Tensor, real: Tensor | None) -> ControllerRun:
        """Return the run of a pass over the embedded input ``x`` (B, T, D)."""


@dataclass(frozen=True)
class StackOutput:
    """What a stack returns."""

    states: Tensor
    """(B, T, D)"""

    auxiliary_loss: Tensor
    """Weighted balance losses and the controller's loss; zero outside training."""

    trace: list[RoutingRecord] | None
    """The decisions of each application, if traced."""

    hidden: list[Tensor] | None
    """The embedded input and the state after each application, if traced."""


class Memory(NamedTuple):
    """An encoder's output, as a decoder's cross-attention reads it."""

    states: Tensor
    """(B, S, D)"""

    real: Tensor | None
    """(B, S), True at real tokens; None: all are."""


class DepthStack(nn.Module):
    """Distinct layers, applied in the schedule of ``options.depth``.

    A *repeat* is one pass through the group of shared layers. ``causal`` stacks look at earlier
    tokens only and can decode with a cache; ``cross_attention`` adds a block that reads an
    encoder's output.
    """

    def __init__(
        self,
        options: StackConfig,
        d_model: int,
        *,
        causal: bool,
        cross_attention: bool = False,
        controller: Controller | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.d_model = d_model
        self.causal = causal
        self.controller = controller
        self.position = options.position.build_absolute(d_model)
        self.layers = nn.ModuleList(
            Layer(options, d_model, cross_attention=cross_attention)
            for _ in range(options.depth.num_distinct)
        )
        self.final_norm = None
        if options.final_norm:
            self.final_norm = Norm(d_model, options.norm_epsilon)
        self._balance_weights = _balance_weights(options)

    def resolve_repeats(self, num_repeats: int | None) -> int:
        """Return the number of repeats to run, the configured one for None.

        Raises ValueError if it is not a whole number of at least 1, or differs from the configured
        one in a stack that shares nothing.
        """
        if num_repeats is None:
            return self.options.depth.repeats
        if not isinstance(num_repeats, int) or isinstance(num_repeats, bool) or num_repeats < 1:
            raise ValueError(f"num_repeats={num_repeats!r}: must be a whole number of at least 1")
        if not self.options.depth.is_shared and num_repeats != 1:
            raise ValueError(
                f"num_repeats={num_repeats}: this stack shares no layers (depth.repeats=1), so its "
                "depth is fixed"
            )
        return num_repeats

    def schedule(self, num_repeats: int | None = None) -> list[int]:
        """Return the index of the layer of each application."""
        return self.options.depth.schedule(self.resolve_repeats(num_repeats))

    def new_cache(self, num_repeats: int | None = None) -> StackCache:
        """Return an empty cache for decoding at this depth."""
        if not self.causal:
            raise ValueError("only a causal stack decodes with a cache")
        return StackCache(
            num_repeats=self.resolve_repeats(num_repeats),
            num_applications=len(self.schedule(num_repeats)),
            group_size=len(self.layers),
        )

    def forward(
        self,
        x: Tensor,
        *,
        real: Tensor | None = None,
        prefix_length: Tensor | None = None,
        document_numbers: Tensor | None = None,
        memory: Memory | None = None,
        num_repeats: int | None = None,
        cache: StackCache | None = None,
        trace: bool = False,
        activation_checkpointing: bool = False,
    ) -> StackOutput:
        """Transform embedded tokens x (B, T, D).

        ``real`` (B, T): True at tokens that are no padding. ``prefix_length`` (B,): tokens before
        it are seen by all. ``document_numbers`` (B, T): tokens see those of their own number alone,
        and absolute positions begin anew with each. ``cache``, made by ``new_cache`` for the same
        depth, holds the earlier tokens of each row and takes up these.
        """
        schedule = self.schedule(num_repeats)
        window = self._window(x, real, num_repeats, cache, prefix_length)
        positions = window.positions
        if document_numbers is not None:
            positions = masks.positions_in_documents(document_numbers)
        x = self._enter(x, positions, window.num_keys)
        weights = self._share_weights(x, schedule)
        context = self._context(x, real, prefix_length, document_numbers, window, trace, weights)
        cross_context, sources, source_routing = self._read_memory(x, memory, context, cache)
        recompute = activation_checkpointing and cache is None and torch.is_grad_enabled()
        run = None if self.controller is None else self.controller.start(x, real)

        records: list[tuple[int, RoutingRecord]] = []
        hidden = [x]
        for application, index in enumerate(schedule):
            read = LayerInput(x) if run is None else run.before(application, x)
            if read is None:
                break
            layer = functools.partial(
                self.layers[index],
                context=context,
                key_value_source=read.key_value_source,
                cross_context=cross_context,
                memory=sources[index],
                cache=cache,
                application=application,
            )
            if recompute:
                x, record = checkpoint(layer, read.x, use_reentrant=False)
            else:
                x, record = layer(read.x)
            if run is not None:
                x = run.after(application, x)
            records.append((index, record))
            if trace:
                hidden.append(x)

        losses = self._balance_losses(records, context.routing, source_routing)
        if run is not None:
            x, controller_loss = run.finish(x)
            losses += [] if controller_loss is None else [controller_loss]
        if self.final_norm is not None:
            x = self.final_norm(x)
        if cache is not None:
            cache.finish()
        return StackOutput(
            x,
            torch.stack(losses).sum() if losses else x.new_zeros(()),
            [record for _, record in records] if trace else None,
            hidden if trace else None,
        )

    def _window(
        self,
        x: Tensor,
        real: Tensor | None,
        num_repeats: int | None,
        cache: StackCache | None,
        prefix_length: Tensor | None,
    ) -> Window:
        if cache is None:
            return whole_sequence(x.shape[1], x.device)
        repeats = self.resolve_repeats(num_repeats)
        if cache.num_repeats != repeats:
            raise ValueError(
                f"num_repeats={repeats}: the cache was made for num_repeats={cache.num_repeats}"
            )
        if prefix_length is not None and not cache.is_empty:
            raise ValueError("prefix_length: give it with the first tokens of a cache only")
        return cache.begin(real, x.shape[0], x.shape[1], x.device)

    def _enter(self, x: Tensor, positions: Tensor, length: int) -> Tensor:
        """Add absolute positions (T,) or (B, T) to the embedded tokens, norm and drop out.

        ``length``: the number of tokens of a row up to now, which learned positions must reach.
        """
        if self.position is not None:
            self.position.check_length(length)
            x = x + self.position(positions, x.dtype)
        if self.options.norm_input:
            x = F.layer_norm(x, (self.d_model,), eps=self.options.norm_epsilon)
        if self.options.dropout and self.training:
            x = F.dropout(x, self.options.dropout)
        return x

    def _context(
        self,
        x: Tensor,
        real: Tensor | None,
        prefix_length: Tensor | None,
        document_numbers: Tensor | None,
        window: Window,
        trace: bool,
        weights: SharedWeights,
    ) -> AttentionContext:
        """Build what all applications share."""
        num_tokens = x.shape[1]
        is_causal, allowed = False, None
        if not self.causal:
            allowed = None if real is None else masks.real_keys(real)
        elif document_numbers is not None:
            allowed = masks.causal(window.positions, window.num_keys)
            allowed = allowed & masks.same_document(document_numbers)
        elif window.num_keys == num_tokens and prefix_length is None:
            is_causal = True  # padding is on the right, so no real token sees it
        elif window.offset is None or num_tokens > 1:
            allowed = masks.causal(window.positions, window.num_keys, prefix_length)

        rotary, distances = self.options.position.tables(
            window.positions,
            window.offset,
            window.num_keys,
            head_size=self.options.attention.head_size,
            d_model=self.d_model,
            like=x,
        )
        balance = self.training and bool(self._balance_weights)
        return AttentionContext(
            bias=masks.additive(allowed, x),
            is_causal=is_causal,
            rotary=rotary,
            distances=distances,
            routing=RoutingContext.create(
                real,
                balance=balance,
                trace=trace,
                dtype=x.dtype,
                weights=weights,
            ),
        )

    def _share_weights(self, x: Tensor, schedule: list[int]) -> SharedWeights:
        """Prepare the expert weights of layers that are applied more than once."""
        if len(schedule) == len(self.layers):
            return SharedWeights()
        layers = (layer for layer in self.layers if isinstance(layer, Layer))
        return SharedWeights.for_pass(
            itertools.chain.from_iterable(layer.expert_weights() for layer in layers), x
        )

    def _read_memory(
        self,
        x: Tensor,
        memory: Memory | None,
        context: AttentionContext,
        cache: StackCache | None,
    ) -> tuple[AttentionContext | None, list[Source | None], RoutingContext]:
        """Project the encoder's output, once per distinct layer."""
        if memory is None:
            return None, [None] * len(self.layers), context.routing
        allowed = None if memory.real is None else masks.real_keys(memory.real)
        cross_context = AttentionContext(masks.additive(allowed, x), routing=context.routing)
        routing_of_source = RoutingContext.create(
            memory.real, balance=context.routing.balance, trace=context.routing.trace, dtype=x.dtype
        )
        sources: list[Source | None] = [None] * len(self.layers)
        if cache is not None:
            sources = cache.sources
        if sources[0] is None:
            for index, layer in enumerate(self.layers):
                assert isinstance(layer, Layer)
                sources[index] = layer.project_memory(memory.states, routing_of_source)
        return cross_context, sources, routing_of_source

    def _balance_losses(
        self,
        records: list[tuple[int, RoutingRecord]],
        context: RoutingContext,
        source_context: RoutingContext,
    ) -> list[Tensor]:
        """Return the balance loss of each router, summed over the distinct layers."""
        losses = []
        for name, weight in self._balance_weights.items() if context.balance else ():
            modules: dict[int, list[Tensor]] = {}
            for index, record in records:
                router = record.routers.get(name)
                if router is not None and router.probability is not None:
                    modules.setdefault(index, []).append(router.probability)
            owner = source_context if name == "cross_attention.value" else context
            loss = routing.balance_loss(modules.values(), owner, weight)
            losses += [] if loss is None else [loss]
        return losses


def _balance_weights(options: StackConfig) -> dict[str, float]:
    """Return the weight of each router's balance loss, by the router's name; none of them 0."""
    weights = {
        f"{block}.{router}": weight
        for block in ("attention", "cross_attention")
        for router, weight in options.attention.balance_weights().items()
    }
    if options.feed_forward.balance_weight():
        weights["feed_forward"] = options.feed_forward.balance_weight()
    return weights
