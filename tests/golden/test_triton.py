"""The Triton backend gives the published models' numbers, as closely as float32 can.

The files are float64; the kernels compute in float32 at most. Each number may be three times as far
from the published one as the plain PyTorch backend is in float32 on the same model, or as far as
plain PyTorch is at most in any number of any file. Of the files of the training code, those in
float64 throughout are compared. In Triton's interpreter a file takes about 20 seconds of one core.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import moeut
from moeut.interop import mapping
from moeut.interop.release import release_config, release_maps
from moeut.interop.training_code import training_code_config, training_code_maps
from moeut.ops import Dispatch

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device, and no interpreter that works", allow_module_level=True)
pytestmark = pytest.mark.golden

FOLDERS = ("moeut_release", "training_code/pure64")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

TIMES_PLAIN = 3.0
"""How much further from the published number than plain PyTorch in float32."""

FLOOR = 1e-6
"""What is allowed anyway, as a share of the largest published number; plain PyTorch: 0.9e-6."""

MOST = 3e-6
"""What is not allowed in any case, whatever plain PyTorch loses, in the same measure."""

Numbers = dict[str, Tensor]
Change = Callable[[Any], None]


def is_release(golden) -> bool:
    return "transformer.variant" not in golden.options


def numbers(golden, backend: str, change: Change | None = None) -> Numbers:
    """Return logits, losses and gradients in float32, under our names."""
    importer = moeut.from_release if is_release(golden) else moeut.from_training_code
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOEUT_BACKEND", backend)
        model: Any = importer(golden.options, golden.part("param")).to(DEVICE, torch.float32)
        if change is not None:
            change(model)
        tokens = golden.tensors["tokens"].to(DEVICE)
        output = model.train()(tokens[:, :-1])
        loss = F.cross_entropy(output.logits.flatten(0, 1), tokens[:, 1:].flatten())
        (loss + output.auxiliary_loss).backward()
    found = {
        "logits": output.logits,
        "cross_entropy": loss,
        "reg_loss": output.auxiliary_loss,
        **{f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()},
    }
    return {name: number.detach().double().cpu() for name, number in found.items()}


def published(golden) -> Numbers:
    """Return the numbers of the published code, its gradients under our names."""
    if is_release(golden):
        maps = release_maps(release_config(golden.options))
    else:
        vocabulary_size = golden.part("param")["embedding.weight"].shape[0]
        config = training_code_config(golden.options, vocabulary_size=vocabulary_size)
        maps = training_code_maps(config)
    ours = mapping.to_ours(maps, golden.part("grad"))
    gradients = {f"grad.{name}": tensor for name, tensor in ours.items()}
    names = ("logits", "cross_entropy", "reg_loss")
    return {name: golden.tensors[name] for name in names} | gradients


def distances(found: Numbers, expected: Numbers) -> dict[str, float]:
    """Return the largest difference of each number, as a share of the largest published one."""
    assert found.keys() == expected.keys()
    return {
        name: float((found[name].reshape(there.shape) - there).abs().max() / scale(there))
        for name, there in expected.items()
    }


def scale(tensor: Tensor) -> float:
    """Return the largest absolute value; 1 where all are zero, as the loss of no router is."""
    return float(tensor.abs().max()) or 1.0


def too_far(found: Numbers, plain: Numbers, expected: Numbers) -> list[str]:
    """Return the names of the numbers that are out of bounds."""
    lost = distances(plain, expected)
    return [
        name
        for name, error in distances(found, expected).items()
        if not error <= max(TIMES_PLAIN * lost[name], FLOOR)
    ]


def has_experts(golden) -> bool:
    return not golden.path.name.startswith("dense")


def test_logits_losses_and_gradients(golden) -> None:
    if not has_experts(golden):
        pytest.skip("no experts, and no kernel of ours")
    expected, plain = published(golden), numbers(golden, "grouped")
    got = numbers(golden, "triton")
    assert too_far(got, plain, expected) == []
    assert max(distances(got, expected).values()) <= MOST


# --- comparisons can fail ---------------------------------------------------------------


def is_example(golden) -> bool:
    return golden.path.name in ("switchhead_g2.safetensors", "moeut_periln.safetensors")


def swap_experts(model: Any, part: str) -> None:
    """Swap the two experts of a layer that are chosen most: others may not be used at all."""
    layer = model.decoder.layers[0]
    trace = model(torch.arange(10, device=DEVICE)[None], trace=True).trace["decoder"][0]
    router = {"up": "feed_forward", "value": "attention.value", "output": "attention.output"}[part]
    chosen = trace.routers[router].selection[:, :, 0].flatten().bincount().topk(2).indices
    weight = getattr(layer.feed_forward if part == "up" else layer.attention, part)
    weight.data[chosen] = weight.data[chosen.flip(0)]


def scale_expert(model: Any) -> None:
    """Make one layer's experts larger, by less than bfloat16 resolves."""
    model.decoder.layers[0].feed_forward.down.data.mul_(1 + 2**-12)


CHANGES: dict[str, Change] = {
    "up": functools.partial(swap_experts, part="up"),
    "value": functools.partial(swap_experts, part="value"),
    "output": functools.partial(swap_experts, part="output"),
    "scale": scale_expert,
}


def test_changed_experts_are_seen(golden) -> None:
    if not is_example(golden):
        pytest.skip("one file of each code is enough")
    expected, plain = published(golden), numbers(golden, "grouped")
    for name, change in CHANGES.items():
        found = too_far(numbers(golden, "grouped", change), plain, expected)
        assert "logits" in found, name
        assert any(number.startswith("grad.") for number in found), name


def test_wrong_gradients_are_seen(golden) -> None:
    expected, plain = published(golden), numbers(golden, "grouped")
    assert too_far(plain, plain, expected) == []
    for name, tensor in plain.items():
        if expected[name].abs().max() == 0:
            continue
        wrong = [torch.zeros_like(tensor), 1.0001 * tensor, tensor * torch.nan]
        if tensor.dim():
            wrong.append(tensor.roll(1, 0))
        for one in wrong:
            assert too_far(plain | {name: one}, plain, expected) == [name], name


def test_kernels_that_read_the_wrong_rows_are_seen(golden, monkeypatch) -> None:
    if golden.path.name != "gated_g1.safetensors":
        pytest.skip("one file is enough")
    build = Dispatch.__init__

    def rolled(dispatch: Dispatch, index: Any, order: Any, *others: Any, **options: Any) -> None:
        build(dispatch, index, order.roll(1), *others, **options)

    expected, plain = published(golden), numbers(golden, "grouped")
    monkeypatch.setattr(Dispatch, "__init__", rolled)
    assert "logits" in too_far(numbers(golden, "triton"), plain, expected)
