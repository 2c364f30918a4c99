"""Packages that only tasks over text need, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, purpose: str) -> Any:
    """Import a module of the extra ``lm``.

    Raises:
        ValueError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ValueError(
            f"{purpose} needs {package!r}: pip install 'moeut-suite[lm]' ({error})"
        ) from None
