"""A run becomes a folder that Transformers reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runners.export import main
from runners.loading import load_language_model
from tasks.language.tokenizers import load_tokenizer

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
