"""Depth-recurrent Transformers with sparse experts (MoEUT), and the baselines to compare with.

``build(config)`` makes a model of a ``ModelConfig``: one of ``PRESETS``, what ``architecture(name,
…)`` returns, or your own. ``load(directory)`` reads a saved one. Names, and modules such as
``moeut.ops``, are imported when they are first used, so that ``import moeut`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULE_OF = {
    "ModelConfig": "config",
    "Blueprint": "config",
    "StackConfig": "config",
    "Depth": "recurrence.schedule",
    "NoPosition": "blocks.positions",
    "Rotary": "blocks.positions",
    "Relative": "blocks.positions",
    "Sinusoidal": "blocks.positions",
    "Learned": "blocks.positions",
    "DenseAttention": "blocks.attention",
    "SwitchHead": "blocks.attention",
    "DenseFeedForward": "blocks.feed_forward",
    "SigmaMoE": "blocks.feed_forward",
    "OptionError": "options",
    "build": "models",
    "DecoderLM": "models",
    "EncoderDecoder": "models",
    "EncoderClassifier": "models",
    "ModelOutput": "models",
    "greedy_decode": "decoding",
    "Decoded": "decoding",
    "generate": "sampling",
    "load": "saving",
    "ARCHITECTURES": "architectures",
    "architecture": "architectures",
    "preset": "architectures",
    "PRESETS": "presets",
    "count_parameters": "sizing",
    "macs_per_token": "sizing",
    "from_release": "interop",
    "from_training_checkpoint": "interop",
    "from_training_code": "interop",
    "from_transformer_generalization": "interop",
    "from_ndr": "interop",
}

_MODULES = {*_MODULE_OF.values(), "blocks", "initialization", "ops", "recurrence"}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
