"""A run becomes a folder that Transformers reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moeut.sampling import generate
from runners.export import main
from runners.scoring.language_model import load_language_model
from tasks.language.tokenizers import load_tokenizer
from tasks.language.train_tokenizer import train_tokenizer

transformers = pytest.importorskip("transformers", reason="needs the extra [hf]")
pytestmark = pytest.mark.extras


def test_the_folder_holds_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language_run, capsys
) -> None:
    directory = language_run(tmp_path, monkeypatch)
    folder = tmp_path / "exported"
    assert main([str(directory), "--output", str(folder)]) == 0
    loaded = load_language_model(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([[256, 97, 98]])
    assert torch.equal(model(tokens).logits, loaded.model(tokens).logits)
    assert model.generation_config.eos_token_id == 256
    assert load_tokenizer(folder / "tokenizer.bytes").encode("a") == [97]
    capsys.readouterr()
    assert main([str(directory), "--output", str(folder)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main([str(directory), "--output", "/dev/null/folder"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def generated_alike(folder: Path, source: Path, prompt: list[int]) -> None:
    """Greedy text of the exported model is that of our own, and ends where it does."""
    loaded = load_language_model(source)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).double()
    tokens = torch.tensor([prompt])
    stop = loaded.tokenizer.boundary_id
    ours = generate(
        loaded.model.double(), tokens, tokens >= 0, max_tokens=20, temperature=0.0, stop=stop
    )
    written = theirs.generate(tokens, max_new_tokens=20, do_sample=False)[0, len(prompt) :].tolist()
    expected = ours.tokens[0, : ours.lengths[0]].tolist()
    assert written == expected + ([stop] if bool(ours.finished[0]) else [])


def test_generated_text_is_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language_run
) -> None:
    directory = language_run(tmp_path, monkeypatch)
    assert main([str(directory), "--output", str(tmp_path / "exported")]) == 0
    generated_alike(tmp_path / "exported", directory, [256, *b"abc def"])


@pytest.mark.golden
@pytest.mark.parametrize("name", ["moeut_periln", "dense_preln_rope", "sigma_moe_nonshared"])
def test_a_checkpoint_of_the_training_code(tmp_path: Path, golden_dir: Path, name: str) -> None:
    """Its tokenizer has no boundary, so that id 0 is a token like any, and no padding."""
    path = tmp_path / f"{name}.ckpt"
    path.write_bytes((golden_dir / "training_code" / path.name).read_bytes())
    train_tokenizer(
        ["alpha beta gamma"] * 9, vocabulary_size=20, normalization="paper", boundary=False
    ).save(tmp_path)
    assert main([str(path), "--output", str(tmp_path / "exported")]) == 0
    generated_alike(tmp_path / "exported", path, [7, 0, 5, 0])
