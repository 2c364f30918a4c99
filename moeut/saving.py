"""Weights on disk: ``model.safetensors`` with ``config.json`` beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from moeut.config import ModelConfig
from moeut.models import FORMS

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save(model: Any, directory: str | Path) -> None:
    """Write a model's weights and config into ``directory``, which is made if it is not there."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / WEIGHTS)
    config = json.dumps(model.config.to_dict(), indent=2)
    (directory / CONFIG).write_text(config + "\n", encoding="utf-8")


def load(directory: str | Path) -> Any:
    """Return the model saved in ``directory``, on the CPU, in evaluation mode, bit for bit.

    Raises ValueError for a file that is missing, damaged, or does not fit its config.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise ValueError(f"{directory / name}: no such file; expected a saved model there")
    try:
        data = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{directory / CONFIG}: not a JSON file ({error})") from error
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
    model.load_state_dict(weights, assign=True)
    return model.eval()


def check_fit(model: Any, weights: dict[str, torch.Tensor], where: str) -> None:
    """Raise ValueError, naming the first misfits, unless names and shapes are the model's own."""
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
