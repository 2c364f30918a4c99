"""Other implementations to measure beside ours, each given by its path: ``--peer NAME=PATH``.

The path is one of:

* an adapter, a Python file that defines ``expert_mlp(x, w_up, w_down, index, gate)`` or
  ``expert_linear(x, weight, index, gate, slots_per_input, slots_per_output)``, or both: tensors as
  in ``moeut.ops``, with ``index`` and ``gate`` of shape (tokens, top_k) or (tokens, heads, top_k);
  perhaps also ``dispatch(index, num_experts)``, which is timed alone;
* the kernel file ``cvmm.py`` of the MoEUT release, or of its rewrite;
* a checkout, or the package folder, of ScatterMoE (``scattermoe``) or SonicMoE (``sonicmoe``).

The adapters for the last two are here, written against RobertCsordas/moeut at 87f0497,
RobertCsordas/cvmm_codex at d43cedc, shawntan/scattermoe at 47b5e15 and Dao-AILab/sonic-moe at
8565e84. A peer that raises an error for a shape is left out there, and the error is shown.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from runners.bench.timing import attempt


@dataclasses.dataclass(frozen=True)
class Peer:
    """Hold another implementation; None where it has no such operation."""

    name: str
    expert_mlp: Callable[..., Tensor] | None
    expert_linear: Callable[..., Tensor] | None
    dispatch: Callable[..., Any] | None = None
    kind: str = "adapter"
    """``cvmm``, ``cvmm rewrite``, ``scattermoe`` or ``sonicmoe``, where it is one of them."""


class PeerUnavailableError(Exception):
    """Say that a peer is there but cannot be imported here."""


def load_peer(text: str) -> Peer:
    """Load a peer from ``NAME=PATH``.

    Raises:
        ValueError: the text has another form, or the path is missing or defines no operation.
        PeerUnavailableError: the peer cannot be imported, for want of a package or a GPU.
    """
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise ValueError(f"--peer {text!r}: expected NAME=PATH, such as cvmm=moeut/cvmm.py")
    place = Path(path)
    if not place.exists():
        raise ValueError(f"--peer {text!r}: {path} does not exist")
    if place.is_dir():
        package = _find_package(place)
        if package is None:
            raise ValueError(f"--peer {text!r}: expected a checkout of {' or '.join(PACKAGES)}")
        load = functools.partial(_load_package, *package)
    else:
        load = functools.partial(_load_file, name, place)
    operations, problem = attempt(load, torch.device("cpu"))
    if problem is not None:
        raise PeerUnavailableError(f"{path} cannot be imported: {problem}")
    mlp, linear = (getattr(operations, part, None) for part in ("expert_mlp", "expert_linear"))
    if mlp is None and linear is None:
        raise ValueError(
            f"--peer {text!r}: {path} defines neither expert_mlp nor expert_linear, and is none of "
            f"cvmm.py, {' and '.join(PACKAGES)}"
        )
    kind = operations.kind if isinstance(operations, KNOWN) else "adapter"
    return Peer(name, mlp, linear, getattr(operations, "dispatch", None), kind)


def load_peers(texts: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """Load peers, and say of those that cannot be imported why."""
    peers, unavailable = [], {}
    for text in texts:
        try:
            peers.append(load_peer(text))
        except PeerUnavailableError as error:
            unavailable[text.partition("=")[0]] = str(error)
    return peers, unavailable


def _load_file(name: str, file: Path) -> Any:
    module = _import("peer_" + "".join(c if c.isalnum() else "_" for c in name), file)
    is_cvmm = hasattr(module, "cvmm") and hasattr(module, "cvmm_prepare_sel2")
    return Cvmm(module) if is_cvmm else module


def _import(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    source, folder = file.read_text(encoding="utf-8"), None
    if "mylib::" in source:
        # The published kernel and its rewrite register operators of the same name, which PyTorch
        # refuses: each gets a namespace of its own. Triton reads the source from the file.
        folder = tempfile.TemporaryDirectory(prefix=name)
        copy = Path(folder.name) / file.name
        renamed = source.replace("mylib::", f"{name}::").replace("ops.mylib", f"ops.{name}")
        copy.write_text(renamed, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, copy)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["_copy"] = folder  # removed with the module
    # Triton and dataclasses look modules up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _find_package(folder: Path) -> tuple[Path, str] | None:
    """Return the folder that holds a known package, and its name."""
    for name in PACKAGES:
        for parent in (folder, folder.parent) if folder.name == name else (folder,):
            if (parent / name / "__init__.py").is_file():
                return parent, name
    return None


def _load_package(parent: Path, name: str) -> Any:
    sys.path.insert(0, str(parent.resolve()))
    return PACKAGES[name](importlib.import_module(name))


class Cvmm:
    """Call the published kernel, or its rewrite, as the published layers do.

    An index is prepared once; where it has reduction weights, the call sums over their last
    dimension.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        options = inspect.signature(module.cvmm_prepare_sel2).parameters
        self.kind = "cvmm rewrite" if "route_input" in options else "cvmm"

    def dispatch(self, index: Tensor, num_experts: int) -> Any:
        """Sort the slots."""
        return self.module.cvmm_prepare_sel2(index.flatten(1).int())

    def expert_mlp(
        self, x: Tensor, w_up: Tensor, w_down: Tensor, index: Tensor, gate: Tensor
    ) -> Tensor:
        """Return Σ gate · relu(x up) down."""
        selection = self.module.cvmm_prepare_sel2(index.int())
        hidden = torch.relu(self.module.cvmm(x, selection, w_up))
        return self.module.cvmm(hidden, self._reducing(selection, gate), w_down)

    def expert_linear(
        self,
        x: Tensor,
        weight: Tensor,
        index: Tensor,
        gate: Tensor,
        slots_per_input: int,
        slots_per_output: int,
    ) -> Tensor:
        """Return the gated sums of products, for values and outputs of SwitchHead."""
        tokens, heads, top_k = index.shape
        selection = self.module.cvmm_prepare_sel2(index.flatten(1), gate)
        if slots_per_output > top_k:  # outputs, which sum over heads too
            x = x.view(tokens, heads, -1)
            selection.sel_index = selection.out_index // top_k
            selection.reduction_weight = selection.reduction_weight.flatten(-2)
        return self.module.cvmm(x, selection, weight).reshape(-1, weight.shape[-1])

    @staticmethod
    def _reducing(selection: object, gate: Tensor) -> object:
        reducing = selection.clone()  # type: ignore[attr-defined]
        reducing.reduction_weight = gate
        reducing.sel_index = reducing.out_index
        reducing.out_index = None
        return reducing


