"""Language models from runs and from checkpoint files, with their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import moeut
from runners.scoring.language_model import load_language_model


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language_run) -> Path:
    return language_run(tmp_path, monkeypatch)


def test_a_run_and_its_checkpoints(directory: Path) -> None:
    loaded = load_language_model(directory)
    assert loaded.context_length == 16
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("abc é")) == "abc é"
    assert loaded.prefix == [256]
    assert loaded.separator == ""
    assert not loaded.model.training
    first, last = (directory / "checkpoints" / f"step_00000{n}" for n in (1, 2))
    weights = {path: load_language_model(path).model.state_dict() for path in (first, last)}
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, weights[last][name])
    assert any(not torch.equal(weights[first][name], weights[last][name]) for name in weights[last])


def test_the_average_is_read_where_it_was_scored(tmp_path, monkeypatch, language_run) -> None:
    directory = language_run(tmp_path, monkeypatch, overrides=("train.ema=0.5",))
    last = directory / "checkpoints" / "step_000002"
    for path in (directory, last):
        weights = load_language_model(path).model.state_dict()
        average, own = (load_file(last / f"{name}.safetensors") for name in ("ema", "model"))
        assert all(torch.equal(value, average[name]) for name, value in weights.items())
        assert not all(torch.equal(value, own[name]) for name, value in weights.items())


def test_a_damaged_checkpoint_is_refused(directory: Path) -> None:
    path = directory / "checkpoints" / "step_000002" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        load_language_model(directory)


def test_another_tokenizer_is_refused(directory: Path, tmp_path: Path) -> None:
    smaller = sentencepiece_model(tmp_path / "smaller.model", 60)
    with pytest.raises(ValueError, match=r"smaller\.model: a tokenizer of 60 ids.* which has 257"):
        load_language_model(directory, tokenizer=smaller)


def test_a_checkpoint_of_another_run_is_refused(directory: Path, caplog) -> None:
    record = directory / "run.json"
    hash_of = json.loads(record.read_text())["hash"]
    record.write_text(record.read_text().replace(hash_of, "01234567"))
    with pytest.raises(ValueError, match=rf"a checkpoint of the run {hash_of}, expected"):
        load_language_model(directory)
    record.unlink()
    caplog.clear()
    load_language_model(directory)  # the weights do not need it
    assert "run.json: no such file" in caplog.text
    assert "not checked that the weights are this run's" in caplog.text


def test_what_is_no_language_model_is_refused(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing: expected a run's directory"):
        load_language_model(tmp_path / "nothing")
    config = directory / "config.yaml"
    config.write_text("task: {name: table_lookup}\nmodel: {architecture: universal}\n")
    with pytest.raises(ValueError, match=r"task 'table_lookup'; expected a language model"):
        load_language_model(directory)


@pytest.fixture
def checkpoint(golden_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "moeut_periln.ckpt"
    path.write_bytes((golden_dir / "training_code" / path.name).read_bytes())
    return path


def sentencepiece_model(path: Path, vocabulary_size: int) -> Path:
    from tasks.language.train_tokenizer import train_tokenizer

    words = ["alpha beta", "gamma delta", "epsilon", "zeta eta theta"]
    texts = [f"{words[n % 4]} {words[n % 3]}" for n in range(50)]
    tokenizer = train_tokenizer(
        texts, vocabulary_size=vocabulary_size, normalization="paper", boundary=False
    )
    tokenizer.save(path.parent)
    (path.parent / "tokenizer.model").rename(path)
    return path


@pytest.mark.golden
def test_a_checkpoint_file_with_the_tokenizer_beside_it(checkpoint: Path) -> None:
    sentencepiece_model(checkpoint.with_name("c4.model"), 40)
    loaded = load_language_model(checkpoint)
    assert loaded.separator == "<STORY_SEP>"
    assert loaded.tokenizer.boundary_id is None
    assert loaded.prefix == loaded.tokenizer.encode("<STORY_SEP>")
    assert loaded.context_length == 12
    expected = moeut.from_training_checkpoint(checkpoint).state_dict()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name])


@pytest.mark.golden
@pytest.mark.parametrize("value", ["none", -3, 0, "many"])
def test_a_context_length_that_is_none_is_refused(checkpoint: Path, value: object) -> None:
    with torch.serialization.safe_globals([(dict, "framework.data_structures.dotdict.DotDict")]):
        content = torch.load(checkpoint, weights_only=True)
    content["run_invariants"]["args"]["lm.unroll"] = value
    torch.save(content, checkpoint)
    sentencepiece_model(checkpoint.with_name("c4.model"), 40)
    with pytest.raises(ValueError, match=rf"periln\.ckpt: lm\.unroll={value!r}: expected"):
        load_language_model(checkpoint)


@pytest.mark.golden
def test_a_checkpoint_file_without_or_with_a_larger_tokenizer(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one SentencePiece file \*\.model beside it"):
        load_language_model(checkpoint)
    larger = sentencepiece_model(checkpoint.with_name("c4.model"), 60)
    for tokenizer in (None, larger):
        with pytest.raises(ValueError, match="60 ids, more than the 50 of the model"):
            load_language_model(checkpoint, tokenizer=tokenizer)
