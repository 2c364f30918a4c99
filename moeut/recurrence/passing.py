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
from moeut.blocks.routing import RouterRecord, RoutingContext, RoutingRecord
from moeut.ops import SharedWeights
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
        self._without_gradient: SharedWeights | None = None
        self.context = self._self_attention(x, window)
        self.cross_context, self.sources, self.source_routing = self._read_memory(x)

    def _weights_without_gradient(self) -> SharedWeights:
        """Return the shared weights of applications without gradient, prepared at the first."""
        # No cached_property: its lock breaks a compiled graph.
        if self._without_gradient is None:
            self._without_gradient = self._share_weights(self.hidden[0])
        return self._without_gradient

    def _added_values(self, layer: int) -> Callable[[Tensor], Tensor] | None:
        """Return what gives the value embeddings of a layer; None: it has none."""
        name = str(layer)
        if name not in self._value_embeddings:
            return None
        assert self.inputs.tokens is not None
        return functools.partial(self._value_embeddings[name], self.inputs.tokens)

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
        without_gradient: bool = False,
        keep: bool = False,
        record: bool = True,
    ) -> Tensor:
        """Return the state (B, T, D) after one application, and ``record`` what it decided."""
        context, cross_context = self.context, self.cross_context
        routed = replace(
            context.routing,
            place=place,
            modulation=step.modulation,
            added_values=self._added_values(place.layer),
        )
        if without_gradient:
            routed = replace(routed, weights=self._weights_without_gradient())
        of_source = None
        if step.active is not None:
            # Who sits out holds keys and values of an application before; without one, all of them
            # are computed.
            if place.layer not in self._held and not step.by_row:
                of_source = routed.among(torch.ones_like(step.active), step.x.dtype)
            routed = routed.among(step.active, step.x.dtype)
        context = replace(context, routing=routed, routing_of_source=of_source)
        cross_context = cross_context and replace(cross_context, routing=routed)
        participation = None
        if keep:
            participation = Participation(step.active, self._held.get(place.layer))
        layer = functools.partial(
            self._layers[place.layer],
            context=context,
            key_value_source=step.key_value_source,
            cross_context=cross_context,
            memory=self._memory(place),
            cache=self.inputs.cache,
            application=place.application,
            participation=participation,
        )
        recompute = self.inputs.activation_checkpointing and self.inputs.cache is None
        output: LayerOutput
        if recompute and torch.is_grad_enabled():
            output = checkpoint(layer, step.x, use_reentrant=False)
        else:
            output = layer(step.x)
        if output.kept is not None:
            self._held[place.layer] = output.kept
        if record:
            self.records.append((place, output.record))
        return output.x

    def balance_losses(self) -> list[Tensor]:
        """Return the balance loss of each router, summed over the distinct ones of that name."""
        context = self.context.routing
        losses = []
        for name, weight in self._balance_weights.items() if context.balance else ():
            modules: dict[tuple[int, int], list[RouterRecord]] = {}
            for place, record in self.records:
                router = record.routers.get(name)
                if router is not None and router.probability is not None:
                    which = self._layers[place.layer].router_index(name, place.repeat)
                    modules.setdefault((place.layer, which), []).append(router)
            owner = self.source_routing if name == "cross_attention.value" else context
            shares = self.inputs.row_shares
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