class ScatterMoE:
    """Call ScatterMoE's linear layer, which wants all tensors in one dtype: that of autocast."""

    kind = "scattermoe"

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def dispatch(self, index: Tensor, num_experts: int) -> Any:
        """Sort the slots."""
        return self.module.flatten_sort_count(index, num_experts=num_experts)

    def expert_mlp(
        self, x: Tensor, w_up: Tensor, w_down: Tensor, index: Tensor, gate: Tensor
    ) -> Tensor:
        """Return Σ gate · relu(x up) down."""
        x, w_up, w_down, gate = in_compute_dtype(x, w_up, w_down, gate)
        with without_autocast(x):
            slots = self.dispatch(index, w_up.shape[0])
            parallel = self.module.parallel_linear
            hidden = torch.relu(parallel(x, w_up, index.shape[1], *slots, grouped_out=True))
            return parallel(hidden, w_down, 1, *slots, grouped_in=True, gates=gate)

    def expert_linear(
        self,
        x: Tensor,
        weight: Tensor,
        index: Tensor,
        gate: Tensor,
        slots_per_input: int,
        slots_per_output: int,
    ) -> Tensor:
        """Return the gated sums of products, for values and outputs of SwitchHead."""
        x, weight, gate = in_compute_dtype(x, weight, gate)
        with without_autocast(x):
            slots = self.dispatch(index, weight.shape[0])
            gates = gate.reshape(-1, slots_per_output)
            return self.module.parallel_linear(x, weight, slots_per_input, *slots, gates=gates)


class SonicMoE:
    """Call SonicMoE with a routing decision made elsewhere, as its gates are a softmax's.

    Weights are converted to its layout in the pass that casts them. It asserts widths that are
    multiples of 64 (128 inside an expert) and a number of experts that is a multiple of 4.
    """

    kind = "sonicmoe"

    def __init__(self, module: ModuleType) -> None:
        self.functional = importlib.import_module(f"{module.__name__}.functional")
        self.relu = importlib.import_module(f"{module.__name__}.enums").ActivationType.RELU

    def expert_mlp(
        self, x: Tensor, w_up: Tensor, w_down: Tensor, index: Tensor, gate: Tensor
    ) -> Tensor:
        """Return Σ gate · relu(x up) down."""
        tokens, top_k = index.shape
        (x,) = in_compute_dtype(x)
        up, down = (
            w.mT.to(x.dtype, memory_format=torch.contiguous_format).contiguous().permute(1, 2, 0)
            for w in (w_up, w_down)
        )  # (F, D, E) and (D, F, E), laid out as (E, F, D) and (E, D, F)
        rows = torch.arange(tokens, dtype=torch.int32, device=x.device).repeat_interleave(top_k)
        stream = torch.cuda.current_stream(x.device).cuda_stream
        with without_autocast(x):
            out, _frequency = self.functional.moe_general_routing_inputs(
                *(x, gate.flatten().float(), rows, index.flatten().int()),
                *(up, None, down, None, w_up.shape[0]),
                *(stream, self.relu),
            )
        return out


KNOWN = (Cvmm, ScatterMoE, SonicMoE)

PACKAGES: dict[str, Callable[[ModuleType], Any]] = {"scattermoe": ScatterMoE, "sonicmoe": SonicMoE}


def in_compute_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in the dtype of autocast, where that is on, or of the first."""
    kind = tensors[0].device.type
    is_autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if is_autocast else tensors[0].dtype
    return tuple(tensor.to(dtype) for tensor in tensors)


def without_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which nothing is cast."""
    return torch.autocast(x.device.type, enabled=False)
