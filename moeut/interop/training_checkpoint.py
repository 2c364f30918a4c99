"""Read checkpoint files of the paper's training code (RobertCsordas/moeut_training_code)."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeut.interop.training_code import from_training_code
from moeut.models import DecoderLM

# That code's dictionary with attribute access, pickled by name; it is read as a plain dict.
_DICTIONARY = "framework.data_structures.dotdict.DotDict"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """What a checkpoint file says of a model; the optimiser's state is not read."""

    options: dict[str, Any]
    """The training code's command-line arguments by their dotted names; values may be strings."""
    state_dict: dict[str, Tensor]
    """Weights under the training code's names, mapped from the file until they are used."""
    step: int | None
    """Updates done."""


def read_training_checkpoint(path: str | Path) -> TrainingCheckpoint:
    """Read a ``.ckpt`` file without running any code that it may hold.

    Only tensors and plain data are unpickled. Tensors are memory-mapped, so that the optimiser's,
    two thirds of a file, cost nothing.

    Raises:
        ValueError: no such file; damaged; it holds more than tensors and plain data; or it is not
            a checkpoint of that code. One line, which names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a checkpoint of the MoEUT training code")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: damaged, or not a checkpoint file (expected a whole zip archive, as "
            f"torch.save writes it)"
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(dict, _DICTIONARY)]):
            warnings.simplefilter("ignore")  # of odd files; what is wrong is said below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused: {_refused(error)}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path}: damaged, or not a checkpoint file ({_first_line(error)})"
        ) from None
    options = _entry(path, content, "run_invariants", "args")
    state_dict = _entry(path, content, "model")
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"{path}: model.{name}: expected a tensor, got {kind}")
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "one without values" if tensor.is_meta else str(tensor.layout)
            raise ValueError(f"{path}: model.{name}: expected a dense tensor, got {kind}")
    state = content.get("state")
    step = state.get("iter") if isinstance(state, Mapping) else None
    return TrainingCheckpoint(
        options=dict(options),
        state_dict=dict(state_dict),
        step=step if isinstance(step, int) else None,
    )


def from_training_checkpoint(path: str | Path) -> DecoderLM:
    """Return the model of a ``.ckpt`` file that the paper's training code wrote.

    MoEUT with peri-, pre- and post-layernorm, both schedules of a group, the dense baselines and
    the σ-MoE without sharing are read; see ``from_training_code`` for what the model is.

    Raises:
        ValueError: as ``read_training_checkpoint``; or options that make a model that is not
            supported, or weights that do not fit them. One line, which names the file.
    """
    checkpoint = read_training_checkpoint(path)
    try:
        return from_training_code(checkpoint.options, checkpoint.state_dict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _entry(path: Path, content: Any, *names: str) -> Mapping[str, Any]:
    """Return a mapping inside the file, by its keys one after the other."""
    for depth, name in enumerate(names):
        if not isinstance(content, Mapping) or not isinstance(content.get(name), Mapping):
            missing = ".".join(names[: depth + 1])
            raise ValueError(
                f"{path}: not a checkpoint of the MoEUT training code: has no mapping {missing!r}"
            )
        content = content[name]
    return content


def _refused(error: pickle.UnpicklingError) -> str:
    """Return what the unpickler refused, by its name where it says one."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return f"holds more than tensors and plain data: {found[1]}"
    return f"holds more than tensors and plain data, or is damaged ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0][:160]
