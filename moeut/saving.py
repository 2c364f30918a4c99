"""Files that appear only when whole, and a model's weights with its config beside them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from safetensors.torch import save_file
from torch import Tensor

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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes to a file that appears, or is replaced, only when whole.

    Raises:
        OSError: the folder is missing, not writable or full; nothing is left behind.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, whose file takes the name ``path`` when the context ends well.

    The bytes reach the disk before the file takes its name, so that not even a loss of power leaves
    half of it.

    Raises:
        OSError: the folder is missing, not writable or full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
