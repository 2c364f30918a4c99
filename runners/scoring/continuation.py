"""Text continued by a language model: in batches, as it comes, and how fast."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from moeut.decoding import Decoded
from moeut.sampling import check_settings, generate
from runners.scoring.language_model import LanguageModel
from runners.scoring.room import check_room, tokens_after
from runners.training.batches import padded_batch


@dataclass(frozen=True)
class Settings:
    """How text is continued; ``moeut.sampling.generate`` says what each means."""

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repeats: int | None = None
    """Depth; None: the model's own."""
    use_cache: bool = True

    def check(self) -> None:
        """Raise ValueError for a setting that is out of range."""
        check_settings(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
        )


@dataclass(frozen=True)
class Continuation:
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str
    num_tokens: int
    finished: bool
    """Whether the model ended the document by itself."""


class Speed:
    """Counts the tokens of all batches, and the seconds they took."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0
        self.later_tokens, self.later_seconds = 0, 0.0
        """Without the first step of each batch, which reads prompts and loads kernels."""
        self.longest = 0
        """Tokens of the longest text, with its prompt and what comes before the prompt."""

    def add(self, lengths: Sequence[int], prompt_lengths: Sequence[int], ends: list[float]) -> None:
        """Count a batch: tokens of each row; when it began, and when each step was done."""
        self.tokens += sum(lengths)
        self.seconds += ends[-1] - ends[0]
        self.later_tokens += sum(max(0, length - 1) for length in lengths)
        self.later_seconds += ends[-1] - ends[1]
        texts = (sum(pair) for pair in zip(prompt_lengths, lengths, strict=True))
        self.longest = max(self.longest, *texts)

    def __str__(self) -> str:
        shown = f"{self.tokens} tokens in {self.seconds:.2f} s"
        if not self.later_tokens:
            return shown
        rate = self.later_tokens / self.later_seconds
        return f"{shown}; {rate:,.1f} tokens/s after the first of each text"


class TextStream:
    """Turns ids that come one by one into text, holding back characters that are not whole yet.

    Args:
        loaded: its tokenizer decodes.
        prompt: ids before the first. They are decoded with the others and left out of the text:
            SentencePiece drops a space at the beginning of what it decodes.
    """

    def __init__(self, loaded: LanguageModel, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = loaded.tokenizer
        self._ids = list(prompt)
        self._shown = len(self._tokenizer.decode(self._ids))

    def add(self, token: int) -> str:
        """Return the text that the token completes."""
        self._ids.append(token)
        # A piece decoded alone may lose its space, so all ids are decoded each time.
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        new, self._shown = whole[self._shown :], max(self._shown, len(whole))
        return new

    def rest(self) -> str:
        """Return what was held back."""
        return self._tokenizer.decode(self._ids)[self._shown :]


def continue_ids(
    loaded: LanguageModel,
    rows: Sequence[Sequence[int]],
    settings: Settings,
    *,
    generator: torch.Generator | None = None,
    on_token: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> Decoded:
    """Continue rows of ids, in one batch where all have the same room for what follows.

    Args:
        loaded: the model.
        rows: ids, at least one in each row.
        settings: sampling, depth and length; a row near the end of learned positions gets as many
            tokens as they allow.
        generator: what is drawn from, on the model's device.
        on_token: called after each step, see ``moeut.sampling.generate``.

    Raises:
        ValueError: a setting out of range, a depth that the model cannot take, or a row that
            learned positions have no room for.
    """
    alike: dict[int, list[int]] = {}  # room → rows
    for index, row in enumerate(rows):
        alike.setdefault(tokens_after(loaded, len(row), settings.max_tokens), []).append(index)
    parts = {
        room: _continue_alike(
            loaded,
            [rows[index] for index in indices],
            dataclasses.replace(settings, max_tokens=room),
            generator,
            on_token,
        )
        for room, indices in alike.items()
    }
    if len(parts) == 1:
        return next(iter(parts.values()))
    size = max(part.tokens.shape[1] for part in parts.values())
    order = torch.tensor([index for indices in alike.values() for index in indices])
    place = order.argsort().to(loaded.device)
    padded = [F.pad(part.tokens, (0, size - part.tokens.shape[1])) for part in parts.values()]
    return Decoded(
        torch.cat(padded)[place],
        torch.cat([part.lengths for part in parts.values()])[place],
        torch.cat([part.finished for part in parts.values()])[place],
    )


def _continue_alike(
    loaded: LanguageModel,
    rows: Sequence[Sequence[int]],
    settings: Settings,
    generator: torch.Generator | None,
    on_token: Callable[[torch.Tensor, torch.Tensor], None] | None,
) -> Decoded:
    tokens, mask = padded_batch(rows, 0, loaded.device)
    with loaded.autocast():
        return generate(
            loaded.model,
            tokens,
            mask,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop=loaded.tokenizer.boundary_id,
            num_ids=loaded.tokenizer.vocabulary_size,
            generator=generator,
            num_repeats=settings.repeats,
            use_cache=settings.use_cache,
            on_token=on_token,
        )


def prompt_ids(loaded: LanguageModel, prompts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each prompt, after what precedes a document in training."""
    return [[*loaded.prefix, *loaded.tokenizer.encode(prompt)] for prompt in prompts]


def continue_prompts(
    loaded: LanguageModel,
    prompts: Sequence[str],
    settings: Settings,
    *,
    generator: torch.Generator | None = None,
    stream: bool = False,
    speed: Speed | None = None,
) -> list[Continuation]:
    """Continue prompts in one batch and return them in their order.

    Args:
        loaded: model and tokenizer; a prompt is read after ``loaded.prefix``.
        prompts: texts; an empty one needs a boundary token or separator to begin from.
        settings: sampling, depth and length.
        generator: what is drawn from, on the model's device.
        stream: print the one prompt's text as it comes.
        speed: adds up tokens and seconds.

    Raises:
        ValueError: a setting out of range, a depth that the model cannot take, nothing to begin
            from, or a prompt that learned positions have no room for.
    """
    ids = prompt_ids(loaded, prompts)
    check_room(loaded, ids, prompts)
    text = TextStream(loaded, ids[0])
    ends = [time.monotonic()]

    def on_token(chosen: torch.Tensor, running: torch.Tensor) -> None:
        if stream and bool(running[0]):
            print(text.add(int(chosen[0])), end="", flush=True)
        ends.append(time.monotonic())

    result = continue_ids(loaded, ids, settings, generator=generator, on_token=on_token)
    if stream:
        print(text.rest(), flush=True)
    if speed is not None:
        speed.add(result.lengths.tolist(), [len(row) for row in ids], ends)
    return [
        Continuation(prompt, _text_after(loaded, before, row[:length]), length, finished)
        for prompt, before, row, length, finished in zip(
            prompts,
            ids,
            result.tokens.tolist(),
            result.lengths.tolist(),
            result.finished.tolist(),
            strict=True,
        )
    ]


def _text_after(loaded: LanguageModel, prompt: list[int], tokens: list[int]) -> str:
    decode = loaded.tokenizer.decode
    return decode([*prompt, *tokens])[len(decode(prompt)) :]
