"""Log-likelihoods of continuations under a language model, many at once.

They are defined as in lm-evaluation-harness (EleutherAI, 0.4):

* Context and continuation are tokenized as one text, which is split where the context's own tokens
  end; spaces at the end of the context belong to the continuation.
* A text begins after the boundary token. Where the tokenizer has none, as the paper's, the first
  token of a text has nothing before it and is not scored, as in the paper's code.
* A text longer than the model's context loses its beginning. A continuation that is itself longer
  is scored in windows: each token once, with as much context as there is room for.

Rows are sorted by length, padded on the right and read in batches. Where the continuations of one
question share enough of their beginning, it is read once, and the rest from its keys and values.
Neither changes a result by more than rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from moeut.recurrence.cache import StackCache
from runners.scoring.language_model import LanguageModel
from runners.scoring.text import LOGITS_AT_ONCE
from runners.training.batches import padded_batch
from tasks.language.tokenizers import Tokenizer
from tasks.zero_shot import Likelihood

BATCH_SIZE = 32
SHARED_SHARE = 0.25
"""Share of a question's tokens that has to be saved before its beginning is read apart."""


@dataclass(frozen=True, slots=True)
class Request:
    """Token ids: a continuation to be scored, after a context of at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def encode(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Return the tokens of a context and of its continuation.

    Raises:
        ValueError: the continuation has no tokens of its own.
    """
    context, continuation = _move_spaces(context, continuation)
    whole = tokenizer.encode(context + continuation)
    before = tokenizer.encode(context) if context else []
    if len(whole) <= len(before):
        raise ValueError(f"{continuation[:60]!r}: has no tokens of its own after its context")
    after = whole[len(before) :]
    if tokenizer.boundary_id is not None:
        before = [tokenizer.boundary_id, *before]
    elif not before:
        before, after = after[:1], after[1:]
    return Request(tuple(before), tuple(after))


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


# --- windows ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of which the last ``num_scored`` are predicted from those before them."""

    tokens: tuple[int, ...]
    num_scored: int


def windows(request: Request, context_length: int) -> list[Window]:
    """Return the windows that score each token of a continuation once.

    Each has at most ``context_length`` + 1 tokens, the last of which is only predicted.

    >>> windows(Request((0, 1, 2, 3), (4, 5)), 4)
    [Window(tokens=(1, 2, 3, 4, 5), num_scored=2)]
    >>> [(w.tokens, w.num_scored) for w in windows(Request((9,), (0, 1, 2, 3, 4, 5)), 4)]
    [((9, 0, 1, 2, 3), 4), ((1, 2, 3, 4, 5), 2)]
    """
    tokens = request.context + request.continuation
    start = len(request.context)
    found = []
    while start < len(tokens):
        left = len(tokens) - start
        end = start + min(left, context_length)
        found.append(Window(tokens[max(0, end - context_length - 1) : end], end - start))
        start = end
    return found


def is_truncated(request: Request, context_length: int) -> bool:
    """Return whether a part of the context is too far away to be read."""
    return len(request.context) + len(request.continuation) > context_length + 1


# --- likelihoods ------------------------------------------------------------------------


@dataclass
class _Sum:
    """The likelihood of one continuation, gathered from its windows."""

    log_likelihood: float = 0.0
    num_tokens: int = 0
    is_greedy: bool = True

    def add(self, log_likelihood: float, num_tokens: int, is_greedy: bool) -> None:
        self.log_likelihood += log_likelihood
        self.num_tokens += num_tokens
        self.is_greedy = self.is_greedy and is_greedy

    def freeze(self) -> Likelihood:
        return Likelihood(self.log_likelihood, self.num_tokens, self.is_greedy)


@dataclass
class _Family:
    """Windows with a common beginning of ``num_shared`` tokens, or a single window with none."""

    windows: list[Window]
    sums: list[_Sum]
    num_shared: int = 0
    num_tokens: int = field(init=False)
    """Longest row that is read, for sorting."""

    def __post_init__(self) -> None:
        self.num_tokens = max(len(window.tokens) for window in self.windows) - 1


