"""Greedy decoding with the key/value cache: one model evaluation per token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moeut.models import DecoderLM, Encoded, EncoderDecoder
from moeut.recurrence.cache import StackCache


@dataclass(frozen=True)
class Decoded:
    """Decoded continuations."""

    tokens: Tensor
    """(B, L) int64, without begin and end of sequence; padding after each row's end."""

    lengths: Tensor
    """(B,) tokens of each row."""

    finished: Tensor
    """(B,) bool: whether the row ended by itself."""


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the length of a context, and back as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def greedy_decode(
    model: DecoderLM | EncoderDecoder,
    source: Tensor,
    source_mask: Tensor,
    *,
    bos: int,
    eos: int,
    pad: int,
    max_length: int,
    suppress_eos: bool = False,
    num_repeats: Any = None,
    bidirectional_prompt: bool = True,
) -> Decoded:
    """Decode the most likely token at each step.

    An encoder-decoder reads ``source`` (B, S) and starts its output with ``bos``. A decoder
    continues ``source``, its prompt, which includes whatever ends a prompt; the prompt is read in
    both directions, as it is in training with ``prefix_length``, unless ``bidirectional_prompt`` is
    false. ``source_mask`` (B, S) is True at real tokens; padding is on the right.

    At most ``max_length`` decisions are made for a row, the decision to end included, so a row of n
    tokens needs max_length = n + 1. ``suppress_eos`` gives the end probability 0 (the oracle of
    arXiv 2010.07174): every row then has max_length tokens, and none is finished. Raises ValueError
    for max_length < 1 and, on the CPU, where looking waits for nothing, for an empty prompt.
    """
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: must be at least 1")
    with evaluation_mode(model):
        reader = start(
            model,
            source,
            source_mask,
            bos=bos,
            num_repeats=num_repeats,
            bidirectional_prompt=bidirectional_prompt,
        )
        return _decode(reader, source.shape[0], eos, pad, max_length, suppress_eos)


@dataclass
class Reader:
    """The rows still being decoded: their cache, and the logits of their next token."""

    logits: Tensor
    cache: StackCache
    memory: Encoded | None
    read: Callable[[Tensor, StackCache, Encoded | None], Tensor]

    def advance(self, tokens: Tensor) -> None:
        """Read one more token (B,) of each row."""
        self.logits = self.read(tokens.unsqueeze(1), self.cache, self.memory)[:, -1]

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows only."""
        self.cache = self.cache.select(rows)
        self.memory = None if self.memory is None else self.memory.select(rows)


def start(
    model: DecoderLM | EncoderDecoder,
    source: Tensor,
    source_mask: Tensor,
    *,
    bos: int,
    num_repeats: Any,
    bidirectional_prompt: bool,
) -> Reader:
    """Read the source, or the prompt, up to the logits of the first token."""
    if isinstance(model, EncoderDecoder):
        memory = model.encode(source, source_mask=source_mask, num_repeats=num_repeats)
        cache = model.new_cache(num_repeats)

        def read(tokens: Tensor, cache: StackCache, memory: Encoded | None) -> Tensor:
            assert memory is not None
            return model.decode(tokens, memory, cache=cache, num_repeats=num_repeats).logits

        reader = Reader(source.new_empty(0), cache, memory, read)
        reader.advance(source.new_full((source.shape[0],), bos))
        return reader

    def read_lm(tokens: Tensor, cache: StackCache, memory: Encoded | None) -> Tensor:
        return model(tokens, cache=cache, num_repeats=num_repeats).logits

    cache = model.new_cache(num_repeats)
    lengths = source_mask.sum(dim=1)
    if lengths.device.type == "cpu" and bool((lengths < 1).any()):
        raise ValueError("source_mask: a row has no real token for a decoder to continue")
    logits = model(
        source,
        padding_mask=source_mask,
        prefix_length=lengths if bidirectional_prompt else None,
        num_repeats=num_repeats,
        cache=cache,
    ).logits
    rows = torch.arange(source.shape[0], device=source.device)
    return Reader(logits[rows, lengths - 1], cache, None, read_lm)


def _decode(
    reader: Reader, batch: int, eos: int, pad: int, max_length: int, suppress_eos: bool
) -> Decoded:
    device = reader.logits.device
    tokens = torch.full((batch, max_length), pad, dtype=torch.int64, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    lengths = torch.full((batch,), max_length, dtype=torch.int64, device=device)
    rows = torch.arange(batch, device=device)  # which rows the reader holds
    for step in range(max_length):
        if suppress_eos:
            reader.logits[:, eos] = float("-inf")
        best = reader.logits.argmax(dim=-1)
        running = ~finished[rows]
        ended = running & (best == eos)
        lengths[rows[ended]] = step
        finished[rows[ended]] = True
        running &= ~ended
        tokens[rows, step] = torch.where(running, best, pad)
        num_running = int(running.sum())
        if num_running == 0 or step == max_length - 1:
            break
        if 2 * num_running <= rows.shape[0]:  # halving, so that copies cost less than they save
            keep = running.nonzero().squeeze(1)
            reader.select(keep)
            rows, best = rows[keep], best[keep]
        reader.advance(torch.where(finished[rows], pad, best))
    return Decoded(tokens[:, : int(lengths.max()) if batch else 0], lengths, finished)
