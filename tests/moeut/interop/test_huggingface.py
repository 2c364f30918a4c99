"""Through Transformers a model gives the same numbers and the same text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.sampling import generate

transformers = pytest.importorskip("transformers", reason="needs the extra [hf]")
pytestmark = pytest.mark.extras

import moeut.interop.huggingface as hf  # noqa: E402


@pytest.fixture(params=["transformer", "universal", "moeut", "sigma_moe"])
def model(request):
    torch.manual_seed(0)
    config = moeut.architecture(
        request.param,
        form="decoder_lm",
        vocabulary_size=13,
        d_model=16,
        num_layers=4,
        num_heads=2,
        tie_embeddings=request.param == "universal",
    )
    return moeut.build(config).eval()


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    rows = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    tokens, mask = torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(5 - len(row), 5) if side == "left" else slice(0, len(row))
        tokens[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return tokens, mask, rows


def reloaded(model, folder: Path):
    hf.wrap(model).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_saved_and_loaded_it_is_the_same_to_the_bit(model, tmp_path: Path) -> None:
    loaded = reloaded(model, tmp_path)
    assert type(loaded) is hf.MoEUTForCausalLM
    expected = model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation_is_our_own(model, tmp_path: Path, use_cache: bool) -> None:
    loaded = reloaded(model.double(), tmp_path).double()
    tokens, mask, rows = padded("left")
    read = []
    loaded.model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    theirs = loaded.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        use_cache=use_cache,
    )
    assert read == ([5, 1, 1, 1, 1, 1] if use_cache else [5, 6, 7, 8, 9, 10])
    for index, row in enumerate(rows):
        alone = torch.tensor([row])
        ours = generate(model, alone, alone >= 0, max_tokens=6, temperature=0.0).tokens
        assert torch.equal(theirs[index, 5:], ours[0])


def test_beams_without_cache_and_with_it_agree(model) -> None:
    wrapped = hf.wrap(model.double())
    tokens, mask, _ = padded("left")
    read = []
    model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    texts = [
        wrapped.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=5,
            num_beams=3,
            do_sample=False,
            pad_token_id=0,
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*texts)
    assert read == [5, 1, 1, 1, 1, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_position(model, side: str) -> None:
    wrapped = hf.wrap(model.double())
    tokens, mask, rows = padded(side)
    logits = wrapped(tokens, attention_mask=mask).logits
    for index, row in enumerate(rows):
        alone = model(torch.tensor([row])).logits[0]
        assert (logits[index][mask[index].bool()] - alone).abs().max() < 1e-12


def test_padding_in_the_middle_is_refused(model) -> None:
    with pytest.raises(ValueError, match="one side"):
        hf.wrap(model)(torch.ones(1, 3, dtype=int), attention_mask=torch.tensor([[1, 0, 1]]))


def test_the_loss_counts_labels_and_the_auxiliary_loss(model) -> None:
    wrapped = hf.wrap(model.train())
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    labels = tokens.clone()
    labels[0, 2] = -100
    output = model(tokens)
    logits, targets = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    kept = targets != -100
    expected = F.cross_entropy(logits[kept], targets[kept]) + output.auxiliary_loss
    loss = wrapped(tokens, labels=labels).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_other_forms_and_arguments_are_refused(model) -> None:
    with pytest.raises(ValueError, match="output_attentions: not supported"):
        hf.wrap(model)(torch.tensor([[1]]), output_attentions=True)
    config = moeut.architecture(
        "transformer", form="encoder_classifier", vocabulary_size=4, num_classes=2
    )
    with pytest.raises(ValueError, match="expected decoder_lm"):
        hf.MoEUTConfig(decoder_lm=config.to_dict())
