"""Named architectures whose repeats read the input again, beside a state of their own."""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]


def huginn() -> Tree:
    """Huginn: between a prelude and a coda a group is repeated from noise, which a projection mixes
    with the input before each repeat."""
    return {
        "depth": {"prelude": 1, "group": 2, "repeats": 4, "coda": 1},
        "state": {
            "start": {"kind": "noise", "shape": "like_init"},
            "injection": "linear",
            "output": "final_norm",
        },
        "attention": {"kind": "dense", "bias": "query_key"},
        "feed_forward": {"kind": "gated"},
        "position": {"kind": "rotary", "pairs": True, "base": 50000.0, "fraction": 1.0},
        "norm": "sandwich",
        "norm_kind": "rms",
        "norm_epsilon": 1e-6,
        "head_bias": False,
        "embedding_scale": "sqrt_d_model",
    }


def parcae() -> Tree:
    """Parcae: Huginn with a stable linear recurrence, in which each channel of the state decays,
    and with value embeddings."""
    return {
        "depth": {"prelude": 1, "group": 2, "repeats": 4, "coda": 1},
        "state": {
            "start": {"kind": "noise", "shape": "like_init"},
            "injection": "diagonal",
            "norm_input": True,
            "output": "linear",
        },
        "attention": {"kind": "dense", "qk_norm": "after"},
        "feed_forward": {"kind": "dense", "activation": "half_squared_relu", "bias": False},
        "value_embeddings": {"layers": "alternate"},
        "position": {"kind": "rotary", "pairs": True, "base": 50000.0, "fraction": 1.0},
        "norm_kind": "rms",
        "head_bias": False,
    }


def abacus() -> Tree:
    """The recurrent model of arithmetic: one layer repeated from noise, to which the input is
    added, with a place of its own for each digit of a number."""
    return {
        "depth": {"group": 1, "repeats": 16},
        "state": {
            "start": {"kind": "noise", "deviation": 0.02},
            "injection": "add",
            "output": "feed_forward",
        },
        "attention": {"kind": "dense"},
        "feed_forward": {"kind": "gated", "activation": "gelu"},
        "position": {"kind": "fire"},
        "input_position": {"kind": "abacus"},
        "norm": "post",
        "norm_epsilon": 1e-12,
        "norm_input": True,
        "norm_input_weights": True,
        "final_norm": True,
        "head_bias": False,
    }


def looped() -> Tree:
    """The looped Transformer of length generalisation: GPT-2 layers without positions, repeated
    from zero, to which the input is added before each repeat and which a norm ends (arXiv
    2409.15647)."""
    return {
        "depth": {"group": 2, "repeats": 8},
        "state": {"start": "zero", "injection": "add"},
        "attention": {"kind": "dense", "bias": "all"},
        "feed_forward": {"kind": "dense", "activation": "gelu_tanh"},
        "position": {"kind": "none"},
        "repeat_norm": True,
    }
