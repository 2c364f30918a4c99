"""The rows of ``metrics.jsonl`` written for TensorBoard too: ``train.tensorboard``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runners.config.schema import RunConfig

PACKAGE = "tensorboard"


def check_tensorboard(config: RunConfig) -> None:
    """Raise ConfigError if TensorBoard is asked for and not installed."""
    if config.train.tensorboard and importlib.util.find_spec(PACKAGE) is None:
        raise config.error(
            "train.tensorboard", True, "needs pip install 'moeut-suite[tensorboard]'"
        )


class Board:
    """Writes rows as scalars; of a resumed run, rows after the step of its checkpoint are hidden.

    Args:
        folder: where the event files go.
        step: where the run goes on.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row: what was scored under the name of its split, the rest under ``train``."""
        row = dict(row)
        step, split = row.pop("step"), row.pop("split", None)
        numbers = row.pop("metrics") if split is not None else row
        for name, value in _scalars(numbers, split or "train"):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


def _scalars(values: dict[str, Any], path: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{path}/{name}")
        elif value is not None:
            yield f"{path}/{name}", float(value)
