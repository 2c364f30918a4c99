"""What each form reads and predicts, id by id."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import tasks
from runners.training.batches import IGNORE
from runners.training.objective import OBJECTIVES
from tasks.base.task import Example

CPU = torch.device("cpu")


@pytest.fixture
def task(tmp_path):
    def make(kind="sequence_to_sequence"):
        train, test = tmp_path / "train.tsv", tmp_path / "test.tsv"
        train.write_text("a b\tY X Z\nc\tX\n" if kind[0] == "s" else "a b\tX\nc\tY\n")
        test.write_text("c q\tX W\n")
        return tasks.create("file", train=str(train), test=str(test), kind=kind)

    return make


def objective(task, form):
    return OBJECTIVES[task.kind][form](task)


def test_encoder_decoder(task):
    # source: a 4, b 5, c 6; target: X 4, Y 5, Z 6; 1 begin, 2 end
    one = objective(task(), "encoder_decoder")
    columns = one.columns(task().split("train"))
    assert columns.arrays["source"].tolist() == [[1, 4, 5, 2], [1, 6, 2, 0]]
    assert columns.arrays["target"].tolist() == [[1, 5, 4, 6], [1, 4, 0, 0]]
    assert columns.arrays["targets"].tolist() == [[5, 4, 6, 2], [4, 2, IGNORE, IGNORE]]
    assert one.sizes() == {"vocabulary_size": 7, "source_vocabulary_size": 7}
    assert one.decode_answer([5, 4]) == ("Y", "X")
    assert one.encode_source(task().split("test")[0]) == [1, 6, 3, 2]


def test_prefix(task):
    # joint vocabulary: X 4, Y 5, Z 6, a 7, b 8, c 9
    one = objective(task(), "decoder_lm")
    columns = one.columns(task().split("train"))
    assert columns.arrays["tokens"].tolist() == [[1, 7, 8, 2, 5, 4, 6], [1, 9, 2, 4, 0, 0, 0]]
    no = IGNORE
    assert columns.arrays["targets"].tolist() == [
        [no, no, no, 5, 4, 6, 2],
        [no, no, 4, 2, *[no] * 3],
    ]
    assert columns.arrays["prefix_length"].tolist() == [4, 3]
    assert one.sizes() == {"vocabulary_size": 10}
    assert list(map(one.encode_source, task().split("train"))) == [[1, 7, 8, 2], [1, 9, 2]]


def test_classification(task):
    one = objective(task("classification"), "encoder_classifier")
    columns = one.columns(task("classification").split("train"))
    assert columns.arrays["targets"].tolist() == [0, 1]
    assert one.sizes() == {"vocabulary_size": 7, "num_classes": 2}
    assert one.decode_answer([1, 0]) == ("Y", "X")


@pytest.mark.parametrize("form", ["encoder_decoder", "decoder_lm"])
def test_loss_is_summed_over_answers_alone(task, form):
    one = objective(task(), form)
    batch = one.columns(task().split("train")).batch(torch.arange(2).numpy(), device=CPU)
    assert batch.num_targets == 6  # Y X Z end, X end
    width = batch.tensors["targets"].shape[1]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, width, 10, generator=generator)

    def model(*args, **options):
        return SimpleNamespace(logits=logits, auxiliary_loss=0.25, repeat_shares=None)

    loss = one.loss(model, batch)
    probabilities = F.log_softmax(logits.double(), dim=-1)
    expected = 0.0
    for row, answers in enumerate(batch.tensors["targets"].tolist()):
        for column, answer in enumerate(answers):
            if answer != IGNORE:
                expected -= float(probabilities[row, column, answer])
    assert float(loss.cross_entropy_sum) == pytest.approx(expected, rel=1e-6)
    assert float(loss.auxiliary) == 0.25
    smoothed = one.loss(model, batch, label_smoothing=0.1).cross_entropy_sum
    counted = batch.tensors["targets"] != IGNORE
    uniform = -float(probabilities[counted].mean(dim=-1).sum())
    assert float(smoothed) == pytest.approx(0.9 * expected + 0.1 * uniform, rel=1e-6)


def test_a_token_that_train_never_shows_is_unknown(task):
    one = objective(task(), "encoder_decoder")
    assert one.columns([Example(("q",), ("W",))]).arrays["targets"].tolist() == [[3, 2]]


def test_a_loss_that_weighs_repeats(task):
    """A position that is ignored counts nothing, whatever its shares are."""
    torch.manual_seed(0)
    reads = [torch.randn(2, 3, 5) for _ in range(2)]
    shares = torch.tensor([[[0.3, 0.7]] * 3, [[0.9, 0.1]] * 3])
    targets = torch.tensor([[1, 2, IGNORE], [4, IGNORE, IGNORE]])
    output = SimpleNamespace(
        logits=reads[-1], auxiliary_loss=0.5, repeat_logits=reads, repeat_shares=shares
    )
    one = objective(task(), "decoder_lm")
    one.forward = lambda model, batch: output
    loss = one.loss(None, SimpleNamespace(tensors={"targets": targets}))
    wanted = 0.0
    for row, column in ((0, 0), (0, 1), (1, 0)):
        for read, share in zip(reads, shares[row, column], strict=True):
            wanted -= share * read[row, column].log_softmax(-1)[targets[row, column]]
    assert loss.cross_entropy_sum.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert loss.auxiliary == 0.5