@torch.no_grad()
def score_requests(
    language: LanguageModel,
    questions: Sequence[Sequence[Request]],
    *,
    batch_size: int = BATCH_SIZE,
    use_cache: bool = True,
    num_repeats: int | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Likelihood]]:
    """Return the likelihood of each continuation of each question.

    Args:
        language: the model; its context length is the longest row that is read.
        questions: requests whose beginnings may be shared.
        batch_size: most rows of a batch; fewer where their logits would not fit.
        use_cache: read shared beginnings once.
        num_repeats: depth; None: the model's own.
        on_batch: called before each batch with the continuations done and their number; may raise
            to stop.

    Raises:
        ValueError: a log-likelihood is NaN, which compares with nothing.
    """
    sums = [[_Sum() for _ in requests] for requests in questions]
    families = []
    for requests, row in zip(questions, sums, strict=True):
        families += _families(requests, row, language.context_length, use_cache)
    # The longest first, so that a batch too large for the memory fails at once.
    families.sort(key=lambda family: (family.num_shared > 0, -family.num_tokens))
    reader = _Reader(language, num_repeats)
    done, total = 0, sum(len(family.windows) for family in families)
    for batch in _batches(families, batch_size, reader.tokens_at_once):
        on_batch(done, total)
        if batch[0].num_shared:
            reader.read_shared(batch)
        else:
            reader.read_whole(batch)
        if any(math.isnan(one.log_likelihood) for family in batch for one in family.sums):
            raise ValueError(
                f"{language.name}: its log-likelihoods are not numbers (NaN): it diverged, or its "
                f"file is damaged"
            )
        done += sum(len(family.windows) for family in batch)
    return [[one.freeze() for one in row] for row in sums]


def _families(
    requests: Sequence[Request], sums: list[_Sum], context_length: int, use_cache: bool
) -> list[_Family]:
    found = [windows(request, context_length) for request in requests]
    if use_cache and len(requests) > 1 and all(len(row) == 1 for row in found):
        members = [row[0] for row in found]
        # The last token of a window is only predicted, so it cannot be in the shared beginning.
        shared = _common_length([window.tokens[:-1] for window in members])
        read = sum(len(window.tokens) - 1 for window in members)
        if shared * (len(members) - 1) >= SHARED_SHARE * read > 0:
            return [_Family(members, list(sums), shared)]
    return [
        _Family([window], [one]) for row, one in zip(found, sums, strict=True) for window in row
    ]


def _common_length(rows: Sequence[Sequence[int]]) -> int:
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows)))  # noqa: B905


def _batches(
    families: Sequence[_Family], batch_size: int, tokens_at_once: int
) -> Iterator[list[_Family]]:
    """Yield batches of families, within both limits; shared and single ones are not mixed."""
    batch: list[_Family] = []
    rows = longest = 0
    for family in families:
        more = rows + len(family.windows)
        width = max(longest, family.num_tokens)
        is_full = more > batch_size or more * width > tokens_at_once
        if batch and (is_full or bool(family.num_shared) != bool(batch[0].num_shared)):
            yield batch
            batch, rows, longest = [], 0, 0
        batch.append(family)
        rows += len(family.windows)
        longest = max(longest, family.num_tokens)
    if batch:
        yield batch


