"""Other implementations to measure beside ours, each given as a Python file: ``--peer NAME=PATH``.

The file is one of two kinds:

* an adapter, which defines ``expert_mlp(x, w_up, w_down, index, gate)`` and, or,
  ``expert_linear(x, weight, index, gate, slots_per_input, slots_per_output)``: tensors as in
  ``moeut.ops``, with ``index`` and ``gate`` of shape (tokens, top_k) or (tokens, heads, top_k);
* the kernel file of the MoEUT release or its rewrite (``cvmm``, ``cvmm_prepare_sel2``), for which
  the adapter is here.

A peer that raises an error for a shape is left out there, and the error is shown.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Peer:
    """Hold another implementation; None where it has no such operation."""

    name: str
    expert_mlp: Callable[..., Tensor] | None
    expert_linear: Callable[..., Tensor] | None


def load_peer(text: str) -> Peer:
    """Load a peer from ``NAME=PATH``.

    Raises:
        ValueError: the text has another form, or the file is missing or defines no operation.
    """
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise ValueError(f"--peer {text!r}: expected NAME=PATH, such as cvmm=moeut/cvmm.py")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"--peer {text!r}: {path} is not a file")
    module = _import(f"peer_{name}", file)
    mlp, linear = (getattr(module, part, None) for part in ("expert_mlp", "expert_linear"))
    if hasattr(module, "cvmm") and hasattr(module, "cvmm_prepare_sel2"):
        adapter = _Cvmm(module)
        mlp, linear = mlp or adapter.expert_mlp, linear or adapter.expert_linear
    if mlp is None and linear is None:
        raise ValueError(
            f"--peer {text!r}: {path} defines neither expert_mlp nor expert_linear, nor cvmm"
        )
    return Peer(name, mlp, linear)


def _import(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.replace("-", "_"), file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Triton and dataclasses look modules up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class _Cvmm:
    """Call the published kernel as the published layers do.

    An index is prepared once; where it has reduction weights, the call sums over their last
    dimension (RobertCsordas/moeut at 87f0497).
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module

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
