"""Continue text with a trained language model: ``python -m runners.generate RUN --prompt TEXT``.

RUN is a run's directory, one of its checkpoints, or a ``.ckpt`` file of the paper's training code.
Nothing is written. Text goes to standard output as it comes, speed to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from moeut.sampling import check_settings, generate
from runners import signals
from runners.config import ConfigError
from runners.loading import LanguageModel, load_language_model
from tasks.command_line import Parser


@dataclass(frozen=True)
class Settings:
    """How text is continued; ``moeut.sampling.generate`` says what each means."""

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    repeats: int | None
    use_cache: bool
    batch_size: int


@dataclass(frozen=True)
class Continuation:
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str
    num_tokens: int
    finished: bool
    """Whether the model ended the document by itself."""


class Speed:
    """Tokens written and the seconds that took."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    def __str__(self) -> str:
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return f"{self.tokens} tokens in {self.seconds:.2f} s: {rate:,.1f} tokens/s"


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
        # Decoding all of it each time is what keeps spaces between pieces right.
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        new, self._shown = whole[self._shown :], max(self._shown, len(whole))
        return new

    def rest(self) -> str:
        """Return what was held back."""
        return self._tokenizer.decode(self._ids)[self._shown :]


def continue_prompts(
    loaded: LanguageModel,
    prompts: Sequence[str],
    settings: Settings,
    *,
    stream: bool = False,
    speed: Speed | None = None,
) -> list[Continuation]:
    """Continue prompts in one batch and return them in their order.

    Args:
        loaded: model and tokenizer; a prompt is read after what documents began after in training.
        prompts: texts; an empty one needs a boundary token or separator to begin from.
        settings: sampling, depth and length.
        stream: print the one prompt's text as it comes.
        speed: adds up tokens and seconds.

    Raises:
        ValueError: a setting out of range, a depth that the model cannot take, or nothing to
            begin from.
    """
    ids = [[*loaded.prefix, *loaded.tokenizer.encode(prompt)] for prompt in prompts]
    for prompt, row in zip(prompts, ids, strict=True):
        if not row:
            raise ConfigError(f"prompt {prompt!r}: has no tokens, and the model no boundary token")
    lengths = torch.tensor([len(row) for row in ids])
    tokens = torch.zeros(len(ids), int(lengths.max()), dtype=torch.int64)
    for row, values in zip(tokens, ids, strict=True):
        row[: len(values)] = torch.tensor(values)
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    text = TextStream(loaded, ids[0])

    def show(chosen: torch.Tensor, running: torch.Tensor) -> None:
        if bool(running[0]):
            print(text.add(int(chosen[0])), end="", flush=True)

    began = time.monotonic()
    with loaded.autocast():
        result = generate(
            loaded.model,
            tokens.to(loaded.device),
            mask.to(loaded.device),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop=loaded.tokenizer.boundary_id,
            generator=torch.Generator(loaded.device).manual_seed(settings.seed),
            num_repeats=settings.repeats,
            use_cache=settings.use_cache,
            on_token=show if stream else None,
        )
    if stream:
        print(text.rest(), flush=True)
    if speed is not None:
        speed.seconds += time.monotonic() - began
        speed.tokens += int(result.lengths.sum())
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


def read_prompts(path: Path) -> list[str]:
    r"""Return the prompts of a file: its lines, or of a ``.jsonl`` file the field ``prompt``.

    Raises:
        ValueError: no such file, not UTF-8, no prompts, or a line without the field.
    """
    if not path.is_file():
        raise ConfigError(f"--prompts {path}: no such file")
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ConfigError(f"{path}: holds no prompt")
    if path.suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise ConfigError(f'{path}:{number}: expected {{"prompt": text}}')
        prompts.append(prompt)
    return prompts


def _typed() -> Iterator[str]:
    """Yield the lines that a user types, or that come through a pipe, until there are no more."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m runners.generate",
        description="Continue text with a trained language model.",
        epilog="Without --prompt and --prompts, prompts are read from the keyboard, one a line.",
    )
    parser.add_argument("model", type=Path, help="a run's directory, a step_… in it, or a .ckpt")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer file, where none lies beside")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--prompt", help="text to continue; \\n and \\t are read as in Python")
    given.add_argument("--prompts", type=Path, help="file with a prompt a line, or .jsonl")
    parser.add_argument("--max-tokens", type=int, default=128, help="default 128")
    parser.add_argument("--temperature", type=float, default=1.0, help="default 1; 0 is greedy")
    parser.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    parser.add_argument("--top-k", type=int, help="draw from the k most likely tokens")
    parser.add_argument("--top-p", type=float, help="draw from the most likely, p together")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; default 0")
    parser.add_argument("--repeats", type=int, help="another depth of a shared model")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts of a file at once")
    parser.add_argument("--no-cache", action="store_true", help="read everything for each token")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON object a prompt")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    speed = Speed()
    try:
        settings = Settings(
            max_tokens=options.max_tokens,
            temperature=0.0 if options.greedy else options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            repeats=options.repeats,
            use_cache=not options.no_cache,
            batch_size=options.batch_size,
        )
        check_settings(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
        )
        if settings.batch_size < 1:
            raise ConfigError(f"--batch-size {settings.batch_size}: must be at least 1")
        prompts = None if options.prompts is None else read_prompts(options.prompts)
        loaded = load_language_model(
            options.model, tokenizer=options.tokenizer, device=options.device
        )
        if prompts is not None:
            for first in range(0, len(prompts), settings.batch_size):
                batch = prompts[first : first + settings.batch_size]
                _print(continue_prompts(loaded, batch, settings, speed=speed), options.json)
        else:
            single = None if options.prompt is None else [_unescape(options.prompt)]
            for prompt in single or _typed():
                if not options.json:
                    print(prompt, end="", flush=True)
                done = continue_prompts(
                    loaded, [prompt], settings, stream=not options.json, speed=speed
                )
                if options.json:
                    _print(done, as_json=True)
    except ValueError as error:
        print(error, file=sys.stderr)
        return signals.BAD_INPUT
    print(speed, file=sys.stderr)
    return signals.DONE


def _print(continuations: Sequence[Continuation], as_json: bool) -> None:
    for one in continuations:
        if as_json:
            print(json.dumps(vars(one), ensure_ascii=False), flush=True)
        else:
            print(f"{one.prompt}{one.text}\n", flush=True)


def _unescape(text: str) -> str:
    r"""Return a prompt with ``\n`` and ``\t`` of a shell's single quotes made characters."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


if __name__ == "__main__":
    signals.exit_with(main)
