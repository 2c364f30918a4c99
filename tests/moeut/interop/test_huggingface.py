"""Through Transformers a model gives the same numbers and the same text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
        attention={"num_heads": 2},
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


def test_parts_of_a_batch_add_up_to_its_loss(model) -> None:
    wrapped = hf.wrap(model)
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    labels = tokens.clone()
    labels[1, 2:] = -100
    whole = wrapped(tokens, labels=labels).loss
    parts = [
        wrapped(tokens[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss
        for i, count in enumerate((5, torch.tensor([[5]])))  # DataParallel's shape
    ]
    assert (sum(parts) - whole).abs() < 1e-6
    assert (parts[1] / whole - 0.5).abs() > 0.1  # a mean of means would be seen


def test_no_target_is_no_loss(model) -> None:
    labels = torch.full((1, 3), -100)
    assert hf.wrap(model)(torch.tensor([[1, 2, 3]]), labels=labels).loss.item() == 0.0


class Rows(torch.utils.data.Dataset):
    """Two rows with so many tokens that count."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(1, 13) + index * 20
        mask = torch.arange(12) < self.lengths[index]
        labels = tokens.masked_fill(~mask, -100)
        return {"input_ids": tokens, "labels": labels, "attention_mask": mask.long()}


def update(
    folder: Path, architecture: str, rows: Rows, *, batch: int, accumulate: int, **options
) -> torch.Tensor:
    """Return what one step of plain gradient descent by ``Trainer`` subtracts from the weights."""
    torch.manual_seed(1)
    config = moeut.architecture(
        architecture,
        form="decoder_lm",
        vocabulary_size=50,
        d_model=16,
        attention={"num_heads": 2},
        dropout=0.0,
        **{"depth": {"group": 2, "repeats": 1}} | options,
    )
    wrapped = hf.wrap(moeut.build(config))
    before = torch.cat([value.flatten().clone() for value in wrapped.parameters()])
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    descent = torch.optim.SGD(wrapped.parameters(), lr=1.0)
    trainer = transformers.Trainer(
        wrapped, arguments, train_dataset=rows, optimizers=(descent, None)
    )
    trainer.train()
    return before - torch.cat([value.flatten() for value in wrapped.parameters()]).detach()


@pytest.mark.parametrize(
    ("architecture", "lengths", "options"),
    [
        ("transformer", (12, 3), {}),
        ("moeut", (12, 3), {"feed_forward": {"balance_loss": 0.5}}),
        (
            "universal",
            (12, 3),
            {"depth": {"repeats": 2}, "halting": {"kind": "act", "loss_weight": 0.5}},
        ),
    ],
)
def test_accumulated_gradients_are_those_of_one_batch(
    architecture, lengths, options, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="needs the extra [hf]")
    whole = update(tmp_path, architecture, Rows(*lengths), batch=2, accumulate=1, **options)
    parts = update(tmp_path, architecture, Rows(*lengths), batch=1, accumulate=2, **options)
    assert (parts - whole).norm() < 1e-5 * whole.norm()


def test_lost_auxiliary_loss_is_said_once(caplog) -> None:
    model = moeut.build(
        moeut.architecture("moeut", form="decoder_lm", vocabulary_size=9, d_model=16)
    )
    wrapped = hf.wrap(model.train())
    hf._warn_of_lost_loss.cache_clear()
    for _ in range(2):  # as a Trainer does that smooths the labels itself
        output = wrapped(torch.tensor([[1, 2, 3]]), num_items_in_batch=2)
    assert sum("aux_loss" in record.message for record in caplog.records) == 1
    assert output.loss is None
    assert output.aux_loss.requires_grad
    assert wrapped.eval()(torch.tensor([[1, 2]])).aux_loss is None


def test_a_tuple_is_given_where_asked_for(model) -> None:
    wrapped = hf.wrap(model)
    tokens = torch.tensor([[1, 2, 3]])
    loss, logits = wrapped(tokens, labels=tokens, return_dict=False)
    expected = wrapped(tokens, labels=tokens)
    assert loss.item() == expected.loss.item()
    assert torch.equal(logits, expected.logits)
    wrapped.config.return_dict = False
    assert torch.equal(wrapped(tokens)[0], expected.logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_attentions": True}, "output_attentions: not supported by MoEUTForCausalLM"),
        ({"token_type_ids": torch.zeros(1, 2)}, "token_type_ids: not supported"),
        ({"position_ids": torch.tensor([[0, 1]])}, "position_ids: not supported"),
        ({"head_mask": np.zeros(2)}, "head_mask: not supported"),
        ({"position_ids": [0]}, "position_ids: not supported"),
        ({"label": torch.zeros(1, 2)}, "did you mean 'labels'"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 2, 16)}, "inputs_embeds: not"),
        ({"input_ids": None}, "input_ids=None: expected token ids"),
        ({"labels": torch.zeros(1, 3)}, r"labels: shape \(1, 3\) does not fit input_ids \(1, 2\)"),
        ({"attention_mask": torch.ones(1, 1, 2, 2)}, "attention_mask: shape"),
    ],
)
def test_arguments_without_meaning_are_refused(model, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf.wrap(model)(**{"input_ids": torch.tensor([[1, 2]])} | arguments)


def test_arguments_that_ask_for_nothing_are_taken(model) -> None:
    nothing = {"output_attentions": False, "token_type_ids": None, "logits_to_keep": 0}
    tokens = torch.tensor([[1, 2]])
    wrapped = hf.wrap(model)
    assert torch.equal(wrapped(tokens, **nothing).logits, wrapped(tokens).logits)


def test_outputs_asked_for_by_the_config_are_refused(model, tmp_path: Path) -> None:
    hf.wrap(model).save_pretrained(tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained
    with pytest.raises(ValueError, match="output_hidden_states: not supported"):
        load(tmp_path, output_hidden_states=True)(torch.tensor([[1, 2]]))


def test_padding_after_a_cached_prompt_is_refused(model) -> None:
    wrapped = hf.wrap(model)
    key = hf.CACHE
    read = wrapped(torch.tensor([[1, 2], [3, 4]]), use_cache=True)[key]
    with pytest.raises(ValueError, match="no padding in what follows"):
        wrapped(
            torch.tensor([[5, 6], [0, 7]]),
            attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1]]),
            **{key: read},
        )


def test_other_forms_are_refused() -> None:
    config = moeut.architecture(
        "transformer", form="encoder_classifier", vocabulary_size=4, num_classes=2
    )
    with pytest.raises(ValueError, match="expected decoder_lm"):
        hf.MoEUTConfig(decoder_lm=config.to_dict())


def test_more_tokens_than_learned_positions_reach_are_refused_before_computing(monkeypatch):
    config = moeut.architecture(
        "transformer",
        form="decoder_lm",
        vocabulary_size=13,
        d_model=16,
        attention={"num_heads": 2},
        position={"kind": "learned", "max_length": 8},
    )
    wrapped = hf.wrap(moeut.build(config).eval())
    prompt = torch.tensor([[1, 2, 3, 4, 5]])
    # The last token is not read: 5 + 4 - 1 positions.
    assert wrapped.generate(prompt, max_new_tokens=4, do_sample=False).shape == (1, 9)
    monkeypatch.setattr(wrapped.model, "forward", None)
    with pytest.raises(ValueError, match=r"positions end at 8; .* max_new_tokens=4 is the most"):
        wrapped.generate(prompt, max_new_tokens=5)
