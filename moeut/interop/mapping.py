"""Names and layouts of tensors, from another code's to ours.

An importer is a list of ``TensorMap``: which of their tensors becomes which of ours, and how. A
map only moves elements, so it takes a gradient under their names to one under ours, too.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from moeut.config import ModelConfig
from moeut.models import build
from moeut.options import nearest

ModelT = TypeVar("ModelT", bound=torch.nn.Module)

PROJECTIONS = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}
"""Projections of a layer, as code that follows Llama names them, and ours."""


def _same(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


_LISTED = 8
"""Names of tensors in an error."""


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""


@dataclass(frozen=True)
class TensorMap:
    """One tensor of theirs and the tensors of ours that it becomes."""

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[Tensor], tuple[Tensor, ...]] = _same
    """Their tensor to ours."""


def rename(theirs: str, ours: str) -> TensorMap:
    """Map a tensor that only has another name."""
    return TensorMap(theirs, (ours,))


def rename_layer(theirs: str, ours: str) -> list[TensorMap]:
    """Map weight and bias of a layer norm or a dense layer."""
    return [rename(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def reshape(theirs: str, ours: str, shape: tuple[int, ...]) -> TensorMap:
    """Map a tensor to one of another shape, with the same elements in the same order."""
    return TensorMap(theirs, (ours,), split=lambda tensor: (tensor.reshape(shape),))


def head_blocks(
    theirs: str, ours: str, *, num_heads: int, head_size: int, transposed: bool
) -> TensorMap:
    """Map one projection matrix per head to the weight of one dense layer over all heads.

    Theirs is (H, d, D); ours the layer's weight (D, H·d) or, with ``transposed``, theirs is
    (H, D, d) and ours (H·d, D).
    """

    def split(tensor: Tensor) -> tuple[Tensor]:
        if transposed:
            return (tensor.transpose(1, 2).reshape(num_heads * head_size, -1),)
        return (tensor.reshape(num_heads * head_size, -1).T,)

    return TensorMap(theirs, (ours,), split)


def key_value_halves(theirs: str, key: str, value: str) -> TensorMap:
    """Map a joint projection (2·H·d, D) whose first half is the key's, second the value's."""
    return TensorMap(theirs, (key, value), split=lambda tensor: tuple(tensor.chunk(2, dim=0)))


def key_value_by_head(
    theirs: str, key: str, value: str, *, num_heads: int, head_size: int
) -> TensorMap:
    """Map a joint projection (2·H·d, D) whose rows are laid out as [head, (key, value), d]."""

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        blocks = tensor.reshape(num_heads, 2, head_size, -1)
        return tuple(blocks[:, i].reshape(num_heads * head_size, -1) for i in range(2))

    return TensorMap(theirs, (key, value), split)


def matrix_shape(state_dict: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Return the rows and columns of a tensor that says the size of a model.

    Raises:
        ValueError: it is missing, or no matrix.
    """
    if name not in state_dict:
        raise ValueError(f"state_dict does not fit the options: missing: {name}")
    tensor = state_dict[name]
    if not isinstance(tensor, Tensor) or tensor.dim() != 2:
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"state_dict[{name!r}]: expected a matrix, found {found}")
    return tensor.shape[0], tensor.shape[1]


