"""A stand-in for torch, with which ``--help`` is printed at once: as builders of documentation do.

Torch takes a second to import and does nothing for docstrings and command lines. A stand-in has
whatever a module asks of it: to inherit from, to call, to index.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator, MutableSequence
from importlib.machinery import ModuleSpec
from typing import Any

LEFT_OUT = ("torch", "safetensors", "triton")
"""Packages that the models import and their options do without."""


class _Anything(type):
    """Class of what a stand-in has under any name: to inherit from, to call, to index, to ask."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks for
            raise AttributeError(name)
        return _anything(name)

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return cls if "is_anything" in vars(cls) else super().__call__(*arguments, **options)

    def __getitem__(cls, key: object) -> Any:
        return cls


def _anything(name: str) -> Any:
    return _Anything(name, (), {"is_anything": True})


class _StandIn(types.ModuleType):
    """A module that has everything."""

    __path__: MutableSequence[str] = []  # noqa: RUF012 - a package, with nothing below

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


class StandIns:
    """Finds a stand-in for every module of the packages that are left out."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        is_left_out = name.partition(".")[0] in LEFT_OUT
        return ModuleSpec(name, self, is_package=True) if is_left_out else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is executed."""


def leave_torch_out() -> None:
    """Import stand-ins for torch and its like from now on, in a process that computes nothing."""
    finder: Any = StandIns()
    sys.meta_path.insert(0, finder)


@contextlib.contextmanager
def torch_left_out() -> Iterator[None]:
    """Import stand-ins for torch and its like in the context; nothing of it stays.

    Where torch is there already, the models are imported as they are.
    """
    if "torch" in sys.modules:
        yield
        return
    finder: Any = StandIns()
    before = set(sys.modules)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            package, _, own = name.rpartition(".")
            if name.partition(".")[0] in (*LEFT_OUT, "moeut"):
                del sys.modules[name]
                if package in before:
                    vars(sys.modules[package]).pop(own, None)
