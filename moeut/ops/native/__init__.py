"""Operations in C++ for float32 on a CPU: compiled once for a machine, kept on disk, then loaded.

``product.h`` multiplies matrices by AVX-512, at twice the rate that MKL reaches on processors that
are not Intel's and without the cost of a call for small ones; ``few.h`` multiplies a few rows;
``linear.h`` is a dense layer with its gradients, ``mlp.h`` two with a ReLU between them,
``attention.h`` the attention of short sequences, ``token.h`` that of one query a row,
``long_attention.h`` and ``long_backward.h`` that of long ones, ``dropout.h`` and ``loss.h`` what a
step spends time on besides, ``experts.h`` sorts slots and multiplies routed rows by the weights of
their experts, which ``router.h`` chooses by ``largest.h`` and ``router_softmax.h``;
``gradient_sum.h`` adds up gradients of experts that many applications share. ``token_pass.h`` is a
whole pass of one token a row, through the layers of ``pass.h`` and ``chosen.h``, which multiply by
``rows.h``. They serve where ``why_not`` returns None; everything has a plain path beside them that
computes the same within rounding. What serves depends on the machine alone, never on a timing, so
that a resumed run repeats the bits of the first.

The library lies in ``$MOEUT_CACHE`` (``~/.cache/moeut`` if that is not set), named by a hash of
the sources, the compiler (``CXX``, which may have arguments) and PyTorch. ``MOEUT_NATIVE=0`` does
without it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

SOURCE = "operators.cpp"
HEADERS = (
    *("tensors.h", "product.h", "few.h", "linear.h", "mlp.h", "softmax.h", "dropout.h"),
    *("attention.h", "token.h", "long_attention.h", "long_backward.h", "loss.h"),
    *("gradient_sum.h", "experts.h", "largest.h", "router_softmax.h", "router.h"),
    *("rows.h", "pass.h", "chosen.h", "token_pass.h"),
)
FLAGS = (
    *("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp"),
    *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"),
)
UNBUILT = "they cannot be built"
BUILD = ".build"
"""Ending of the folder that a library is compiled in."""
BUILD_SECONDS = 600
"""After which a compiler is given up."""


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Return x with each element 0 with a probability, else divided by its complement.

    Where the operations serve, the mask is drawn by a counter from a seed, which PyTorch's
    generator gives, and is not kept; elsewhere this is ``torch.nn.functional.dropout``.
    """
    if not (training and 0.0 < probability < 1.0 and serves(x)):
        return F.dropout(x, probability, training)
    return torch.ops.moeut_native.dropout(x, probability)


def cross_entropy_sum(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Return the cross entropy of logits (N, V) and classes (N,), summed over rows, a scalar.

    Rows whose target is ``ignored`` count nothing. Where the operations serve, no probabilities are
    written.
    """
    if serves(logits) and is_plain(targets):
        return torch.ops.moeut_native.cross_entropy(logits, targets, ignored)
    return F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")


_PLAIN = (Tensor, torch.nn.Parameter)
"""Not a DTensor, nor one of another subclass, which have products of their own."""


def serves(*tensors: Tensor | None) -> bool:
    """Return whether the operations compute on these: float32 on a CPU, eagerly."""
    return is_float32(*tensors) and why_not() is None


def sorts(index: Tensor) -> bool:
    """Return whether the operations sort these int64 slots."""
    return not _is_transformed() and is_plain(index) and why_not() is None


def is_float32(*tensors: Tensor | None) -> bool:
    """Return whether all are plain float32 tensors on the CPU, computed in as they are, eagerly."""
    if _is_transformed() or torch.is_autocast_enabled("cpu"):
        return False
    return all(one is None or (one.dtype == torch.float32 and is_plain(one)) for one in tensors)


def _is_transformed() -> bool:
    """Return whether ``torch.compile`` or ``torch.func`` wants operations that it can transform."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_plain(tensor: Tensor) -> bool:
    """Return whether it is an ordinary tensor on the CPU."""
    return type(tensor) in _PLAIN and tensor.device.type == "cpu"


@functools.cache  # decided, built and logged once a process
def why_not() -> str | None:
    """Return why the C++ operations do not serve here; None where they are loaded.

    Builds them at the first call on a machine, which takes a minute; other processes wait for it.
    """
    reason = _unfit()
    if reason is None:
        try:
            torch.ops.load_library(str(_built()))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
            reason = f"{UNBUILT}: {lines[0] if lines else type(error).__name__}"
    if reason is None:
        logger.info("float32 products on the CPU: by C++ operations for AVX-512")
    else:
        level = logging.WARNING if reason.startswith(UNBUILT) else logging.INFO
        logger.log(level, "float32 products on the CPU: by PyTorch alone, since %s", reason)
    return reason


def _unfit() -> str | None:
    """Return why the operations cannot serve on this machine, before anything is built."""
    if os.environ.get("MOEUT_NATIVE") == "0":
        return "MOEUT_NATIVE=0"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "they are made for Linux on x86-64"
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "the processor has no AVX-512"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "GenuineIntel" in cpuinfo.read_text(encoding="utf-8"):
        return "MKL is fast on Intel's processors"
    return None


def _built() -> Path:
    """Return the compiled library, and compile it if it is not there yet."""
    compiler = _compiler()
    here = Path(__file__).parent
    command = shlex.join(compiler) or None
    key = hashlib.sha256(repr((torch.__version__, command, FLAGS)).encode())
    for name in (*HEADERS, SOURCE):
        key.update((here / name).read_bytes())
    library = _cache_folder() / f"native-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    if not compiler:
        raise OSError("there is no C++ compiler (c++, g++, or the one that CXX names)")
    library.parent.mkdir(parents=True, exist_ok=True)
    with _held(library.with_suffix(".lock"), wait=True):
        if not library.exists():
            _remove_abandoned(library.parent)
            logger.warning("compiling C++ operations once for this machine, to %s", library)
            _compile(compiler, here, library)
    return library


def _compiler() -> list[str]:
    """Return the words of the compiler's command, those of CXX if it is set; none without one."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = shutil.which("c++") or shutil.which("g++")
    return named or ([found] if found else [])


@contextlib.contextmanager
def _held(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file, and say whether it could be had; a killed process frees it."""
    import fcntl  # Linux alone gets here

    with open(path, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _remove_abandoned(folder: Path) -> None:
    """Remove what builds have left that were killed: those whose lock is free."""
    for abandoned in folder.glob(f"native-*{BUILD}"):
        with _held(abandoned.with_suffix(".lock"), wait=False) as is_free:
            if is_free:
                shutil.rmtree(abandoned, ignore_errors=True)


def _compile(compiler: list[str], sources: Path, library: Path) -> None:
    """Compile the sources to a library, which is there whole or not at all; its lock is held."""
    from torch.utils import cpp_extension  # imports for half a second

    includes = [word for path in cpp_extension.include_paths() for word in ("-isystem", path)]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    folder = library.with_suffix(BUILD)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        # A killed build's compiler may live on, and write to the path that it was given.
        made = folder / f"{os.getpid()}.so"
        subprocess.run(
            [
                *(*compiler, *FLAGS, abi, *includes, str(sources / SOURCE)),
                *("-o", str(made), *libraries, "-ltorch_cpu", "-lc10"),
            ],
            check=True,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=BUILD_SECONDS,
        )
        os.replace(made, library)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cache_folder() -> Path:
    named = os.environ.get("MOEUT_CACHE")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "moeut"
    except RuntimeError:  # no home directory
        return Path(tempfile.gettempdir()) / "moeut"
