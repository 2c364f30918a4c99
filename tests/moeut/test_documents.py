"""Documents packed into one row: none sees another, and each is what it is alone."""

import pytest
import torch

from moeut.blocks import masks
from moeut.models import build
from moeut.recurrence.mixture import ExpertChoice

NUMBERS = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 5], [0] * 9 + [1] * 3])
ARCHITECTURES = {
    "dense": {"attention": "dense", "feed_forward": "dense", "norm": "pre"},
    "dense_post": {"attention": "dense", "feed_forward": "dense", "norm": "post"},
    "moeut": {"attention": "switch_head", "feed_forward": "sigma_moe", "norm": "peri"},
    "gates": {"attention": "gates", "feed_forward": "softmax", "norm": "peri"},
    "geometric": {"attention": "geometric", "feed_forward": "dense", "norm": "post"},
    "top_k": {
        "attention": "dense",
        "feed_forward": "dense",
        "halting": ExpertChoice(capacity=(0.7, 0.4), alpha=1.0),
    },
}
POSITIONS = ["rotary", "relative", "absolute_gate", "sinusoidal", "learned", "none"]


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 11, NUMBERS.shape, generator=torch.Generator().manual_seed(1))


def alone(model, tokens, **options):
    """Return the logits of every document read as a row of its own, in the packed layout."""
    rows = []
    for row, numbers in zip(tokens, NUMBERS, strict=True):
        documents = [row[numbers == number] for number in numbers.unique()]
        logits = [model(document[None], **options).logits[0] for document in documents]
        rows.append(torch.cat(logits))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("architecture", "position"),
    [("geometric", "learned"), ("geometric", "none"), ("top_k", "learned"), ("top_k", "sinusoidal")]
    + [(name, position) for name in list(ARCHITECTURES)[:-2] for position in POSITIONS],
)
def test_a_packed_document_is_what_it_is_alone(make_model, architecture, position, tokens):
    model = make_model(**ARCHITECTURES[architecture], position=position).eval()
    with torch.no_grad():
        packed = model(tokens, document_numbers=NUMBERS).logits
        torch.testing.assert_close(packed, alone(model, tokens), rtol=0, atol=1e-12)
        deeper = model(tokens, document_numbers=NUMBERS, num_repeats=3).logits
        expected = alone(model, tokens, num_repeats=3)
        torch.testing.assert_close(deeper, expected, rtol=0, atol=1e-12)
        leaking = model(tokens).logits
    assert (leaking - alone(model, tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["dense", "moeut"])
def test_one_document_is_the_row_itself(make_model, architecture, tokens):
    model = make_model(**ARCHITECTURES[architecture]).eval()
    with torch.no_grad():
        one = model(tokens, document_numbers=torch.zeros_like(tokens)).logits
        torch.testing.assert_close(one, model(tokens).logits, rtol=0, atol=1e-12)


def test_a_mask_that_leaks_is_seen(make_model, tokens, monkeypatch):
    """Were the key just before a document visible, the comparison above would tell."""
    model = make_model(**ARCHITECTURES["moeut"]).eval()
    right = masks.same_document
    before = torch.eye(NUMBERS.shape[1], dtype=torch.bool).roll(-1, dims=1)
    monkeypatch.setattr(masks, "same_document", lambda numbers: right(numbers) | before)
    with torch.no_grad():
        difference = model(tokens, document_numbers=NUMBERS).logits - alone(model, tokens)
    assert difference.abs().max() > 1e-3
    assert difference[:, :4].abs().max() < 1e-12  # nothing stands before a row's first document


def test_gradients_do_not_cross_documents(make_model, tokens):
    model = make_model(**ARCHITECTURES["moeut"])
    model.embedding.weight.requires_grad_(False)
    states = []
    model.embedding.register_forward_hook(
        lambda module, inputs, output: states.append(output.requires_grad_())
    )
    model(tokens, document_numbers=NUMBERS).logits[:, 6].sum().backward()
    reached = states[0].grad.abs().sum(dim=-1) > 0
    assert reached[0].nonzero().flatten().tolist() == [5, 6]
    assert reached[1].nonzero().flatten().tolist() == list(range(7))


def test_balance_is_over_the_row(make_config, tokens):
    """Without attention the documents are independent, and so the loss is that of the plain row."""
    torch.manual_seed(0)
    model = build(make_config(attention="dense", position="none")).double().train()
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.attention.output.weight.zero_()
        packed = float(model(tokens, document_numbers=NUMBERS).auxiliary_loss)
        whole = float(model(tokens).auxiliary_loss)
    assert packed == pytest.approx(whole, rel=1e-12)
    assert packed != 0


def test_recomputed_layers_keep_documents_apart(make_model, tokens):
    model = make_model(**ARCHITECTURES["moeut"])
    plain = model(tokens, document_numbers=NUMBERS).logits
    model.activation_checkpointing = True
    assert torch.equal(model(tokens, document_numbers=NUMBERS).logits, plain)


def test_positions_begin_anew():
    assert masks.positions_in_documents(NUMBERS).tolist() == [
        [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 0],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2],
    ]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (NUMBERS[:, :5], r"document_numbers: expected whole numbers of shape \(2, 12\)"),
        (NUMBERS.float(), "document_numbers: expected whole numbers"),
        (NUMBERS.flip(1), "document_numbers: must not fall along a row"),
    ],
)
def test_what_is_no_document_is_refused(make_model, tokens, numbers, message):
    with pytest.raises(ValueError, match=message):
        make_model()(tokens, document_numbers=numbers)


def test_not_with_a_prefix_or_a_cache(make_model, tokens):
    model = make_model().eval()
    with pytest.raises(ValueError, match="cannot be given with prefix_length or cache"):
        model(tokens, document_numbers=NUMBERS, prefix_length=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="cannot be given with prefix_length or cache"):
        model(tokens, document_numbers=NUMBERS, cache=model.new_cache())
