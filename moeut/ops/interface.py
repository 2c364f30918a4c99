"""Check the arguments of the expert operations and hand them to a backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moeut.ops import grouped
from moeut.ops.backend import compute_dtype, resolve_backend
from moeut.ops.dispatch import Dispatch
from moeut.ops.shared import SharedWeight, parameter_of


def expert_linear(
    x: Tensor,
    weight: Tensor | SharedWeight,
    dispatch: Dispatch,
    *,
    slots_per_input: int = 1,
    slots_per_output: int = 1,
    gate: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Sum per-expert linear maps of routed rows.

    ``x`` (S / slots_per_input, D_in), ``weight`` (E, D_in, D_out), ``gate`` S values of any shape;
    returns (S / slots_per_output, D_out):

        out[o] = sum over slots s with s // slots_per_output == o of
                 gate[s] * (x[s // slots_per_input] @ weight[expert[s]])

    A slot without an expert contributes zero and gets zero gradient. Under autocast everything is
    computed and returned in the autocast dtype; otherwise ``x`` and ``weight`` share a dtype, to
    which the gate is cast. Low-precision sums over slots are carried in float32. ``weight`` may be
    a ``SharedWeight``. Raises ValueError for shapes, dtypes or a backend that do not fit.
    """
    _check_slots("slots_per_input", slots_per_input, dispatch)
    _check_slots("slots_per_output", slots_per_output, dispatch)
    shared, weight = weight, parameter_of(weight)
    if weight.dim() != 3:
        raise ValueError(f"weight.shape={tuple(weight.shape)}: expected (num_experts, D_in, D_out)")
    experts, width_in, width_out = dispatch.num_experts, weight.shape[1], weight.shape[2]
    _check_shape("x", x, (dispatch.num_slots // slots_per_input, width_in))
    _check_shape("weight", weight, (experts, width_in, width_out))
    gate = _flatten_gate(gate, dispatch)
    dtype = _check_dtypes(x, dispatch, weight=weight, gate=gate)
    name = resolve_backend(backend, x.device, dtype)
    return _implementation(name).expert_linear(
        x.to(dtype),
        shared if _is_served(shared, name, dtype) else weight.to(dtype),
        dispatch,
        slots_per_input,
        slots_per_output,
        None if gate is None else gate.to(dtype),
    )


def expert_mlp(
    x: Tensor,
    w_up: Tensor | SharedWeight,
    w_down: Tensor | SharedWeight,
    dispatch: Dispatch,
    *,
    gate: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Apply the MLPs of each token's experts and sum them, as σ-MoE does (arXiv 2310.10837).

    ``x`` (T, D), ``w_up`` (E, D, F), ``w_down`` (E, F, D), ``gate`` S values of any shape, where
    S = T · top_k and the slots s of token t are t · top_k ≤ s < (t + 1) · top_k; returns (T, D):

        out[t] = sum over slots s of token t, with e = expert[s], of
                 gate[s] * (relu(x[t] @ w_up[e]) @ w_down[e])

    One differentiable operation: kept for backward are the inputs and the hidden activations
    (S, F). Slots without an expert, shared weights and dtypes are as in ``expert_linear``. Raises
    ValueError for shapes, dtypes or a backend that do not fit.

    Experts with biases, as those of the Sparse Universal Transformer (arXiv 2310.07096), need no
    operation of their own. They are two ``expert_linear`` with ``bias_up[expert]`` (S, F) added
    between, and Σ_s gate[s] · bias_down[expert[s]], a product of the gates as (T, E), at the end.
    """
    shared = (w_up, w_down)
    w_up, w_down = map(parameter_of, shared)
    if x.dim() != 2:
        raise ValueError(f"x.shape={tuple(x.shape)}: expected (tokens, width)")
    if w_up.dim() != 3:
        raise ValueError(f"w_up.shape={tuple(w_up.shape)}: expected (num_experts, width, hidden)")
    tokens, slots = x.shape[0], dispatch.num_slots
    if (slots and not tokens) or (tokens and slots % tokens):
        raise ValueError(f"x has {tokens} rows: expected a divisor of the {slots} slots")
    experts, width, hidden = dispatch.num_experts, x.shape[1], w_up.shape[2]
    _check_shape("w_up", w_up, (experts, width, hidden))
    _check_shape("w_down", w_down, (experts, hidden, width))
    gate = _flatten_gate(gate, dispatch)
    dtype = _check_dtypes(x, dispatch, w_up=w_up, w_down=w_down, gate=gate)
    name = resolve_backend(backend, x.device, dtype)
    if not all(_is_served(weight, name, dtype) for weight in shared):
        shared = (w_up.to(dtype), w_down.to(dtype))
    return _implementation(name).expert_mlp(
        x.to(dtype), *shared, dispatch, None if gate is None else gate.to(dtype)
    )


def _implementation(name: str) -> Any:
    if name == "triton":
        from moeut.ops.triton import operators  # imports Triton, which a CPU does without

        return operators
    if name == "reference":
        from moeut.ops import reference  # which only tests ask for

        return reference
    return grouped


def _is_served(weight: Tensor | SharedWeight, backend: str, dtype: torch.dtype) -> bool:
    """Return whether a weight is a shared one that the backend takes as it is."""
    return isinstance(weight, SharedWeight) and backend == "triton" and weight.value.dtype == dtype


def _check_slots(name: str, value: int, dispatch: Dispatch) -> None:
    if value < 1 or dispatch.num_slots % value:
        raise ValueError(f"{name}={value}: expected a divisor of the {dispatch.num_slots} slots")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}.shape={tuple(tensor.shape)}: expected {shape}")


def _check_dtypes(x: Tensor, dispatch: Dispatch, **others: Tensor | None) -> torch.dtype:
    """Check devices and dtypes against those of x and return the dtype to compute in."""
    is_autocast = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    if dispatch.order.device != x.device:
        raise ValueError(f"dispatch is on {dispatch.order.device}: expected {x.device}, as x")
    if not x.is_floating_point():
        raise ValueError(f"x.dtype={x.dtype}: expected a floating-point dtype")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(f"{name}.device={tensor.device}: expected {x.device}, as x")
        # A gate is often computed in float32 from a float32 router, whatever x is.
        fits = tensor.is_floating_point() if name == "gate" else tensor.dtype == x.dtype
        if not (fits or (is_autocast and tensor.is_floating_point())):
            expected = "a floating-point dtype" if name == "gate" else f"{x.dtype}, as x"
            raise ValueError(f"{name}.dtype={tensor.dtype}: expected {expected}")
    return compute_dtype(x)


def _flatten_gate(gate: Tensor | None, dispatch: Dispatch) -> Tensor | None:
    if gate is not None and gate.numel() != dispatch.num_slots:
        raise ValueError(
            f"gate.shape={tuple(gate.shape)}: expected {dispatch.num_slots} values, one a slot"
        )
    return None if gate is None else gate.reshape(-1)
