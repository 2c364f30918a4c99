"""The language models of the MoEUT paper (arXiv 2405.16039) and its baselines, by name.

``PRESETS["moeut-44m"]`` is what a configuration file would say: an ``architecture`` and the keys
that differ from its defaults. Names end in the paper's size labels; the models of one label are
matched in parameters to its MoEUT, at the paper's vocabulary of 8000.

Sizes are those of the sweeps of RobertCsordas/moeut_training_code at a0f771a. Those in ``OURS``
continue the series and are not in the paper; do not report them as the paper's:

* ``sigma_moe-1b`` has the attention, depth and active experts of ``moeut-1b``, and the number of
  experts that comes nearest to its parameters.
* ``universal-*`` is the label's dense baseline with one layer repeated, whose feed-forward is so
  wide that the parameters are MoEUT's. It costs 13 (44m) to 52 (1b) times the
  multiply-accumulates of MoEUT, which is why the paper turns to sparse experts: at 244m a token
  takes 4.1 G against 0.17 G. ``universal`` with the ``hidden_size`` of ``transformer`` has the
  compute of ``transformer`` instead, and a fraction of its parameters.

One detail of the paper is not reproduced: from 126m up its σ-MoE baselines start with the value
and output weights renormalised over the heads, as MoEUT's are over experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXPERT_SIZE = 128

Tree = dict[str, Any]


def _moeut(
    d_model: int,
    num_layers: int,
    group: int,
    num_heads: int,
    head_size: int,
    attention_experts: int,
    num_experts: int,
    top_k: int,
    *,
    renormalise_experts: bool = True,
) -> Tree:
    return {
        "architecture": "moeut",
        "d_model": d_model,
        "depth": {"group": group, "repeats": num_layers // group},
        "attention": {
            "kind": "switch_head",
            "num_heads": num_heads,
            "head_size": head_size,
            "num_experts": attention_experts,
            "top_k": 2,
            "renormalise_experts": renormalise_experts,
        },
        "feed_forward": _experts(num_experts, top_k),
    }


def _sigma_moe(
    d_model: int, num_layers: int, num_heads: int, head_size: int, num_experts: int, top_k: int
) -> Tree:
    return {
        "architecture": "sigma_moe",
        "d_model": d_model,
        "depth": {"group": num_layers, "repeats": 1},
        "attention": {"num_heads": num_heads, "head_size": head_size},
        "feed_forward": _experts(num_experts, top_k),
    }


def _experts(num_experts: int, top_k: int) -> Tree:
    return {
        "kind": "sigma_moe",
        "num_experts": num_experts,
        "expert_size": EXPERT_SIZE,
        "top_k": top_k,
    }


def _transformer(
    d_model: int, num_layers: int, num_heads: int, head_size: int, hidden_size: int
) -> Tree:
    return {
        "architecture": "transformer",
        "d_model": d_model,
        "depth": {"group": num_layers, "repeats": 1},
        "attention": {"num_heads": num_heads, "head_size": head_size},
        "feed_forward": {"hidden_size": hidden_size},
    }


def _universal(
    d_model: int, num_layers: int, num_heads: int, head_size: int, hidden_size: int
) -> Tree:
    layout = _transformer(d_model, num_layers, num_heads, head_size, hidden_size)
    depth = {"group": 1, "repeats": num_layers}
    return layout | {"architecture": "universal", "depth": depth}


PRESETS: Mapping[str, Tree] = {
    #                    d_model layers group heads head  N_A  N_E  K
    "moeut-44m": _moeut(412, 16, 2, 4, 82, 8, 155, 12, renormalise_experts=False),
    "moeut-126m": _moeut(768, 18, 2, 4, 96, 10, 254, 12),
    "moeut-244m": _moeut(1024, 18, 2, 4, 128, 10, 387, 16),
    "moeut-319m": _moeut(1024, 24, 3, 4, 128, 10, 338, 16),
    "moeut-728m": _moeut(1280, 36, 4, 5, 128, 13, 467, 20),
    "moeut-1b": _moeut(1536, 36, 4, 6, 128, 12, 565, 24),
    #                                         d_model layers heads head feed-forward
    "transformer-44m": _transformer(412, 16, 10, 41, 2053),
    "transformer-126m": _transformer(768, 16, 16, 48, 3072),
    "transformer-244m": _transformer(1024, 18, 16, 64, 4110),
    "transformer-319m": _transformer(1024, 24, 16, 64, 4110),
    "transformer-728m": _transformer(1280, 36, 20, 64, 5120),
    "transformer-1b": _transformer(1536, 36, 24, 64, 6144),
    #                        d_model layers heads head N_E  K
    "sigma_moe-44m": _sigma_moe(412, 16, 4, 82, 17, 12),
    "sigma_moe-126m": _sigma_moe(768, 18, 4, 96, 26, 12),
    "sigma_moe-244m": _sigma_moe(1024, 18, 4, 128, 40, 16),
    "sigma_moe-319m": _sigma_moe(1024, 24, 4, 128, 40, 16),
    "sigma_moe-728m": _sigma_moe(1280, 36, 5, 128, 50, 20),
    "sigma_moe-1b": _sigma_moe(1536, 36, 6, 128, 59, 24),
    #                                     d_model layers heads head feed-forward
    "universal-44m": _universal(412, 16, 10, 41, 44930),
    "universal-126m": _universal(768, 16, 16, 48, 72224),
    "universal-244m": _universal(1024, 18, 16, 64, 108703),
    "universal-319m": _universal(1024, 24, 16, 64, 145200),
    "universal-728m": _universal(1280, 36, 20, 64, 273477),
    "universal-1b": _universal(1536, 36, 24, 64, 327461),
}

OURS = frozenset({"sigma_moe-1b", *(name for name in PRESETS if name.startswith("universal-"))})
"""Presets that continue the paper's series and are not in the paper."""
