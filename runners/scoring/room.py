"""How many tokens a model can write after a prompt, known before anything is computed.

A prompt is never cut for the sake of what is to follow. Where learned positions end, less follows.
"""

from __future__ import annotations

from collections.abc import Sequence

from runners.config.schema import ConfigError
from runners.scoring.language_model import LanguageModel


def position_limit(loaded: LanguageModel) -> int | None:
    """Return the most tokens that the model can read at once; None: no bound but memory."""
    limit = loaded.model.config.stacks["decoder"].position_limit
    return None if limit is None else limit[1]


def tokens_after(loaded: LanguageModel, num_tokens: int, wanted: int) -> int:
    """Return how many tokens, ``wanted`` at most, can follow a prompt of ``num_tokens``.

    The last one written is not read, so that it needs no position.
    """
    limit = position_limit(loaded)
    return wanted if limit is None else max(0, min(wanted, limit + 1 - num_tokens))


def check_room(
    loaded: LanguageModel, rows: Sequence[Sequence[int]], prompts: Sequence[str]
) -> None:
    """Check that something can be written after each prompt.

    Args:
        loaded: the model.
        rows: ids of each prompt, with what comes before it.
        prompts: the same as text, for the message.

    Raises:
        ConfigError: a prompt without any tokens to begin from, or with more than the model has
            positions.
    """
    for prompt, row in zip(prompts, rows, strict=True):
        shown = repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
        if not row:
            raise ConfigError(f"prompt {shown}: has no tokens, and the model no boundary token")
        if tokens_after(loaded, len(row), 1) < 1:
            raise ConfigError(
                f"prompt {shown}: {len(row)} tokens; the model's learned positions end at "
                f"{position_limit(loaded)} (model.position.max_length), so that nothing can follow"
            )


def shortage(loaded: LanguageModel, rows: Sequence[Sequence[int]], wanted: int) -> str | None:
    """Return a sentence about the prompts that fewer tokens can follow than wanted, if any."""
    rooms = [tokens_after(loaded, len(row), wanted) for row in rows]
    short = [room for room in rooms if room < wanted]
    if not short:
        return None
    return (
        f"{len(short)} of {len(rows)} prompts: fewer than {wanted} tokens can follow (the fewest: "
        f"{min(short)}), since the model's learned positions end at {position_limit(loaded)}"
    )
