"""Read back what ``moeut.saving`` has written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moeut.config import ModelConfig
from moeut.models import FORMS, Model
from moeut.saving import CONFIG, WEIGHTS


def load(directory: str | Path) -> Model:
    """Return the model saved in ``directory``, on the CPU, in evaluation mode, bit for bit.

    Raises:
        ValueError: a file is missing, damaged, or does not fit its config.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise ValueError(f"{directory / name}: no such file; expected a saved model there")
    try:
        data = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{directory / CONFIG}: not a JSON file ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{directory / CONFIG}: expected a mapping of options")
    try:
        config = ModelConfig.from_dict(data)
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from error
    try:
        weights = load_file(directory / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{directory / WEIGHTS}: damaged or not safetensors ({error})") from error
    with torch.device("meta"):
        model = FORMS[config.form](config)
    check_fit(model, weights, str(directory / WEIGHTS))
    # In a file they begin anywhere, and some products on a CPU have other last bits there.
    model.load_state_dict({name: each.clone() for name, each in weights.items()}, assign=True)
    return model.eval()


def check_fit(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Check that the names and shapes of ``weights`` are the model's own.

    Raises:
        ValueError: they are not; it names the first misfits, and ``where`` they are from.
    """
    expected = model.state_dict()
    complaints = {
        "missing": [name for name in expected if name not in weights],
        "not in this model": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    said = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for what, names in complaints.items()
        if names
    ]
    if said:
        raise ValueError(f"{where}: does not fit its config; {'; '.join(said)}")
