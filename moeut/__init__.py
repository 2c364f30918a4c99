"""Depth-recurrent Transformers with sparse experts (MoEUT), and the baselines to compare with.

``build(config)`` makes a model of a ``ModelConfig``, which ``architecture(name, …)`` and
``preset(name)`` return; ``load(directory)`` reads a saved one. Names, and modules such as
``moeut.ops``, are imported when they are first used, so that ``import moeut`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeut import blocks, initialization, interop, ops, recurrence
    from moeut.architectures import ARCHITECTURES, architecture, blueprint, configure, preset
    from moeut.blocks.attention import DenseAttention, SwitchHead
    from moeut.blocks.feed_forward import DenseFeedForward, SigmaMoE
    from moeut.blocks.positions import Learned, NoPosition, Relative, Rotary, Sinusoidal
    from moeut.config import ModelConfig, StackConfig
    from moeut.decoding import Decoded, greedy_decode
    from moeut.design import Blueprint
    from moeut.interop import (
        from_ndr,
        from_release,
        from_training_checkpoint,
        from_training_code,
        from_transformer_generalization,
    )
    from moeut.loading import load
    from moeut.models import (
        DecoderLM,
        EncoderClassifier,
        EncoderDecoder,
        EncoderLabeller,
        Model,
        build,
    )
    from moeut.options import OptionError
    from moeut.output import ModelOutput
    from moeut.presets import PRESETS
    from moeut.recurrence.schedule import Depth
    from moeut.sampling import generate
    from moeut.saving import save
    from moeut.sizing import count_parameters, macs_per_token, match_parameters

_NAMES_OF = {
    "architectures": ("ARCHITECTURES", "architecture", "blueprint", "configure", "preset"),
    "blocks.attention": ("DenseAttention", "SwitchHead"),
    "blocks.feed_forward": ("DenseFeedForward", "SigmaMoE"),
    "blocks.positions": ("Learned", "NoPosition", "Relative", "Rotary", "Sinusoidal"),
    "config": ("ModelConfig", "StackConfig"),
    "decoding": ("Decoded", "greedy_decode"),
    "design": ("Blueprint",),
    "interop": (
        "from_ndr",
        "from_release",
        "from_training_checkpoint",
        "from_training_code",
        "from_transformer_generalization",
    ),
    "loading": ("load",),
    "models": (
        "DecoderLM",
        "EncoderClassifier",
        "EncoderDecoder",
        "EncoderLabeller",
        "Model",
        "build",
    ),
    "options": ("OptionError",),
    "output": ("ModelOutput",),
    "presets": ("PRESETS",),
    "recurrence.schedule": ("Depth",),
    "sampling": ("generate",),
    "saving": ("save",),
    "sizing": ("count_parameters", "macs_per_token", "match_parameters"),
}
"""Where each name is, for the import at its first use; what type checkers read is above."""

_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}
_MODULES = {
    *(module.partition(".")[0] for module in _NAMES_OF),
    "initialization",
    "ops",
}

__all__ = [
    "ARCHITECTURES",
    "PRESETS",
    "Blueprint",
    "Decoded",
    "DecoderLM",
    "DenseAttention",
    "DenseFeedForward",
    "Depth",
    "EncoderClassifier",
    "EncoderDecoder",
    "EncoderLabeller",
    "Learned",
    "Model",
    "ModelConfig",
    "ModelOutput",
    "NoPosition",
    "OptionError",
    "Relative",
    "Rotary",
    "SigmaMoE",
    "Sinusoidal",
    "StackConfig",
    "SwitchHead",
    "architecture",
    "blocks",
    "blueprint",
    "build",
    "configure",
    "count_parameters",
    "from_ndr",
    "from_release",
    "from_training_checkpoint",
    "from_training_code",
    "from_transformer_generalization",
    "generate",
    "greedy_decode",
    "initialization",
    "interop",
    "load",
    "macs_per_token",
    "match_parameters",
    "ops",
    "preset",
    "recurrence",
    "save",
]

if not TYPE_CHECKING:  # so that type checkers still know a name that is not there

    def __getattr__(name):
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