class _Reader:
    """Reads batches of windows and adds up what the model says of their scored tokens."""

    def __init__(self, language: LanguageModel, num_repeats: int | None) -> None:
        self.language = language
        self.num_repeats = num_repeats
        logits = LOGITS_AT_ONCE[language.device.type]
        self.tokens_at_once = max(1, logits // language.model.config.vocabulary_size)

    def read_whole(self, batch: list[_Family]) -> None:
        """Read each window from its beginning."""
        rows = [window for family in batch for window in family.windows]
        sums = [one for family in batch for one in family.sums]
        logits = self._read([row.tokens[:-1] for row in rows], None)
        firsts = [len(row.tokens) - 1 - row.num_scored for row in rows]
        targets = [row.tokens[-row.num_scored :] for row in rows]
        _add(logits, range(len(rows)), firsts, targets, sums)

    def read_shared(self, batch: list[_Family]) -> None:
        """Read what the windows of each family share once, then the rest of each window."""
        cache = self.language.model.new_cache(self.num_repeats)
        logits = self._read([f.windows[0].tokens[: f.num_shared] for f in batch], cache)
        members = [
            _Member(owner, family.num_shared, window, one)
            for owner, family in enumerate(batch)
            for window, one in zip(family.windows, family.sums, strict=True)
        ]
        # Shared tokens 0 … start-1 predict tokens 1 … start, the first one that differs included.
        _add(
            logits,
            [member.owner for member in members],
            [member.first - 1 for member in members],
            [member.window.tokens[member.first : member.start + 1] for member in members],
            [member.sum for member in members],
        )
        members = [member for member in members if len(member.window.tokens) > member.start + 1]
        if not members:
            return
        owners = torch.tensor([member.owner for member in members], device=self.language.device)
        rest = [member.window.tokens[member.start : -1] for member in members]
        logits = self._read(rest, cache.select(owners))
        firsts = [max(member.start + 1, member.first) for member in members]
        _add(
            logits,
            range(len(members)),
            [first - m.start - 1 for first, m in zip(firsts, members, strict=True)],
            [m.window.tokens[first:] for first, m in zip(firsts, members, strict=True)],
            [member.sum for member in members],
        )

    def _read(self, rows: Sequence[Sequence[int]], cache: StackCache | None) -> Tensor:
        """Return the logits (B, T, V) of rows padded on the right, continuing a cache's."""
        tokens, mask = padded_batch(rows, 0, self.language.device)
        with self.language.autocast():
            output = self.language.model(
                tokens, padding_mask=mask, num_repeats=self.num_repeats, cache=cache
            )
        return output.logits


@dataclass(frozen=True)
class _Member:
    """A window of a family that is read in two parts."""

    owner: int
    start: int
    """Tokens of the first part."""
    window: Window
    sum: _Sum

    @property
    def first(self) -> int:
        """Index of the first token scored."""
        return len(self.window.tokens) - self.window.num_scored


def _add(
    logits: Tensor,
    owners: Sequence[int],
    firsts: Sequence[int],
    targets: Sequence[Sequence[int]],
    sums: Sequence[_Sum],
) -> None:
    """Add the log-likelihoods of targets to sums.

    Args:
        logits: (B, T, V); those at column t are of token t + 1 of what was read.
        owners: for each target, the row of the logits.
        firsts: for each target, the column that predicts its first token.
        targets: tokens, which columns ``first``, ``first`` + 1, … predict.
        sums: where they are added, one for each target.
    """
    counts = [len(row) for row in targets]
    if not any(counts):
        return
    places = [
        (owner, first + offset)
        for owner, first, count in zip(owners, firsts, counts, strict=True)
        for offset in range(count)
    ]
    rows, columns = torch.tensor(places, device=logits.device).T
    wanted = torch.tensor([token for row in targets for token in row], device=logits.device)
    chosen = logits[rows, columns]  # (scored tokens, V): the only ones that need a softmax
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    likelihoods = chosen.log_softmax(dim=-1).gather(1, wanted.unsqueeze(1)).squeeze(1).double()
    is_best = chosen.argmax(dim=-1) == wanted
    parts = zip(likelihoods.cpu().split(counts), is_best.cpu().split(counts), strict=True)
    for one, count, (part, best) in zip(sums, counts, parts, strict=True):
        one.add(float(part.sum()), count, bool(best.all()))
