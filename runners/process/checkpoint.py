"""Checkpoints that are either whole or refused.

A checkpoint is a directory ``step_000500`` with the model as ``moeut.load`` reads it, ``state.pt``
(optimiser, random states, position) and, last, ``manifest.json`` with the SHA-256 of every file. It
is written under a temporary name, flushed to the disk and renamed. Checksums are compared before
anything is loaded, since one flipped bit in a weight loads without a word. Of several ranks the
first writes; where each holds a part of the optimiser, all of them write theirs into ``optimizer/``
before the manifest.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from runners.config.schema import ConfigError
from runners.process.ranks import World
from tasks.base.lease import Lease
from tasks.base.storage import (
    flush_folder,
    make_folder_atomically,
    open_atomically,
    sha256_of_file,
    write_atomically,
    write_json,
)

logger = logging.getLogger(__name__)

SHARDS = "optimizer"
"""Folder of what each rank has written by itself."""

KEPT = 2
"""Checkpoints that are kept: the last, and the one before in case the last is damaged."""

MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d{6,})")


class Damaged(ValueError):
    """A checkpoint is not what was written."""


class Refused(ConfigError):
    """A checkpoint is whole, and not one to go on with; none before it is taken in its place."""


class DiskFull(OSError):
    """There was no room for a checkpoint; the one before is intact."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have the checksums of its manifest."""

    path: Path
    step: int
    state: dict[str, Any]

    @property
    def shards(self) -> Path:
        """Where the optimiser's pieces are, if it was saved in pieces."""
        return self.path / SHARDS

    def weights(self, name: str = "model") -> dict[str, torch.Tensor]:
        """Return the tensors of ``<name>.safetensors``.

        Args:
            name: ``model``, which training goes on with; ``ema``, their average, where one is kept;
                or ``best``, what was selected so far, where something selects.

        Raises:
            FileNotFoundError: the checkpoint has no such file.
        """
        return load_file(self.path / f"{name}.safetensors")


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    state: dict[str, Any],
    weights: dict[str, dict[str, torch.Tensor]],
    files: dict[str, bytes] | None = None,
    write_shards: Callable[[Path], None] | None = None,
    world: World = World(),  # noqa: B008 - frozen
    lease: Lease | None = None,
) -> Path:
    """Write ``folder/step_<step>`` in one piece and remove all but the last two checkpoints.

    Every rank has to call it and returns when the checkpoint is there.

    Args:
        folder: where a run's checkpoints are; made if it is missing.
        step: updates done.
        state: anything that ``torch.load(weights_only=True)`` reads back.
        weights: name → tensors, each written as ``<name>.safetensors``.
        files: name → bytes of further files.
        write_shards: writes a rank's part into the folder it is given, which is made.
        world: this process's place; what is above counts on rank 0 alone.
        lease: that of the run's directory, confirmed before the checkpoint takes its name.

    Raises:
        Lost: another process has taken the directory over; no checkpoint is made or removed.
        DiskFull: no room; the temporary directory is removed, older checkpoints are untouched.
    """
    final = folder / f"step_{step:06d}"
    try:
        with _make_folder(final, world) as temporary:
            if write_shards is not None:
                write_shards(world.share(temporary) / SHARDS)
                world.wait()
            if temporary is not None:
                _write_files(temporary, state=state, weights=weights, files=files or {}, step=step)
                if lease is not None:
                    lease.confirm()
        if world.is_first:
            flush_folder(folder)
    except (OSError, RuntimeError) as error:
        if not _is_disk_full(error):
            raise
        needed = _tensor_bytes(weights) + _tensor_bytes(state)
        before = list_checkpoints(folder)
        raise DiskFull(
            errno.ENOSPC,
            f"no room for a checkpoint: more than {needed:,} bytes needed, {_free_bytes(folder):,} "
            f"free; {f'{before[-1].name} before it is intact' if before else 'there is none yet'}",
            str(final),
        ) from error
    if world.is_first:
        for path in list_checkpoints(folder)[:-KEPT]:
            remove_checkpoint(path)
    world.wait()
    return final


