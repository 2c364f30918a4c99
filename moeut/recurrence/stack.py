"""A stack of layers applied in depth, some of them many times: the recurrence of these models."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from moeut.blocks import masks
from moeut.blocks.embeddings import EmbeddingAdapter
from moeut.blocks.layer import Layer
from moeut.blocks.positions import Entry
from moeut.ops import backend, dropout
from moeut.recurrence.cache import SharedSlots, StackCache, Window, whole_sequence
from moeut.recurrence.controller import Controller, Pass, Run, Step
from moeut.recurrence.inputs import Inputs, StackOutput
from moeut.recurrence.passing import Passing
from moeut.recurrence.row_depth import RowDepthRun
from moeut.recurrence.schedule import Place
from moeut.recurrence.stack_config import StackConfig


class DepthStack(nn.Module):
    """Distinct layers, applied in the schedule of ``options.depth``.

    A *repeat* is one pass through the group of shared layers. ``causal`` stacks look at earlier
    tokens only and can decode with a cache; ``cross_attention`` adds a block that reads an
    encoder's output. What decides while a pass runs is in ``controllers``.
    """

    def __init__(
        self, options: StackConfig, d_model: int, *, causal: bool, cross_attention: bool = False
    ) -> None:
        super().__init__()
        self.options = options
        self.d_model = d_model
        self.causal = causal
        added = (options.input_position, options.position)
        width = options.embedding_size
        built_positions = [position.build_absolute(width) for position in added]
        adding = [position for position in built_positions if position is not None]
        self.position = adding[0] if adding else None
        self.second_position = adding[1] if len(adding) > 1 else None
        self.layers = nn.ModuleList(
            Layer(
                options.of_layer(layer),
                options.of_layer(layer).d_model,
                cross_attention=cross_attention,
                repeats=options.depth.repeats if options.depth.is_in_group(layer) else 0,
                ends_recursion=options.depth.ends_recursion(layer),
            )
            for layer in range(options.num_layers)
        )
        self.final_norm = None
        if options.final_norm:
            self.final_norm = options.norms.build(d_model)
        self.repeat_norm = None
        if options.repeat_norm:
            self.repeat_norm = options.norms.build(options.core_width)
        self.input_norm = None
        if options.norm_input:
            weights = options.norm_input_weights
            self.input_norm = options.norms.build(width, weights=weights)
        self.adapter = EmbeddingAdapter(width, d_model) if width != d_model else None
        core = options.core_width
        conditioning = options.conditioning.build_for(core, options.depth.repeats)
        # Halting reads the state itself, so it comes before the injection changes what is read.
        built = {
            "coordinates": conditioning if options.conditioning.comes_first else None,
            "halting": options.halting.build_in(core, options.depth),
            "injection": options.state.build(core, d_model, options.depth),
            "conditioning": None if options.conditioning.comes_first else conditioning,
        }
        self.controllers = nn.ModuleDict({k: v for k, v in built.items() if v is not None})
        self.state_norm = options.norms.build(d_model) if options.state.norm_input else None
        self.output = options.state.build_output(core, d_model, options.feed_forward)
        self.value_embeddings = options.build_value_embeddings()
        self._balance_weights = _balance_weights(options)

    def draw(self) -> None:
        """Draw what is no parameter, after all parameters of the model; here there is nothing."""

    # --- depth --------------------------------------------------------------------------

    def resolve_repeats(self, num_repeats: int | None) -> int:
        """Return the number of repeats to run, the configured one for None.

        Raises:
            ValueError: it is not a whole number of at least 1, or differs from the configured one
                in a stack that shares nothing.
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

    def repeats_without_gradient(self, repeats: int, backprop_repeats: int | None) -> int:
        """Return how many first repeats run without gradient.

        Raises:
            ValueError: ``backprop_repeats`` is no whole number of at least 0, or cuts off the only
                way of gradients to the embedding.
        """
        if backprop_repeats is None:
            return 0
        is_number = isinstance(backprop_repeats, int) and not isinstance(backprop_repeats, bool)
        if not is_number or backprop_repeats < 0:
            raise ValueError(
                f"backprop_repeats={backprop_repeats!r}: must be a whole number of at least 0"
            )
        reason = self.options.refuses_truncation()
        if reason is not None:
            raise ValueError(f"backprop_repeats={backprop_repeats}: {reason}")
        return max(repeats - backprop_repeats, 0)

    def schedule(self, num_repeats: int | None = None) -> list[int]:
        """Return the index of the layer of each application."""
        return [p.layer for p in self.options.places(self.resolve_repeats(num_repeats))]

    def new_cache(
        self, num_repeats: int | None = None, *, shared: SharedSlots | None = None
    ) -> StackCache:
        """Return an empty cache for decoding at this depth, ``shared`` by repeated applications.

        Raises:
            ValueError: the stack is not causal, or a controller cannot decode with a cache.
        """
        if not self.causal:
            raise ValueError("only a causal stack decodes with a cache")
        for name, controller in self._controllers():
            if controller.refuses_cache is not None:
                raise ValueError(f"{name}: cannot decode with a cache: {controller.refuses_cache}")
        places = self.options.places(self.resolve_repeats(num_repeats))
        return StackCache(
            num_repeats=self.resolve_repeats(num_repeats),
            num_applications=len(places),
            group_size=len(self.layers),
            slots=None if shared is None else shared.slots(places),
        )

    # --- a pass -------------------------------------------------------------------------

    def forward(self, x: Tensor, inputs: Inputs | None = None) -> StackOutput:
        """Transform embedded tokens x (B, T, D).

        Raises:
            ValueError: a depth that the stack cannot have, or a cache of another depth.
        """
        inputs = inputs or Inputs()
        repeats = self.resolve_repeats(inputs.num_repeats)
        weighs = self._weighs_repeats(inputs)
        if weighs:
            inputs = replace(inputs, read_repeats=range(repeats))
        without = self.repeats_without_gradient(repeats, inputs.backprop_repeats)
        places = self.options.places(repeats)
        window = self._window(x, inputs, repeats)
        positions = window.positions
        if inputs.document_numbers is not None:
            positions = masks.positions_in_documents(inputs.document_numbers)
        entry = Entry(
            positions,
            window.positions,
            inputs.tokens,
            inputs.document_numbers,
            self.options.embedding_factor,
            inputs.cache,
        )
        x = self._enter(x, entry, window.num_keys)
        passing = Passing(
            self.options,
            self.layers,
            x,
            inputs,
            window,
            causal=self.causal,
            places=places,
            balance_weights=self._balance_weights,
            value_embeddings=self.value_embeddings,
            training=self.training,
        )

        prelude, coda = self.options.depth.prelude, self.options.depth.coda
        end = len(places) - coda
        for place in places[:prelude]:
            x = passing.apply_once(place, x)
        if self.state_norm is not None:
            x = self.state_norm(x)
        # Where first repeats have no gradient, the last ones run even if no token does: so every
        # parameter gets a gradient, be it 0, as it does on ranks that never end early.
        may_end = inputs.cache is None and not without and self._may_look(x)
        factor = self.options.embedding_factor
        known = (inputs.real, repeats, may_end, inputs.row_shares, factor, inputs.document_numbers)
        about = Pass(x, positions, *known)
        runs: dict[str, Run] = {}
        if inputs.exit_rule is not None and not self.training:
            # First, so that it sees what the others have made of the state.
            runs["exit"] = self._begin_exits(inputs, about, places[end:], passing)
        for name, controller in self._controllers():
            if not ("exit" in runs and name == "halting"):
                runs[name] = controller.begin(about)
        steering = [*self._row_depth(inputs, x, without), *runs.values()]
        x = self._repeat(x, places[prelude:end], steering, passing, without)
        decisions: dict[str, Tensor] = {}
        losses = []
        for name, run in reversed(runs.items()):
            verdict = run.finish(x)
            x = verdict.x
            decisions |= {f"{name}.{key}": value for key, value in verdict.record.items()}
            losses += [] if verdict.loss is None or not self.training else [verdict.loss]
        result = x
        x = self._read_out(x, places[end:], passing)
        losses = [*passing.balance_losses(), *losses]
        read = [
            x if state is result else self._read_out(state, places[end:], passing, record=False)
            for state in passing.states_to_read()
        ]
        if inputs.cache is not None:
            inputs.cache.finish()
        return StackOutput(
            x,
            torch.stack(losses).sum() if losses else x.new_zeros(()),
            [record for _, record in passing.records] if inputs.trace else None,
            passing.hidden if inputs.trace else None,
            decisions if runs else None,
            passing.repeats,
            read,
            decisions["halting.log_probability"].exp() if weighs else None,
            decisions["halting.logits"] if weighs else None,
            None if inputs.carried is None else passing.carried,
        )

    def _begin_exits(self, inputs: Inputs, about: Pass, coda: list[Place], passing: Passing) -> Run:
        """Return the run by which tokens leave in evaluation.

        Raises:
            ValueError: the stack has no repeats to leave after, or says itself who leaves.
        """
        rule = inputs.exit_rule
        assert rule is not None
        reason = self.options.refuses_exits()
        if reason is None and rule.reads_logits and inputs.cache is not None:
            reason = self.options.refuses_reading()
            reason = reason and f"{rule.criterion} reads states out, and {reason}"
        if reason is not None:
            raise ValueError(f"exit_rule: {reason}")

        def read_out(x: Tensor) -> Tensor:
            assert inputs.read_logits is not None
            return inputs.read_logits(self._read_out(x, coda, passing, record=False))

        return rule.begin(about, read_out)

    def _weighs_repeats(self, inputs: Inputs) -> bool:
        """Return whether the loss of this pass weighs what all repeats are read out as."""
        is_asked = self.training and inputs.read_repeats is None and not inputs.is_memory
        return is_asked and self.options.halting.weighs_repeats()

    def _read_out(
        self, x: Tensor, coda: list[Place], passing: Passing, *, record: bool = True
    ) -> Tensor:
        """Return what coda and final norm make of a state x (B, T, D) after the repeats."""
        x = self._leave(x, passing)
        for place in coda:
            x = passing.apply_once(place, x, record=record)
        return x if self.final_norm is None else self.final_norm(x)

    def _repeat(
        self, x: Tensor, places: list[Place], runs: list[Run], passing: Passing, without: int
    ) -> Tensor:
        """Return the state after all repeats, the first ``without`` of them without gradient."""
        for run in runs:
            x = run.start(x)
        if passing.inputs.initial_state is not None:
            x = passing.inputs.initial_state
        if passing.inputs.carried is not None:
            x = passing.inputs.carried.state(0, x)
        for place in places:
            assert place.repeat is not None
            cut = place.repeat < without
            if place.is_first and 0 < without == place.repeat:
                forget_casts()
            with torch.no_grad() if cut else contextlib.nullcontext():
                step: Step | None = Step(x)
                for run in runs:
                    if step is not None:
                        step = run.before(place, step)
                if step is None:
                    break
                # Who takes no part stays as before, and before any injection.
                kept = len(runs) > 0
                result = passing.apply(place, step, others=x, without_gradient=cut, keep=kept)
                if place.is_last and self.repeat_norm is not None:
                    normed = self.repeat_norm(result)
                    active = step.active if step.freezes else None
                    result = normed if active is None else torch.where(active[..., None], normed, x)
                for run in reversed(runs):
                    result = run.after(place, step, result)
                x = result
            passing.keep_traced(x)
            if place.is_last and passing.keeps_repeats:
                passing.repeats.append(x)
        passing.carried = [x]
        return x

    def _row_depth(self, inputs: Inputs, x: Tensor, without: int) -> list[Run]:
        """Return the run by which rows of x (B, T, D) wait, if they have depths of their own."""
        if inputs.row_depth is None:
            return []
        reason = self.options.refuses_row_depth(is_truncated=without > 0)
        if inputs.cache is not None:
            reason = "a cache holds one depth"
        if reason is not None:
            raise ValueError(f"row_depth: {reason}")
        return [RowDepthRun(inputs.row_depth, x.shape[:2], without)]

    def _leave(self, x: Tensor, passing: Passing) -> Tensor:
        """Return what the coda reads of the last state x (B, T, D)."""
        if self.options.state.output == "final_norm":
            assert self.final_norm is not None
            return self.final_norm(x)
        return x if self.output is None else self.output(x, passing.context.routing)

    def _may_look(self, x: Tensor) -> bool:
        """Return whether a pass over ``x`` may depend on whether anyone still runs.

        Asking breaks a compiled graph and stalls a GPU in training; and ranks that share a batch
        have to run the same layers, or they wait for one another for ever.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return False
        return backend.can_look(x) or not (self.training or torch.compiler.is_compiling())

    def _controllers(self) -> list[tuple[str, Controller]]:
        return [(name, cast(Controller, module)) for name, module in self.controllers.items()]

    def _window(self, x: Tensor, inputs: Inputs, repeats: int) -> Window:
        cache = inputs.cache
        if cache is None:
            return whole_sequence(x.shape[1], x.device)
        if cache.num_repeats != repeats:
            raise ValueError(
                f"num_repeats={repeats}: the cache was made for num_repeats={cache.num_repeats}"
            )
        if inputs.prefix_length is not None and not cache.is_empty:
            raise ValueError("prefix_length: give it with the first tokens of a cache only")
        return cache.begin(inputs.real, x.shape[0], x.shape[1], x.device)

    def _enter(self, x: Tensor, entry: Entry, length: int) -> Tensor:
        """Add absolute positions to the embedded tokens (B, T, E), norm, widen and drop out.

        ``length``: the number of tokens of a row up to now, which learned positions must reach.
        """
        for position in (self.position, self.second_position):
            if position is not None:
                position.check_length(length)
                x = position.enter(x, entry)
        if self.input_norm is not None:
            x = self.input_norm(x)
        if self.adapter is not None:
            x = self.adapter(x)
        if self.options.dropout and self.training:
            x = dropout(x, self.options.dropout)
        return x


def forget_casts() -> None:
    """Drop the low-precision copies of weights that autocast has made so far.

    PyTorch 2.10 uses a copy that was made without gradient again where one is wanted: the weight
    then gets no gradient, in silence. A compiled graph keeps no copies.
    """
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()


def _balance_weights(options: StackConfig) -> dict[str, float]:
    """Return the weight of each router's balance loss, by the router's name; none of them 0."""
    blocks = {"attention": options.attention, "cross_attention": options.attention.across()}
    weights = {
        f"{block}.{router}": weight
        for block, attention in blocks.items()
        for router, weight in attention.balance_weights().items()
    }
    if options.feed_forward.balance_weight():
        weights["feed_forward"] = options.feed_forward.balance_weight()
    return weights
