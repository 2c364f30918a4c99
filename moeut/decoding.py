"""Write text token by token with the key/value cache: the one loop, and greedy decoding by it.

``decode`` is the loop. It asks a *reader* for the logits of each row's next token, a choice for the
token, and hands the token back to the reader. Greedy decoding is here, sampling in
``moeut.sampling``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

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
    """(B,) int64: tokens of each row."""

    finished: Tensor
    """(B,) bool: whether the row ended by itself."""


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the length of a context, and back as it was.

    The mode of the model decides for all its parts. Gradients are recorded or not as outside.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Reader(Protocol):
    """What the loop reads: the rows still being decoded, N of them."""

    logits: Tensor
    """(N, V) of each row's next token."""

    def is_full(self) -> bool:
        """Return whether a row has as many tokens as the model can read."""

    def advance(self, tokens: Tensor) -> None:
        """Read one more token (N,) of each row."""

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows (M,) only."""


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
    continues ``source``, its prompt, which includes whatever ends a prompt; it reads the prompt in
    both directions, as in training with ``prefix_length``, unless ``bidirectional_prompt`` is
    false. ``source_mask`` (B, S) is True at real tokens; padding is on the right.

    Makes at most ``max_length`` decisions for a row, the decision to end included, so a row of n
    tokens needs max_length = n + 1. ``suppress_eos`` gives the end probability 0 (the oracle of
    arXiv 2010.07174): every row then has max_length tokens, and none is finished. Raises ValueError
    for max_length < 1 and, on the CPU, where looking waits for nothing, for an empty prompt.
    """
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: must be at least 1")

    def choose(logits: Tensor) -> Tensor:
        if suppress_eos:
            logits[:, eos] = float("-inf")
        return logits.argmax(dim=-1)

    with evaluation_mode(model):
        if isinstance(model, EncoderDecoder):
            reader = read_source(model, source, source_mask, bos=bos, num_repeats=num_repeats)
        else:
            reader = read_prompt(
                *(model, source, source_mask),
                bidirectional=bidirectional_prompt,
                num_repeats=num_repeats,
            )
        return decode(reader, choose, end=eos, pad=pad, max_length=max_length)


@dataclass
class CachedReader:
    """Read each token once, with the keys and values of those before in a cache."""

    logits: Tensor
    cache: StackCache
    memory: Encoded | None
    read: Callable[[Tensor, StackCache, Encoded | None], Tensor]
    """(tokens (N, T), cache, memory) → logits (N, T, V)."""
    limit: int | None = None
    """Most tokens that a row can have; None: nothing bounds them."""

    def is_full(self) -> bool:
        """Return whether a row has as many tokens as the model can read."""
        return self.limit is not None and self.cache.longest >= self.limit

    def advance(self, tokens: Tensor) -> None:
        """Read one more token (N,) of each row."""
        self.logits = self.read(tokens.unsqueeze(1), self.cache, self.memory)[:, -1]

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows (M,) only."""
        self.cache = self.cache.select(rows)
        self.memory = None if self.memory is None else self.memory.select(rows)


def read_source(
    model: EncoderDecoder,
    source: Tensor,
    source_mask: Tensor,
    *,
    bos: int,
    num_repeats: Any = None,
) -> CachedReader:
    """Encode ``source`` (B, S) and read ``bos``, up to the logits of the first token."""
    memory = model.encode(source, source_mask=source_mask, num_repeats=num_repeats)

    def read(tokens: Tensor, cache: StackCache, memory: Encoded | None) -> Tensor:
        assert memory is not None
        return model.decode(tokens, memory, cache=cache, num_repeats=num_repeats).logits

    cache, limit = model.new_cache(num_repeats), _limit(model)
    reader = CachedReader(source.new_empty(0), cache, memory, read, limit)
    reader.advance(source.new_full((source.shape[0],), bos))
    return reader


def read_prompt(
    model: DecoderLM,
    prompts: Tensor,
    prompt_mask: Tensor,
    *,
    bidirectional: bool,
    num_repeats: Any = None,
) -> CachedReader:
    """Read ``prompts`` (B, T), padded on the right, up to the logits of the first token.

    Raises ValueError for an empty prompt on the CPU, where looking waits for nothing.
    """

    def read(tokens: Tensor, cache: StackCache, memory: Encoded | None) -> Tensor:
        return model(tokens, cache=cache, num_repeats=num_repeats).logits

    cache = model.new_cache(num_repeats)
    lengths = prompt_mask.sum(dim=1)
    if lengths.device.type == "cpu" and bool((lengths < 1).any()):
        raise ValueError("source_mask: a row has no real token for a decoder to continue")
    logits = model(
        prompts,
        padding_mask=prompt_mask,
        prefix_length=lengths if bidirectional else None,
        num_repeats=num_repeats,
        cache=cache,
    ).logits
    rows = torch.arange(prompts.shape[0], device=prompts.device)
    return CachedReader(logits[rows, lengths - 1], cache, None, read, _limit(model))


def _limit(model: DecoderLM | EncoderDecoder) -> int | None:
    """Return the most tokens that the decoder can read at once; None: nothing bounds them."""
    limit = model.config.stacks["decoder"].position_limit
    return None if limit is None else limit[1]


def decode(
    reader: Reader,
    choose: Callable[[Tensor], Tensor],
    *,
    end: int | None,
    pad: int,
    max_length: int,
    drops_ended: bool = True,
    on_token: Callable[[Tensor, Tensor], None] | None = None,
) -> Decoded:
    """Write tokens until every row has ended or has ``max_length`` of them.

    ``choose`` turns logits (N, V) into tokens (N,); a row ends before the token ``end``.
    ``drops_ended`` lets the reader go on without rows that have ended; a choice by random numbers
    needs all B rows at each step, so that what a row draws does not depend on the ends of others.
    ``on_token`` is called after each step with tokens (N,) and whether each still runs (N,).
    """
    device, batch = reader.logits.device, reader.logits.shape[0]
    tokens = torch.full((batch, max_length), pad, dtype=torch.int64, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    lengths = torch.full((batch,), max_length, dtype=torch.int64, device=device)
    rows = torch.arange(batch, device=device)  # (N,) the row of the batch at each of the reader's
    for step in range(max_length):
        chosen = choose(reader.logits)
        running = ~finished[rows]
        if end is not None:
            ended = running & (chosen == end)
            lengths[rows[ended]] = step
            finished[rows[ended]] = True
            running &= ~ended
        chosen = torch.where(running, chosen, pad)
        tokens[rows, step] = chosen
        if on_token is not None:
            on_token(chosen, running)
        num_running = int(running.sum())
        if num_running == 0 or step == max_length - 1:
            break
        # By halves, so that copying the cache costs less than it saves; and where a row that has
        # ended would be refused a position that nobody needs.
        is_due = 2 * num_running <= rows.shape[0] or reader.is_full()
        if drops_ended and num_running < rows.shape[0] and is_due:
            keep = running.nonzero().squeeze(1)
            reader.select(keep)
            rows, chosen = rows[keep], chosen[keep]
        reader.advance(chosen)
    return Decoded(tokens[:, : int(lengths.max()) if batch else 0], lengths, finished)
