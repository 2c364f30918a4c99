"""Continue prompts by sampling, with the key/value cache: one model evaluation per token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moeut.decoding import Decoded, Reader, decode, evaluation_mode, read_prompt
from moeut.models import DecoderLM
from moeut.ops import fewest_rows


@torch.no_grad()
def generate(
    model: DecoderLM,
    prompts: Tensor,
    prompt_mask: Tensor,
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
    pad: int = 0,
    num_ids: int | None = None,
    generator: torch.Generator | None = None,
    num_repeats: int | None = None,
    use_cache: bool = True,
    on_token: Callable[[Tensor, Tensor], None] | None = None,
) -> Decoded:
    """Continue each of ``prompts`` (B, T) by at most ``max_tokens`` tokens.

    ``prompt_mask`` (B, T) is True at real tokens; padding is on the right, and rows may have
    prompts of different length. A row ends before the token ``stop``. ``temperature`` 0 takes the
    most likely token; otherwise one is drawn by ``generator`` from ``probabilities``. Only ids
    below ``num_ids`` are written: a vocabulary may be larger than its tokenizer's. ``on_token`` is
    called after each step with the tokens (B,) and with which rows still run (B,) bool. Without
    ``use_cache`` each step reads the whole text again, to the same result within rounding. Raises
    ValueError for a number out of range, for an empty prompt, and for logits that are not finite.
    """
    check_settings(temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=max_tokens)
    if not bool(prompt_mask[:, :1].all()):
        raise ValueError("prompts: one is empty; there is nothing to continue")
    with evaluation_mode(model), fewest_rows():
        reader: Reader
        if use_cache:
            reader = read_prompt(
                model, prompts, prompt_mask, bidirectional=False, num_repeats=num_repeats
            )
        else:
            reader = Rereader(model, prompts, prompt_mask, num_repeats)
        return decode(
            reader,
            lambda logits: _choose(logits[:, :num_ids], temperature, top_k, top_p, generator),
            end=stop,
            pad=pad,
            max_length=max_tokens,
            drops_ended=False,
            on_token=on_token,
        )


def check_settings(
    *, temperature: float, top_k: int | None, top_p: float | None, max_tokens: int
) -> None:
    """Raise ValueError for a setting of ``generate`` that is out of range."""
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: must be at least 0 and finite")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: must be at least 1")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p}: must be above 0 and at most 1")
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}: must be at least 1")


def probabilities(
    logits: Tensor, *, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return the distribution (B, V) that is drawn from.

    That is the softmax of ``logits / temperature``, of which ``top_k`` keeps the k most likely
    tokens, and then ``top_p`` the smallest set of most likely ones that together have at least that
    probability (nucleus sampling, arXiv 1904.09751); what is kept adds up to 1 again. Of equally
    likely tokens, those with the lower ids are kept. ``logits`` is (B, V).
    """
    # In float64, and from 0 downwards: a temperature may be too small for float32.
    logits = logits.double()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = float("-inf")
    kept = ordered.softmax(dim=-1)
    if top_p is not None and top_p < 1.0:  # sums reach 1 by rounding before the last token
        before = kept.cumsum(dim=-1) - kept
        kept = kept.masked_fill(before >= top_p, 0.0)
        kept = kept / kept.sum(dim=-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, tokens, kept)


def _choose(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise ValueError("the model's logits are not finite: it diverged, or its file is damaged")
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    chances = probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    return torch.multinomial(chances, 1, generator=generator).squeeze(1)


class Rereader:
    """Read all tokens of each row (T,) again for each new one: what the cache is compared with."""

    def __init__(
        self, model: DecoderLM, prompts: Tensor, prompt_mask: Tensor, num_repeats: int | None
    ) -> None:
        self.model, self.num_repeats = model, num_repeats
        self.rows = [row[real] for row, real in zip(prompts, prompt_mask, strict=True)]
        self.logits = self._read()

    def is_full(self) -> bool:
        """Return that nothing is: no row is dropped for the sake of others."""
        return False

    def advance(self, tokens: Tensor) -> None:
        """Read the rows again with one more token (N,) each."""
        pairs = zip(self.rows, tokens[:, None], strict=True)
        self.rows = [torch.cat((row, one)) for row, one in pairs]
        self.logits = self._read()

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows (M,) only."""
        self.rows = [self.rows[row] for row in rows.tolist()]

    def _read(self) -> Tensor:
        lengths = torch.tensor([len(row) for row in self.rows], device=self.rows[0].device)
        tokens = torch.nn.utils.rnn.pad_sequence(self.rows, batch_first=True)
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        output = self.model(
            tokens, padding_mask=columns < lengths[:, None], num_repeats=self.num_repeats
        )
        return output.logits[torch.arange(len(self.rows), device=tokens.device), lengths - 1]
