"""One pass of a stack: what all its applications share, and what they leave behind."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moeut.blocks import masks, routing
from moeut.blocks.attention import AttentionContext, Participation, Source
from moeut.blocks.layer import Layer, LayerOutput
from moeut.blocks.neighbours import TokenRow
from moeut.blocks.packing import Packing
from moeut.blocks.routing import RouterRecord, RoutingContext, RoutingRecord
from moeut.ops import SharedWeights, backend
from moeut.recurrence.cache import Window
from moeut.recurrence.controller import Step
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.schedule import Place
from moeut.recurrence.stack_config import StackConfig


class Passing:
    """What all applications of one pass share, and what they leave behind."""

    def __init__(
        self,
        options: StackConfig,
        layers: Iterable[nn.Module],
        x: Tensor,
        inputs: Inputs,
        window: Window,
        *,
        causal: bool,
        places: Sequence[Place],
        balance_weights: Mapping[str, float],
        value_embeddings: nn.ModuleDict,
        training: bool,
    ) -> None:
        self.options, self.inputs = options, inputs
        self.causal, self.training = causal, training
        self._layers = [cast(Layer, layer) for layer in layers]
        self._balance_weights, self._value_embeddings = balance_weights, value_embeddings
        self._places = places
        self.is_repeated = len(places) > len(self._layers)
        self.records: list[tuple[Place, RoutingRecord]] = []
        self.hidden = [x]
        self.repeats: list[Tensor] = []
        self.carried: list[Tensor] = []
        self.keeps_repeats = options.depth.has_whole_repeats and (
            inputs.trace or inputs.read_repeats is not None
        )
        self._held: dict[int, Source] = {}
        self._first: dict[int, int] = {}
        self._window = window
        # Who takes part now, how they are packed, and what they see: the same for a whole repeat.
        self._packed: tuple[Tensor, Packing, AttentionContext, RoutingContext] | None = None
        self._without_gradient: SharedWeights | None = None
        self.context = self._self_attention(x, window)
        self.cross_context, self.sources, self.source_routing = self._read_memory(x)

    def _weights_without_gradient(self) -> SharedWeights:
        """Return the shared weights of applications without gradient, prepared at the first."""
        # No cached_property: its lock breaks a compiled graph.
        if self._without_gradient is None:
            self._without_gradient = self._share_weights(self.hidden[0])
        return self._without_gradient

    def _added_values(
        self, layer: int, packing: Packing | None
    ) -> Callable[[Tensor], Tensor] | None:
        """Return what gives the value embeddings of a layer; None: it has none."""
        name = str(layer)
        if name not in self._value_embeddings:
            return None
        assert self.inputs.tokens is not None
        tokens = self.inputs.tokens
        if packing is not None:
            tokens = packing.take(tokens.unsqueeze(-1)).squeeze(-1)
        return functools.partial(self._value_embeddings[name], tokens)

    def apply_once(self, place: Place, x: Tensor, *, record: bool = True) -> Tensor:
        """Return the state (B, T, D) after an application outside the repeats.

        One that reads a repeat out besides the result leaves no ``record``.
        """
        x = self.apply(place, Step(x), record=record)
        if record:
            self.keep_traced(x)
        return x

    def keep_traced(self, x: Tensor) -> None:
        """Keep the state (B, T, D) after an application, if the pass is traced."""
        if self.inputs.trace:
            self.hidden.append(x)

    def apply(
        self,
        place: Place,
        step: Step,
        *,
        others: Tensor | None = None,
        without_gradient: bool = False,
        keep: bool = False,
        record: bool = True,
    ) -> Tensor:
        """Return the state (B, T, D) after one application, and ``record`` what it decided.

        Tokens that take no part have the state of ``others`` (B, T, D), left out: what was read.
        """
        shares = self.options.shared_keys
        is_first = place.repeat == 0
        if shares != "none" and place.repeat is not None:
            # The first repeat makes the keys of all tokens, which later ones all see.
            step = step._replace(active=None if is_first else step.active, is_alone=False)
        packing = self._pack(place, step)
        context, cross_context = self._contexts(place, step, packing, without_gradient)
        participation = None
        if keep or (shares != "none" and place.repeat is not None):
            renewed = step.active if step.source_active is None else step.source_active
            stored = self._first.get(place.layer) if shares == "first" else None
            held = self._held.get(place.layer)
            participation = Participation(renewed, held, stored, is_shared=shares != "none")
        layer = functools.partial(
            self._layers[place.layer],
            context=context,
            key_value_source=_packed(step.key_value_source, context),
            cross_context=cross_context,
            memory=self._memory(place),
            cache=self.inputs.cache,
            application=place.application,
            participation=participation,
        )
        x = step.x if packing is None else packing.take(step.x)
        recompute = self.inputs.activation_checkpointing and self.inputs.cache is None
        output: LayerOutput
        if recompute and torch.is_grad_enabled():
            output = checkpoint(layer, x, use_reentrant=False)
        else:
            output = layer(x)
        if output.kept is not None and (shares == "none" or is_first):
            self._held[place.layer] = output.kept
            self._first[place.layer] = place.application
        if record:
            self.records.append((place, self._of_readers(place, step, output.record)))
        others = step.x if others is None else others
        if packing is not None:
            return packing.put(output.x, others)
        if step.active is not None and step.freezes:
            return torch.where(step.active.unsqueeze(-1), output.x, others)
        return output.x

    def _of_readers(self, place: Place, step: Step, record: RoutingRecord) -> RoutingRecord:
        """Leave out what a repeat's own projection of memory decided for rows that read none of it.

        It is computed before anyone has halted, for all rows: what a row costs in a balance loss
        must not depend on how deep other rows go.
        """
        name = "cross_attention.value"
        router = record.routers.get(name)
        is_own = len(self.sources[place.layer]) > 1
        if router is None or router.probability is None or step.active is None or not is_own:
            return record
        reads = self._real(step.active).any(dim=1).to(router.probability.dtype)
        weighed = replace(router, probability=router.probability * reads[:, None, None], mass=reads)
        return replace(record, routers=record.routers | {name: weighed})

    def _contexts(
        self, place: Place, step: Step, packing: Packing | None, without_gradient: bool
    ) -> tuple[AttentionContext, AttentionContext | None]:
        """Return what self-attention and cross-attention of an application need to know."""
        context, cross_context = self.context, self.cross_context
        routed = replace(
            context.routing,
            place=place,
            modulation=step.modulation,
            keep=step.keep,
            added_values=self._added_values(place.layer, packing),
        )
        if without_gradient:
            routed = replace(routed, weights=self._weights_without_gradient())
        of_source = None
        if packing is not None:
            assert self._packed is not None
            _, _, context, shares = self._packed
            modulation = step.modulation
            if modulation is not None and modulation[0].dim() == 3:  # by tokens (B, T, D)
                modulation = packing.take(modulation[0]), packing.take(modulation[1])
            if step.source_active is not None:
                anew = self._real(step.source_active)
                is_same = _are_same(anew, self._packed[0])
                source = packing if is_same else Packing.of(anew, None, is_alone=False)
                context = replace(context, of_source=self.context.placed(source))
                of_source = routed.among(anew, step.x.dtype)
                if source is not None:
                    of_source = routed.packed(anew, source.tokens, step.x.dtype)
                added = self._added_values(place.layer, source)
                of_source = replace(of_source, added_values=added)
            keep = step.keep
            if keep is not None:
                keep = packing.take(keep.unsqueeze(-1)).squeeze(-1)
            routed = replace(
                routed,
                real=None,
                share=shares.share,
                mass=shares.mass,
                modulation=modulation,
                keep=keep,
            )
        elif step.active is not None:
            # Who sits out holds keys and values of an application before; without one, all of them
            # are computed.
            renewed = step.source_active
            if place.layer not in self._held and not step.by_row:
                renewed = torch.ones_like(step.active)
            if renewed is not None:
                of_source = routed.among(renewed, step.x.dtype)
            routed = routed.among(step.active, step.x.dtype)
        if step.is_alone and (packing is None or not packing.is_alone):
            visible = self._visible(place, step)
            context = context.hiding_others(visible, step.x)
        context = replace(context, routing=routed, routing_of_source=of_source)
        if cross_context is not None and packing is not None:
            cross_context = cross_context.packed_across(packing, routed)
        elif cross_context is not None:
            cross_context = replace(cross_context, routing=routed)
        return context, cross_context

    def _visible(self, place: Place, step: Step) -> Tensor:
        """Return which keys (B, K) take part in an application, where others are not seen."""
        active = step.active
        if active is None:
            active = torch.ones(step.x.shape[:2], dtype=torch.bool, device=step.x.device)
        if self.inputs.real is not None:
            active = active & self.inputs.real
        cache = self.inputs.cache
        return active if cache is None else cache.take_part(place.application, active)

    def _pack(self, place: Place, step: Step) -> Packing | None:
        """Return how the tokens of an application are packed; None: it is applied to all of them.

        Others have to hold keys and values already, or nobody may look for them. A compiled graph
        needs to know how many there are, and a trace is one of all tokens.
        """
        active = step.active
        if active is None or not step.freezes or self.inputs.trace:
            return None
        by_token = step.modulation is not None and step.modulation[0].dim() == 3
        if step.key_value_source is not None and (step.source_active is None or by_token):
            return None
        layer = self._layers[place.layer]
        if layer.feed_forward.reads_neighbours or not self.options.attention.has_keys:
            return None
        if place.layer not in self._held and not (step.by_row or step.is_alone):
            return None
        if torch.compiler.is_compiling() and step.columns is None:
            return None
        # Often a repeat ends and nobody has left.
        if self._packed is not None and _are_same(self._packed[0], active):
            return self._packed[1]
        inputs = self.inputs
        columns = step.columns if inputs.real is None else None
        taking_part = self._real(active)
        counts = self.options.attention.counts_columns or self.context.distances is not None
        # Where it counts in which column a key is, others are masked, and keys stay in their own.
        is_alone = step.is_alone and not counts and inputs.cache is None
        packing = Packing.of(taking_part, columns, is_alone=is_alone)
        self._packed = None
        if packing is not None:
            window = self._window
            context = self.context.packed(packing, window.positions, window.num_keys, step.x)
            shares = self.context.routing.packed(taking_part, packing.tokens, step.x.dtype)
            self._packed = (active, packing, context, shares)
        return packing

    def states_to_read(self) -> list[Tensor]:
        """Return the states (B, T, D) of ``Inputs.read_repeats``, of those that repeats ended with.

        Raises:
            ValueError: there is no such repeat, or what reads it out would not be that of its
                depth.
        """
        wanted, depth, ended = self.inputs.read_repeats, self.options.depth, self.repeats
        if wanted is None:
            return []
        if not depth.has_whole_repeats:
            raise ValueError("read_repeats: depth.order=sequence has no whole repeats to read out")
        reason = self.options.refuses_reading()
        if reason is not None and self.inputs.cache is not None:
            raise ValueError(f"read_repeats: {reason}")
        for number in wanted:
            if not -len(ended) <= number < len(ended):
                raise ValueError(f"read_repeats={number}: expected one of 0 to {len(ended) - 1}")
        return [ended[number] for number in wanted]

    def _real(self, active: Tensor) -> Tensor:
        """Return which ``active`` tokens (B, T) are no padding."""
        return active if self.inputs.real is None else active & self.inputs.real

    def balance_losses(self) -> list[Tensor]:
        """Return the balance loss of each router, summed over the distinct ones of that name."""
        context = self.context.routing
        losses = []
        for name, weight in self._balance_weights.items() if context.balance else ():
            modules: dict[tuple[int, int], list[RouterRecord]] = {}
            for place, record in self.records:
                router = record.routers.get(name)
                if router is not None and (router.probability is not None or router.mutual):
                    which = self._layers[place.layer].router_index(name, place.repeat)
                    modules.setdefault((place.layer, which), []).append(router)
            owner = self.source_routing if name == "cross_attention.value" else context
            shares = self.inputs.row_shares
            if any(records[0].mutual for records in modules.values()):
                loss = routing.mutual_information_loss(modules.values(), weight, shares)
            else:
                loss = routing.balance_loss(modules.values(), owner, weight, shares)
            losses += [] if loss is None else [loss]
        return losses

    def _self_attention(self, x: Tensor, window: Window) -> AttentionContext:
        """Return masks, positions and routing of self-attention."""
        options, inputs = self.options, self.inputs
        num_tokens = x.shape[1]
        is_causal, allowed = False, None
        if not self.causal:
            allowed = None if inputs.real is None else masks.real_keys(inputs.real)
        elif inputs.document_numbers is not None:
            allowed = masks.causal(window.positions, window.num_keys)
            allowed = allowed & masks.same_document(inputs.document_numbers)
        elif window.num_keys == num_tokens and inputs.prefix_length is None:
            is_causal = True  # padding is on the right, so no real token sees it
        elif window.offset is None or num_tokens > 1:
            allowed = masks.causal(window.positions, window.num_keys, inputs.prefix_length)

        documents = inputs.document_numbers
        rotary, distances = options.position.tables(
            window.positions,
            window.offset,
            window.num_keys,
            head_size=options.attention.head_size,
            d_model=options.d_model,
            like=x,
            key_positions=None if documents is None else masks.positions_in_documents(documents),
            training=self.training,
        )
        return AttentionContext(
            bias=masks.additive(allowed, x),
            is_causal=is_causal,
            rotary=rotary,
            distances=distances,
            columns=window.positions,
            routing=replace(
                RoutingContext.create(
                    inputs.real,
                    balance=self.training and bool(self._balance_weights),
                    trace=inputs.trace,
                    dtype=x.dtype,
                    weights=self._share_weights(x),
                ),
                row=TokenRow(window.positions, inputs.real, documents, inputs.cache),
            ),
        )

    def _share_weights(self, x: Tensor) -> SharedWeights:
        """Prepare the expert weights of layers that are applied more than once."""
        if not self.is_repeated:
            return SharedWeights()
        weights = (layer.expert_weights() for layer in self._layers)
        return SharedWeights.for_pass(itertools.chain.from_iterable(weights), x)

    def _memory(self, place: Place) -> Source | None:
        """Return the keys and values of an encoder's output that an application reads."""
        sources = self.sources[place.layer]
        if not sources:
            return None
        return sources[self._layers[place.layer].memory_index(place.repeat)]

    def _read_memory(
        self, x: Tensor
    ) -> tuple[AttentionContext | None, list[list[Source]], RoutingContext]:
        """Project the encoder's output, once per distinct layer and what repeats have their own."""
        memory, cache, context = self.inputs.memory, self.inputs.cache, self.context.routing
        nothing: list[list[Source]] = [[] for _ in self._layers]
        if memory is None:
            return None, nothing, context
        allowed = None if memory.real is None else masks.real_keys(memory.real)
        cross_context = AttentionContext(masks.additive(allowed, x), routing=context)
        routing_of_source = RoutingContext.create(
            memory.real, balance=context.balance, trace=context.trace, dtype=x.dtype
        )
        sources = nothing if cache is None else cache.sources
        if sources[0]:
            return cross_context, sources, routing_of_source
        for place in self._places:
            layer, known = self._layers[place.layer], sources[place.layer]
            if layer.memory_index(place.repeat) == len(known):
                routed = replace(routing_of_source, place=place)
                known.append(layer.project_memory(memory.states, routed))
        return cross_context, sources, routing_of_source


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two masks are known to have the same values."""
    return one is other or (backend.can_look(one) and torch.equal(one, other))


def _packed(source: Tensor | None, context: AttentionContext) -> Tensor | None:
    """Return the tokens of ``source`` (B, T, D) that keys and values are computed for."""
    if source is None or context.of_source is None or context.of_source.packing is None:
        return source
    return context.of_source.packing.take(source)