def to_ours(
    maps: Iterable[TensorMap], theirs: dict[str, Tensor], *, ignore: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return ``theirs`` under our names and layouts.

    ``ignore`` are shell patterns of names that carry no weight (counters, tables).

    Raises:
        ValueError: tensors are missing, or no map takes them (the first are listed); or one has a
            shape that cannot be mapped, or is no tensor.
    """
    maps = list(maps)
    wanted = {tensor_map.theirs for tensor_map in maps}
    missing = sorted(wanted - theirs.keys())
    left_over = sorted(
        name
        for name in theirs.keys() - wanted
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
    )
    if missing or left_over:
        problems = [
            f"{what}: {', '.join(names[:_LISTED])}{_and_more(names)}"
            for what, names in (("missing", missing), ("not known", left_over))
            if names
        ]
        raise ValueError("state_dict does not fit the options: " + "; ".join(problems))
    ours: dict[str, Tensor] = {}
    for tensor_map in maps:
        given = theirs[tensor_map.theirs]
        if not isinstance(given, Tensor):
            kind = type(given).__name__
            raise ValueError(f"state_dict[{tensor_map.theirs!r}]: expected a tensor, found {kind}")
        try:
            parts = tensor_map.split(given)
            ours.update(zip(tensor_map.ours, parts, strict=True))
        except (RuntimeError, IndexError, ValueError) as error:
            raise ValueError(
                f"state_dict[{tensor_map.theirs!r}]: shape {tuple(given.shape)} does not fit the "
                "options"
            ) from error
    return ours


def load(
    form: type[ModelT],
    config: ModelConfig,
    maps: Iterable[TensorMap],
    state_dict: dict[str, Tensor],
    *,
    ignore: tuple[str, ...] = (),
    make: Callable[[ModelConfig], torch.nn.Module] = build,
) -> ModelT:
    """Build ``config``, of the given form, with ``state_dict``, in the dtype of those tensors.

    The model is in training mode, as a new module is; ``make`` builds one that is no form of ours.

    Raises:
        ValueError: tensors are missing, left over, of another shape, or no floating-point numbers.
    """
    maps = list(maps)
    ours = to_ours(maps, state_dict, ignore=ignore)
    for tensor_map in maps:
        tensor = state_dict[tensor_map.theirs]
        if not tensor.is_floating_point():
            raise ValueError(
                f"state_dict[{tensor_map.theirs!r}]: expected floating-point numbers, found "
                f"{tensor.dtype}"
            )
    dtype = next(tensor.dtype for tensor in ours.values())
    with torch.device("meta"):  # sizes that are wrong may be too large to build
        expected = {name: tuple(tensor.shape) for name, tensor in make(config).state_dict().items()}
    for tensor_map in maps:
        for name in tensor_map.ours:
            shape = tuple(ours[name].shape)
            if expected.get(name) != shape:
                raise ValueError(
                    f"state_dict[{tensor_map.theirs!r}]: gives {name} the shape {shape}, "
                    f"the options call for {expected.get(name)}"
                )
    # Building draws initial weights; the caller's random state is none of their business.
    with torch.random.fork_rng(devices=[]):
        model = make(config).to(dtype)
    assert isinstance(model, form)
    model.load_state_dict(ours, strict=True)
    return model


class RawOptions:
    """Options of another code, whose values may be strings (``"14"``, ``"none"``, ``"true"``).

    Every getter raises ``ValueError`` naming option and value for what it cannot read.
    """

    def __init__(self, options: dict[str, Any], *, source: str) -> None:
        self._options = options
        self._source = source

    def error(self, name: str, value: object, allowed: str) -> ValueError:
        """Return the error that says what ``name`` may be."""
        return ValueError(f"{name}={value!r}: {allowed} (option of {self._source})")

    def raw(self, name: str, default: Any = ...) -> Any:
        """Return the value (``None`` for a word like "none"); without a default it must be there.

        Raises:
            ValueError: it is not there, and there is no default.
        """
        if name not in self._options:
            if default is ...:
                hint = nearest(name, map(str, self._options))
                raise ValueError(f"{name}: missing option of {self._source}{hint}")
            return default
        value = self._options[name]
        if isinstance(value, str) and value.strip().lower() in ("none", "null"):
            return None
        return value

    def integer(self, name: str, default: Any = ..., *, least: int | None = None) -> int:
        """Return a whole number, of ``least`` or more; raise ``ValueError`` for anything else."""
        value = self.raw(name, default)
        number = self._number(name, value)
        if number != int(number) or (least is not None and number < least):
            limit = "" if least is None else f" of at least {least}"
            raise self.error(name, value, f"expected a whole number{limit}")
        return int(number)

    def integer_or_none(self, name: str, default: Any = None) -> int | None:
        """Return a whole number, or None."""
        return None if self.raw(name, default) is None else self.integer(name, default)

    def number(self, name: str, default: Any = ...) -> float:
        """Return a number; raise ``ValueError`` for anything else."""
        return self._number(name, self.raw(name, default))

    def number_or_none(self, name: str, default: Any = None) -> float | None:
        """Return a number, or None."""
        return None if self.raw(name, default) is None else self.number(name, default)

    def boolean(self, name: str, default: Any = ...) -> bool:
        """Return a truth value, written as such, as a number or as a word.

        Raises:
            ValueError: it is none of these.
        """
        value = self.raw(name, default)
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool | int) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.strip().lower() in words:
            return words[value.strip().lower()]
        raise self.error(name, value, "expected true or false")

    def word(self, name: str, allowed: Iterable[str], default: Any = ...) -> str:
        """Return one of the ``allowed`` words; raise ``ValueError`` for anything else."""
        value, allowed = self.raw(name, default), list(allowed)
        if value not in allowed:
            raise self.error(
                name, value, f"supported are {', '.join(allowed)}{nearest(value, allowed)}"
            )
        return value

    def require(self, name: str, value: object, supported: object, *, default: object) -> None:
        """Raise unless the ``value`` read from ``name`` is the only ``supported`` one."""
        if value != supported:
            given = "" if name in self._options else f" (left out: {default!r})"
            raise self.error(name, value, f"only {supported!r} is supported{given}")

    def section(self, name: str) -> RawOptions:
        """Return the options of a section, which may be left out or empty.

        Raises:
            ValueError: it is there, and no mapping.
        """
        value = self.raw(name, None) or {}
        if not isinstance(value, Mapping):
            raise self.error(name, value, "expected a section of options")
        return RawOptions(dict(value), source=f"{self._source} {name}")

    def _number(self, name: str, value: Any) -> float:
        if not isinstance(value, bool) and isinstance(value, int | float | str):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number):
                return number
        raise self.error(name, value, "expected a number")