@contextlib.contextmanager
def _make_folder(final: Path, world: World) -> Iterator[Path | None]:
    """Give rank 0 the folder that takes its name at the end, and every other rank None."""
    if not world.is_first:
        yield None
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent)
    with make_folder_atomically(final) as temporary:
        yield temporary


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the directories of the checkpoints under ``folder``, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load_checkpoint(path: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest and read its state.

    Raises:
        Damaged: a file is missing, cut short or altered; the message names it.
        Refused: its state holds something to execute.
    """
    manifest = path / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        step, checksums = int(content["step"]), dict(content["sha256"])
    except FileNotFoundError:
        raise Damaged(f"{manifest}: missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{manifest}: unreadable ({error})") from None
    for name, expected in checksums.items():
        file = path / name
        if not file.is_file():
            raise Damaged(f"{file}: missing")
        found = sha256_of_file(file)
        if found != expected:
            raise Damaged(f"{file}: damaged: SHA-256 {found[:12]}…, expected {expected[:12]}…")
    if path.name != f"step_{step:06d}":
        raise Damaged(f"{manifest}: is of step {step}, not of {path.name}")
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise Refused(
            f"{path / 'state.pt'}: refused: holds more than tensors and plain data; nothing in it "
            "was executed"
        ) from None
    return Checkpoint(path=path, step=step, state=state)


def check_run(checkpoint: Checkpoint, run_hash: str | None) -> None:
    """Check that a checkpoint was made by the run of this hash; None: of an unknown one.

    Raises:
        Refused: it was not.
    """
    found = checkpoint.state.get("hash")
    if run_hash is not None and found != run_hash:
        raise Refused(
            f"{checkpoint.path}: a checkpoint of the run {found}, expected one of {run_hash}, "
            "whose directory it lies in"
        )


def load_latest(folder: Path, *, warn: Callable[[str], None] = logger.warning) -> Checkpoint | None:
    """Return the last checkpoint that is whole, or None where there is none at all.

    A damaged one is reported through ``warn`` and the one before is taken.

    Raises:
        Damaged: there are checkpoints and all of them are damaged. To begin from scratch is a
            decision for the user, who can remove them.
    """
    problems = []
    for path in reversed(list_checkpoints(folder)):
        try:
            checkpoint = load_checkpoint(path)
        except Damaged as error:
            problems.append(str(error))
            warn(f"{error}; trying the checkpoint before")
            continue
        return checkpoint
    if problems:
        raise Damaged(
            f"{folder}: every checkpoint is damaged ({'; '.join(problems)}); "
            "remove them to train from the start"
        )
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, its manifest first: one that is removed in part counts as damaged."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted save has left behind: whatever has a hidden name."""
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _write_files(
    directory: Path,
    *,
    state: dict[str, Any],
    weights: dict[str, dict[str, torch.Tensor]],
    files: dict[str, bytes],
    step: int,
) -> None:
    for name, tensors in weights.items():
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_atomically(directory / f"{name}.safetensors", save(contiguous))
    for name, content in files.items():
        write_atomically(directory / name, content)
    with open_atomically(directory / "state.pt") as file:
        torch.save(state, file)
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    checksums = {path.relative_to(directory).as_posix(): sha256_of_file(path) for path in found}
    write_json(directory / MANIFEST, {"step": step, "sha256": checksums})
    flush_folder(directory)


def _is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or what it came from, is a lack of room.

    ``torch.save`` reports a failed write as a RuntimeError about file positions, with the OSError
    in its chain or nowhere at all.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "unexpected pos" in text or "No space left" in text or "file write failed" in text
    )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder if folder.is_dir() else folder.parent).free


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(_tensor_bytes(part) for part in value)
    return 0
