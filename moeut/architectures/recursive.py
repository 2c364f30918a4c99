"""Named architectures of recursion: Llama layers that repeats share, and what is a repeat's own."""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]


def _recursive() -> Tree:
    """Llama layers (RMS norm, SwiGLU, rotary positions), two of them repeated three times between
    one layer before and one after."""
    return {
        "depth": {"prelude": 1, "group": 2, "repeats": 3, "coda": 1},
        "attention": {"kind": "dense"},
        "feed_forward": {"kind": "gated"},
        "position": {"kind": "rotary", "fraction": 1.0},
        "norm": "pre",
        "norm_kind": "rms",
        "tie_embeddings": False,
        "head_bias": False,
    }


def relaxed_recursive() -> Tree:
    """The relaxed recursive Transformer: repeats share all but low-rank adapters of queries and
    values (arXiv 2410.20672)."""
    adapters = {"rank": 16, "scaling": 2.0, "key": False, "value": True}
    return _recursive() | {
        "depth": {"prelude": 0, "group": 2, "repeats": 3, "coda": 0},
        "own": {"adapters": adapters},
    }


def mor_expert() -> Tree:
    """Mixture-of-Recursions, expert choice: each repeat takes the tokens with the largest gates, a
    third less than the one before, and in evaluation those above a threshold (arXiv 2507.10524)."""
    return _recursive() | {"halting": {"kind": "expert_choice", "evaluate": "threshold"}}


def mor_token() -> Tree:
    """Mixture-of-Recursions, token choice: each token chooses how many repeats it goes through,
    before the first (arXiv 2507.10524)."""
    return _recursive() | {"halting": {"kind": "token_choice"}}
