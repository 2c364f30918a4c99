"""A trained language model with what it needs to read and write text.

It comes from a run's directory, from one checkpoint of a run, or from a ``.ckpt`` file of the
paper's training code with its SentencePiece model beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

import moeut
from moeut.interop.training_checkpoint import read_training_checkpoint
from moeut.models import DecoderLM
from runners.config.schema import ConfigError, RunConfig, TrainConfig
from runners.process import environment
from runners.process.checkpoint import check_run, list_checkpoints, load_checkpoint
from runners.process.run_directory import RunDirectory
from runners.training.parallel import autocast
from tasks.base.text import TOKENIZER_FOLDER
from tasks.language.documents import DOCUMENT_SEPARATOR
from tasks.language.tokenizers import Tokenizer, load_tokenizer

RELEASED_TOKENIZERS = "robertcsordas/moeut_training_checkpoints (folder cache/) on Hugging Face"


@dataclass(frozen=True)
class LanguageModel:
    """A language model, its tokenizer, and how it was trained."""

    model: DecoderLM
    """In evaluation mode, on ``device``."""
    tokenizer: Tokenizer
    context_length: int
    """Tokens of a training window."""
    device: torch.device
    precision: str
    """``float32``, or ``bfloat16`` for autocast."""
    name: str
    separator: str
    """Text after each document in training; empty where there was a boundary token or nothing."""

    @property
    def prefix(self) -> list[int]:
        """Ids before each document in training: the boundary, or the pieces of the separator."""
        if self.tokenizer.boundary_id is not None:
            return [self.tokenizer.boundary_id]
        return self.tokenizer.encode(self.separator) if self.separator else []

    def autocast(self) -> torch.autocast:
        """Return the context in which the model is to be called."""
        return autocast(self.device, self.precision)


def load_language_model(
    path: Path,
    *,
    tokenizer: Path | None = None,
    device: str = "auto",
    precision: str | None = None,
) -> LanguageModel:
    """Load a language model from a run, a checkpoint of a run, or a ``.ckpt`` file.

    For a run, these are the weights that its ``select`` names, from its last checkpoint.

    Args:
        path: a run's directory, a ``step_…`` directory in it, or a ``.ckpt`` file.
        tokenizer: file of the tokenizer, where it does not lie with the weights.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``float32`` or ``bfloat16``; None: that of training on a GPU, float32 on a CPU.

    Raises:
        ValueError: there is none of the three, it is damaged or not a language model, or tokenizer
            and model do not fit.
    """
    path = Path(path)
    chosen = environment.choose_device(TrainConfig(device=device))  # type: ignore[arg-type]
    if path.is_file():
        loaded = _from_training_checkpoint(path, tokenizer)
    elif (path / "config.yaml").is_file() or path.name.startswith("step_"):
        loaded = _from_run(path, tokenizer)
    else:
        raise ConfigError(
            f"{path}: expected a run's directory, one of its checkpoints (step_…), or a .ckpt file"
        )
    vocabulary = loaded.model.config.vocabulary_size
    if loaded.tokenizer.vocabulary_size > vocabulary:
        raise ConfigError(
            f"{path}: its tokenizer has {loaded.tokenizer.vocabulary_size} ids, more than the "
            f"{vocabulary} of the model"
        )
    if precision is None:
        precision = loaded.precision if chosen.type == "cuda" else "float32"
    model = loaded.model.to(chosen).eval()
    return dataclasses.replace(loaded, model=model, device=chosen, precision=precision)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names what ``load_language_model`` loads."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="RUN",
        help="directory of a run, a checkpoints/step_… in it, or a .ckpt file of the paper's "
        "training code with its tokenizer beside it",
    )


def add_tokenizer_argument(parser: argparse._ActionsContainer) -> None:
    """Add the option that names the tokenizer of a model that has none beside it."""
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="where none lies with the weights"
    )


def _from_run(path: Path, tokenizer: Path | None) -> LanguageModel:
    is_step = path.name.startswith("step_")
    files = RunDirectory(path.resolve().parent.parent if is_step else path)
    config = files.read_config()
    if config.task["name"] != "language":
        raise ConfigError(
            f"{files.path}: a run of task {config.task['name']!r}; expected a language model's"
        )
    steps = [path] if is_step else list_checkpoints(files.checkpoints)
    if not steps:
        raise ConfigError(f"{files.checkpoints}: holds no checkpoint yet")
    checkpoint = load_checkpoint(steps[-1])
    check_run(checkpoint, files.find_hash())
    model = moeut.load(checkpoint.path)
    assert isinstance(model, DecoderLM)  # which is what a task over text trains
    name = config.last_weights if is_step else config.scored_weights
    if name == "best" and not (best := checkpoint.path / "best.safetensors").is_file():
        raise ConfigError(f"{best}: no such file; the run has not chosen its weights yet")
    if name != "model":
        model.load_state_dict(checkpoint.weights(name))
    words = load_tokenizer(tokenizer or files.path / TOKENIZER_FOLDER)
    if words.vocabulary_size < model.config.vocabulary_size:
        raise ConfigError(
            f"{tokenizer or files.path / TOKENIZER_FOLDER}: a tokenizer of "
            f"{words.vocabulary_size} ids, not the one that the run was trained with, which has "
            f"{model.config.vocabulary_size}"
        )
    return LanguageModel(
        model=model,
        tokenizer=words,
        context_length=config.task["context_length"],
        device=torch.device("cpu"),
        precision=config.train.precision,
        name=f"{config.model.architecture} seed {config.seed} step {checkpoint.step}",
        separator=_separator(config),
    )


def _separator(config: RunConfig) -> str:
    if config.task["boundary"] != "paper" or config.task["corpus"] == "the_stack":
        return ""
    return DOCUMENT_SEPARATOR


def _from_training_checkpoint(path: Path, tokenizer: Path | None) -> LanguageModel:
    model = moeut.from_training_checkpoint(path)
    read = read_training_checkpoint(path)
    if tokenizer is None:
        beside = sorted(path.resolve().parent.glob("*.model"))
        if len(beside) != 1:
            found = ", ".join(file.name for file in beside) or "none"
            raise ConfigError(
                f"{path}: expected one SentencePiece file *.model beside it, found {found}; name "
                f"one with --tokenizer. The released ones are in {RELEASED_TOKENIZERS}"
            )
        tokenizer = beside[0]
    steps = "" if read.step is None else f" step {read.step}"
    return LanguageModel(
        model=model,
        tokenizer=load_tokenizer(tokenizer),
        context_length=_context_length(path, read.options.get("lm.unroll", 1024)),
        device=torch.device("cpu"),
        precision="bfloat16",
        name=f"{path.stem}{steps}",
        # Of the paper's data sets, only The Stack has no separator between documents.
        separator="" if "stack" in str(read.options.get("task", "")) else DOCUMENT_SEPARATOR,
    )


def _context_length(path: Path, value: object) -> int:
    text = str(value).strip()
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"{path}: lm.unroll={value!r}: expected a whole number of at least 1 (option of the "
            f"MoEUT training code)"
        )
    return int(text)
