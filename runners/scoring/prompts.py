"""Prompts that a user gives: on the command line, in a file, typed or through a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from runners.config.schema import ConfigError
from tasks.base.lines import (
    JSON_SUFFIXES,
    decoded_lines,
    lines_of,
    lone_surrogate,
    parse_json_object,
)


def read_prompts(path: Path) -> list[str]:
    r"""Return the prompts of a file: its lines, or of a ``.jsonl`` file the field ``prompt``.

    Lines without text are passed over; a line that JSON holds may be empty.

    Raises:
        ConfigError: no such file, or no prompts in it.
        ValueError: bytes that are not UTF-8, or a line without the field; with file and line.
    """
    if not path.is_file():
        raise ConfigError(f"--prompts {path}: no such file")
    lines = [row for row in lines_of(path.read_bytes(), str(path)) if row[1].strip()]
    if not lines:
        raise ConfigError(f"{path}: holds no prompt")
    if path.suffix.lower() not in JSON_SUFFIXES:
        return [line for _, line in lines]
    return [_prompt_of(line, f"{path}:{number}") for number, line in lines]


def _prompt_of(line: str, place: str) -> str:
    expected = 'expected {"prompt": text}'
    try:
        prompt = parse_json_object(line).get("prompt")
    except ValueError as error:
        raise ConfigError(f"{place}: {error}; {expected}") from None
    if not isinstance(prompt, str):
        raise ConfigError(f"{place}: {expected}")
    return prompt


def given_prompt(text: str) -> str:
    r"""Return the prompt of a command line, in which ``\n`` stands for a line end.

    Raises:
        ConfigError: bytes that are not UTF-8.
    """
    if lone_surrogate(text):  # Python's sign for them
        raise ConfigError(f"--prompt {text!r}: bytes that are not UTF-8")
    return unescape(text)


def typed_prompts() -> Iterator[str]:
    """Yield the lines that a user types, or that come through a pipe, until there are no more.

    Raises:
        ValueError: bytes that are not UTF-8, when their line is reached.
    """
    if sys.stdin is None:  # it was closed by who started the command
        return
    lines = decoded_lines(sys.stdin.buffer, "standard input")
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        _, line = next(lines, (0, None))
        if line is None:
            return
        if line.strip():
            yield unescape(line)


def unescape(text: str) -> str:
    r"""Return a prompt of one line in which ``\n``, ``\t`` and ``\\`` are made characters.

    >>> unescape(r"a\nb c:\\new \d")
    'a\nb c:\\new \\d'
    """
    characters = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: characters[match[1]], text)
