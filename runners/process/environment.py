"""The machine that a run is on: device, threads, determinism, and env.json, their record."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from moeut.ops import native
from runners.config.schema import RunConfig, TrainConfig
from tasks.base.options import OptionError
from tasks.base.storage import write_json

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "triton", "PyYAML", "rich")

TENSORBOARD = "tensorboard"

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h

ROOT = Path(__file__).resolve().parents[2]
"""Folder that holds the packages."""
CODE = ("moeut", "tasks", "runners")
"""The packages, whose files decide what a run computes."""


def choose_device(config: TrainConfig, *, local_rank: int | None = None) -> torch.device:
    """Return the device of a run; ``auto`` is a GPU if there is one.

    Args:
        config: the ``train`` section.
        local_rank: number of this process on its machine, where there are several.

    Raises:
        OptionError: ``cuda`` or CUDA graphs are asked for and there is no such device, there are
            fewer devices than processes, or several processes are to replay CUDA graphs.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            "train.device", "cuda", "no CUDA device on this machine; allowed: auto, cpu"
        )
    if config.cuda_graph is True:
        reason = None if torch.cuda.is_available() else "no CUDA device on this machine"
        if local_rank is not None:
            reason = "several processes share a batch"
        if reason is not None:
            raise OptionError("train.cuda_graph", True, f"{reason}; allowed: auto, false")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    if local_rank >= torch.cuda.device_count():
        raise OptionError(
            "train.device",
            config.device,
            f"{torch.cuda.device_count()} CUDA devices on this machine, too few for local rank "
            f"{local_rank}; start fewer processes",
        )
    return torch.device("cuda", local_rank)


def check_device(config: RunConfig, *, local_rank: int | None = None) -> None:
    """Check that the device of a run is there.

    Raises:
        ConfigError: it is not; the message names the line of the file.
    """
    try:
        choose_device(config.train, local_rank=local_rank)
    except OptionError as error:
        raise config.located(error, "train") from error


def check_packages(config: RunConfig) -> None:
    """Check that the optional packages that a run asks for are installed.

    Raises:
        ConfigError: TensorBoard is not; the message names the line of the file.
    """
    if config.train.tensorboard and importlib.util.find_spec(TENSORBOARD) is None:
        raise config.error(
            "train.tensorboard", True, "needs pip install 'moeut-suite[tensorboard]'"
        )


def prepare_process(config: TrainConfig, device: torch.device) -> None:
    """Set threads and determinism of this process for a run."""
    torch.set_num_threads(config.num_threads)
    on_gpu = device.type == "cuda"
    if not on_gpu:
        retain_memory()
    if on_gpu and config.deterministic:
        # Read by cuBLAS when it starts; without it deterministic mode refuses matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    wanted = on_gpu and config.deterministic
    # Asked first, since the call that sets it imports for 3 s whatever the answer.
    if torch.are_deterministic_algorithms_enabled() != wanted:
        torch.use_deterministic_algorithms(wanted)
    set_float32_products(device, beside_bfloat16=config.precision == "bfloat16")


def retain_memory() -> bool:
    """Make malloc keep freed memory, and return whether it could be asked to.

    By default glibc returns large buffers to the system when they are freed, and the next step pays
    for every page again: a tenth of a small model's step on a CPU, up to a third of an expert
    layer's.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    set_to = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    return all(libc.mallopt(name, value) for name, value in set_to.items())


def set_float32_products(device: torch.device, *, beside_bfloat16: bool) -> None:
    """Set how a GPU multiplies float32: exactly, or in TF32 in runs that compute in bfloat16.

    There only the routers' products are in float32 still. Ordinary float32 arithmetic is a tenth
    as fast as TF32, and would cost MoEUT more than its experts do.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if beside_bfloat16 else "highest")


def record_start(
    path: Path, config: RunConfig, device: torch.device, *, num_ranks: int
) -> list[str]:
    """Write ``env.json`` for this start, and return what is to be said of it.

    The file describes the last start; its list ``starts`` has time, host and code of each.
    """
    now = describe_environment(config, device)
    starts = _earlier_starts(path)
    start = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    start |= {key: now[key] for key in ("host", "version", "git")}
    ranks = {"ranks": num_ranks} if num_ranks > 1 else {}
    write_json(path, {**now, **ranks, "starts": [*starts, start]})
    changed = code_difference(starts[-1], start) if starts else None
    if changed is None:
        return []
    return [f"the code was changed since the run was last started: {changed}; see {path}"]


def _earlier_starts(path: Path) -> list[dict[str, Any]]:
    """Return the starts that a file lists; none where it is not there, or damaged."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        return [start for start in starts if isinstance(start, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def describe_environment(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Return what env.json holds: how the run was started, from which code, on what."""
    return {
        "argv": sys.argv,
        **describe_code(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device_type": device.type,
        "native_products": native.why_not() is None if device.type == "cpu" else None,
        "cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "precision": config.train.precision,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": config.train.deterministic,
        "seed": config.seed,
    }


def describe_code(root: Path = ROOT) -> dict[str, Any]:
    """Return which code this is, as plain data.

    Args:
        root: folder that holds the packages.

    Returns:
        ``version`` of the package, and ``git``: the ``commit`` of the work tree that holds it,
        whether the code in it is ``dirty``, and a hash of its ``changes``; None outside of one.
    """

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()

    git: dict[str, Any] | None = None
    try:
        # An installed package may lie inside the work tree of something else.
        ask("ls-files", "--error-unmatch", "runners/__init__.py")
        changes = ask("status", "--porcelain", "--", *CODE)
        git = {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changes), "changes": None}
        if changes:
            changes += ask("diff", "HEAD", "--", *CODE)
            git["changes"] = hashlib.sha256(changes.encode()).hexdigest()[:12]
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"version": _version("moeut-suite"), "git": git}


def code_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return in words how the code of one start differs from that of another, if it does."""
    if all(before.get(key) == now.get(key) for key in ("version", "git")):
        return None
    return f"{_code_words(before)} before, {_code_words(now)} now"


def _code_words(code: Mapping[str, Any]) -> str:
    git = code.get("git")
    if not isinstance(git, dict):
        return f"version {code.get('version')}, outside of a work tree"
    changes = f" with the changes {git.get('changes')}" if git.get("dirty") else ""
    return f"commit {str(git.get('commit'))[:12]}{changes}"


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # says what it was built for, as 2.11.0+cu130
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
