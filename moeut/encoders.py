"""The forms of one bidirectional stack: a classifier of sequences, and one of positions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moeut.base import Model, build_stack
from moeut.blocks import masks
from moeut.blocks.embeddings import Head, PrefixRows
from moeut.config import ModelConfig
from moeut.output import ModelOutput, output_of
from moeut.recurrence.carry import Carried, HaltHead
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.row_depth import RowDepth


class EncoderClassifier(Model):
    """A bidirectional encoder, and a linear classifier on one column of its output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.num_classes is not None
        self.encoder = build_stack(config.stacks["encoder"], config.d_model, causal=False)
        self.head = Head(config.d_model, config.num_classes, tied=False, bias=config.head_bias)
        self.prefix = PrefixRows(config.prefix, config.d_model) if config.prefix.rows else None
        self.halt_head = None if config.carry.halting == "none" else HaltHead(config.d_model)

    def forward(
        self,
        source: Tensor,
        *,
        source_mask: Tensor | None = None,
        prefix_numbers: Tensor | None = None,
        carried: Carried | None = None,
        num_repeats: int | None = None,
        backprop_repeats: int | None = None,
        row_depth: RowDepth | None = None,
        read_repeats: Sequence[int] | None = None,
        trace: bool = False,
    ) -> ModelOutput:
        """Return logits (B, classes) of ``source`` (B, S), read off the first or last real column.

        ``source_mask`` (B, S) bool: True at real tokens. ``prefix_numbers`` (B,): which set of
        prefix rows each row has; the first if left out. ``num_repeats``: passes through the group,
        as configured if left out; gradients flow through the last ``backprop_repeats`` of them, or
        through all. ``row_depth``: how many of either each row or token takes part in.
        ``read_repeats``: repeats, from 0, whose logits are returned too.

        With ``carry.steps`` above 1 this is one pass in training, and in evaluation all of them,
        whose logits are ``step_logits``; a pass that goes on from ``carried`` is always one.
        """
        mask = masks.check_mask(source_mask, source, "source_mask")
        x = self._embed(self.embedding, source, "source")
        x, real = self._with_prefix(x, mask, prefix_numbers)
        inputs = Inputs(
            tokens=F.pad(source, (self.config.prefix.rows, 0), value=-1),  # no token is there
            real=real,
            carried=carried,
            num_repeats=num_repeats,
            backprop_repeats=backprop_repeats,
            row_depth=row_depth,
            read_repeats=read_repeats,
            exit_rule=self.exit_rule,
            read_logits=functools.partial(self._read_out, mask=mask),
            trace=trace,
            activation_checkpointing=self.activation_checkpointing,
        )
        steps = self.config.carry.steps
        if carried is not None or self.training or steps == 1:
            return self._pass(x, inputs, mask)
        begins = torch.ones(len(x), dtype=torch.bool, device=x.device)
        states = [torch.zeros_like(x)] * self.encoder.options.recursion.num_states
        logits = []
        for _ in range(steps):
            inputs = dataclasses.replace(inputs, carried=Carried(states, begins))
            output = self._pass(x, inputs, mask)
            logits.append(output.logits)
            assert output.carried is not None
            states, begins = output.carried, torch.zeros_like(begins)
        return dataclasses.replace(output, carried=None, step_logits=logits)

    def _pass(self, x: Tensor, inputs: Inputs, mask: Tensor | None) -> ModelOutput:
        """Return what one pass over embedded rows x (B, P + S, D) gives, P rows of them prefix."""
        out = self.encoder(x, inputs)
        output = output_of(functools.partial(self._read_out, mask=mask), encoder=out)
        if output.repeat_shares is not None:
            assert output.repeat_gates is not None
            shares, gates = (
                self._pool(each, mask) for each in (output.repeat_shares, output.repeat_gates)
            )
            output = dataclasses.replace(output, repeat_shares=shares, repeat_gates=gates)
        if self.halt_head is not None:
            output = dataclasses.replace(output, halting=self.halt_head(out.states))
        return output

    def _with_prefix(
        self, x: Tensor, mask: Tensor | None, numbers: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return rows x (B, S, D) and their mask with the prefix rows in front."""
        if self.prefix is None:
            if numbers is not None:
                raise ValueError("prefix_numbers: the model has no prefix (prefix.rows=0)")
            return x, mask
        if numbers is None:
            numbers = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        rows = self.prefix(numbers).to(x.dtype) * self.config.embedding_factor
        real = None if mask is None else F.pad(mask, (self.prefix.rows, 0), value=True)
        return torch.cat((rows, x), dim=1), real

    def _read_out(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self._pool(states, mask), self.embedding.weight)

    def _pool(self, states: Tensor, mask: Tensor | None) -> Tensor:
        states = states[:, self.config.prefix.rows :]
        is_last = self.config.pooling == "last"
        if mask is None:
            return states[:, -1 if is_last else 0]
        columns = torch.arange(states.shape[1], device=states.device)
        if is_last:
            column = (columns * mask).amax(dim=1)
        else:
            column = mask.to(torch.int8).argmax(dim=1)
        rows = torch.arange(states.shape[0], device=states.device)
        return states[rows, column]


class EncoderLabeller(EncoderClassifier):
    """A bidirectional encoder, and a linear classifier on every column of its output.

    ``forward`` takes what a classifier's does, and returns logits (B, S, classes).
    """

    def _pool(self, states: Tensor, mask: Tensor | None) -> Tensor:
        return states[:, self.config.prefix.rows :]
