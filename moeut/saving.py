"""Write a model: its weights, and its config beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from safetensors.torch import save_file
from torch import Tensor

from moeut.files import replacing, write_atomically

if TYPE_CHECKING:
    from moeut.config import ModelConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class Saveable(Protocol):
    """A module that knows its config."""

    config: ModelConfig

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights by name."""


def save(model: Saveable, directory: str | Path) -> None:
    """Write a model's weights and config into ``directory``, which is made if it is not there.

    Raises:
        OSError: the directory is not writable or full.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with replacing(directory / WEIGHTS) as path:
        save_file(weights, path)
    config = json.dumps(model.config.to_dict(), indent=2)
    write_atomically(directory / CONFIG, config + "\n")
