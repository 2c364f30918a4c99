"""Text that is continued comes whole, each row as if it were alone, and its speed is counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from runners.scoring.continuation import Settings, Speed, TextStream, continue_ids
from runners.scoring.language_model import load_language_model
from tasks.language.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, language_run) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return language_run(tmp_path_factory.mktemp("generate"), patch)


def test_speed_leaves_out_the_first_step() -> None:
    speed = Speed()
    assert str(speed) == "0 tokens in 0.00 s"
    speed.add([1], [5], [100.0, 109.0])
    assert str(speed) == "1 tokens in 9.00 s"
    speed.add([3, 2], [1, 7], [200.0, 209.0, 210.0, 211.0])  # three later tokens in two seconds
    assert str(speed) == "6 tokens in 20.00 s; 1.5 tokens/s after the first of each text"
    assert speed.longest == 9


def test_characters_come_whole(directory: Path) -> None:
    stream = TextStream(load_language_model(directory))
    pieces = [stream.add(byte) for byte in "aé€".encode()]
    assert pieces == ["a", "", "é", "", "", "€"]
    assert stream.add(0xC3) == ""
    assert stream.rest() == "\N{REPLACEMENT CHARACTER}"


def test_the_space_after_a_prompt_stays() -> None:
    texts = [f"alpha beta {n % 7} gamma" for n in range(60)]
    tokenizer = train_tokenizer(texts, vocabulary_size=40, normalization="paper", boundary=False)
    prompt, whole = tokenizer.encode("alpha"), tokenizer.encode("alpha beta gamma")
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == "beta gamma"  # what has to be avoided
    stream = TextStream(SimpleNamespace(tokenizer=tokenizer), prompt)
    pieces = [stream.add(token) for token in whole[len(prompt) :]]
    assert "".join([*pieces, stream.rest()]) == " beta gamma"


@pytest.mark.parametrize("use_cache", [True, False])
def test_batched_rows_of_different_length_are_each_as_alone(directory: Path, use_cache) -> None:
    loaded = load_language_model(directory)
    loaded.model.double()
    rows = [[256, 97], [256, 97, 98, 99, 100, 101], [256]]
    settings = Settings(max_tokens=8, temperature=0.0, use_cache=use_cache)
    together = continue_ids(loaded, rows, settings).tokens
    for index, row in enumerate(rows):
        assert torch.equal(continue_ids(loaded, [row], settings).tokens[0], together[index])
