"""Checkpoint files of the training code become models that give the numbers it gives."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import moeut
from moeut.interop import mapping
from moeut.interop.training_checkpoint import read_training_checkpoint
from moeut.interop.training_code import training_code_maps

pytestmark = pytest.mark.golden

FOLDERS = ("training_code",)


def checkpoints(golden) -> list[Path]:
    """The checkpoint files of a golden file: the whole one, and that of a release on a GPU."""
    folder = golden.path.parent
    folder = folder.parent if folder.name == "pure64" else folder
    return sorted(folder.glob(f"{golden.path.stem}.*ckpt"))


def test_logits_loss_and_gradients_of_the_checkpoint(golden) -> None:
    is_pure = golden.path.parent.name == "pure64"
    bound, gradient_bound = (1e-10, 1e-9) if is_pure else (1e-6, 1e-6)
    tokens = golden.tensors["tokens"]
    files = checkpoints(golden)
    assert files
    for path in files:
        model = moeut.from_training_checkpoint(path).double().train()
        output = model(tokens[:, :-1])
        loss = F.cross_entropy(output.logits.flatten(0, 1), tokens[:, 1:].flatten())
        assert (output.logits - golden.tensors["logits"]).abs().max() <= bound
        assert (loss - golden.tensors["cross_entropy"]).abs() <= max(bound / 100, 1e-12)
        assert (output.auxiliary_loss - golden.tensors["reg_loss"]).abs() <= bound
        (loss + output.auxiliary_loss).backward()
        expected = mapping.to_ours(training_code_maps(model.config), golden.part("grad"))
        for name, parameter in model.named_parameters():
            error = (parameter.grad - expected.pop(name)).abs().max()
            assert error <= gradient_bound, name
        assert not expected


@pytest.fixture
def checkpoint(golden_dir: Path) -> Path:
    return golden_dir / "training_code" / "moeut_periln.ckpt"


def changed(checkpoint: Path, tmp_path: Path, change) -> Path:
    with torch.serialization.safe_globals([(dict, "framework.data_structures.dotdict.DotDict")]):
        content = torch.load(checkpoint, weights_only=True)
    change(content)
    path = tmp_path / "changed.ckpt"
    torch.save(content, path)
    return path


def test_the_step_and_the_raw_options_are_read(checkpoint: Path) -> None:
    read = read_training_checkpoint(checkpoint)
    assert read.step == 1
    assert read.options["transformer.head_projection_size"] == "14"
    assert "embedding.weight" in read.state_dict


def test_an_unsupported_variant_is_named(checkpoint: Path, tmp_path: Path) -> None:
    def other_variant(content: dict) -> None:
        content["run_invariants"]["args"]["transformer.variant"] = "topk"

    path = changed(checkpoint, tmp_path, other_variant)
    with pytest.raises(ValueError, match=r"changed\.ckpt: .*transformer\.variant='topk'") as error:
        moeut.from_training_checkpoint(path)
    assert "\n" not in str(error.value)


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class Outer:
    class Inner:
        """Pickled by ``getattr`` from the class around it."""


def inside_a_zip(path: Path, payload: Payload) -> None:
    """A zip archive that has what ``torch.load`` looks for, and a pickle of our own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload))
        archive.writestr("archive/version", "3\n")


def scripted(path: Path, payload: Payload) -> None:
    """An archive of TorchScript, which ``torch.load`` hands on."""
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), str(path))


HOSTILE = {
    "beside the weights": (lambda p: {"extra": p}, r"refused: .*plain data: \w+\.mkdir"),
    "deep in the optimizer": (lambda p: {"optimizer": {"state": [{"a": (1, p)}]}}, "refused"),
    "a class inside a class": (lambda p: {"extra": Outer.Inner()}, "refused: .*plain data"),
}


@pytest.mark.parametrize("where", HOSTILE)
@pytest.mark.parametrize("is_zip", [True, False])
def test_more_than_tensors_and_plain_data_is_refused_and_not_run(
    checkpoint: Path, tmp_path: Path, where: str, is_zip: bool
) -> None:
    target = tmp_path / "executed"
    make, message = HOSTILE[where]
    path = tmp_path / "hostile.ckpt"
    content = {"model": {}, "run_invariants": {"args": {}}} | make(Payload(target))
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=message if is_zip else "a whole zip archive") as error:
        moeut.from_training_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not target.exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda path, payload: path.write_bytes(pickle.dumps(payload)),
        lambda path, payload: path.write_bytes(pickle.dumps(payload, protocol=0)),
        lambda path, payload: save_file({"embedding.weight": torch.zeros(2)}, path),
        lambda path, payload: path.write_text("no checkpoint\n" * 99),
        inside_a_zip,
        scripted,
    ],
)
def test_other_kinds_of_files_are_refused_in_one_line(
    tmp_path: Path, write, recwarn: pytest.WarningsRecorder
) -> None:
    target = tmp_path / "executed"
    path = tmp_path / "other.ckpt"
    write(path, Payload(target))
    recwarn.clear()
    with pytest.raises(ValueError, match=r"other\.ckpt: (refused|damaged)") as error:
        moeut.from_training_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not recwarn.list
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to_sparse(), "expected a dense tensor, got torch.sparse_coo"),
        (lambda t: t.to("meta"), "expected a dense tensor, got one without values"),
        (lambda t: t.to(torch.int32), "expected floating-point numbers, found torch.int32"),
        (lambda t: t.to(torch.complex64), "expected floating-point numbers, found torch.complex64"),
        (lambda t: "weights", "expected a tensor, got str"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    checkpoint: Path, tmp_path: Path, change, message: str
) -> None:
    def spoil(content) -> None:
        content["model"]["embedding.weight"] = change(content["model"]["embedding.weight"])

    path = changed(checkpoint, tmp_path, spoil)
    with pytest.raises(ValueError, match=message) as error:
        moeut.from_training_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(checkpoint: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "short.ckpt"
    data = checkpoint.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"short\.ckpt: (damaged|refused)") as error:
        moeut.from_training_checkpoint(path)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.ckpt: no such file"):
        moeut.from_training_checkpoint(tmp_path / "missing.ckpt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"has no mapping 'run_invariants'"):
        moeut.from_training_checkpoint(tmp_path / "other.ckpt")
    with zipfile.ZipFile(tmp_path / "archive.ckpt", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"archive\.ckpt: damaged"):
        moeut.from_training_checkpoint(tmp_path / "archive.ckpt")


def test_weights_of_another_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    def widen(content) -> None:
        content["run_invariants"]["args"]["moe.n_experts"] = 9

    path = changed(checkpoint, tmp_path, widen)
    with pytest.raises(ValueError, match=r"changed\.ckpt: .*shape") as error:
        moeut.from_training_checkpoint(path)
    assert "\n" not in str(error.value)
