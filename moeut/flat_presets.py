"""The language models of the MoEUT paper (arXiv 2405.16039) and its baselines, by name.

``PRESETS["moeut-44m"]`` is a ``ModelConfig`` with the paper's vocabulary of 8000, and
``PRESET_OPTIONS["moeut-44m"]`` the same as flat options, for any vocabulary. Names end in the
paper's size labels; the models of one label are matched in parameters to its MoEUT.

Sizes are those of the sweeps of RobertCsordas/moeut_training_code at a0f771a, but for those in
``OURS``, which the paper does not have and which must not be reported as its:

* ``sigma_moe-1b`` continues the series: the attention, depth and active experts of ``moeut-1b``,
  and the number of experts that comes nearest to its parameters.
* ``universal-*`` is the dense baseline of the label with one layer applied in all its depth, that
  layer's feed-forward as wide as MoEUT's parameters make it. That costs 13 (44m) to 52 (1b) times
  the multiply-accumulates of MoEUT, which is why the paper asks for sparse experts: at 244m a token
  takes 4.1 G against 0.17 G. ``universal`` with the ``feed_forward_size`` of ``transformer`` has
  its compute instead, and a fraction of the parameters.

One thing of the paper's is not done: from 126m up its σ-MoE baselines start with the value and
output weights renormalised over the heads, as MoEUT's are over experts.
"""

from __future__ import annotations

from typing import Any

from moeut.config import ModelConfig
from moeut.flat_architectures import architecture
from moeut.options import nearest

VOCABULARY_SIZE = 8000
EXPERT_SIZE = 128

Options = dict[str, Any]


def _layout(d_model: int, num_layers: int, num_heads: int, head_size: int) -> Options:
    return {
        "d_model": d_model,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "head_size": head_size,
    }


def _moeut(
    d_model: int,
    num_layers: int,
    group_size: int,
    num_heads: int,
    head_size: int,
    attention_experts: int,
    num_experts: int,
    top_k: int,
    *,
    renormalise_attention_experts: bool = True,
) -> Options:
    return {
        "architecture": "moeut",
        **_layout(d_model, num_layers, num_heads, head_size),
        "group_size": group_size,
        "attention_experts": attention_experts,
        "attention_top_k": 2,
        "renormalise_attention_experts": renormalise_attention_experts,
        "num_experts": num_experts,
        "expert_size": EXPERT_SIZE,
        "top_k": top_k,
    }


def _sigma_moe(
    d_model: int, num_layers: int, num_heads: int, head_size: int, num_experts: int, top_k: int
) -> Options:
    return {
        "architecture": "sigma_moe",
        **_layout(d_model, num_layers, num_heads, head_size),
        "num_experts": num_experts,
        "expert_size": EXPERT_SIZE,
        "top_k": top_k,
    }


def _dense(
    name: str,
    d_model: int,
    num_layers: int,
    num_heads: int,
    head_size: int,
    feed_forward_size: int,
) -> Options:
    return {
        "architecture": name,
        **_layout(d_model, num_layers, num_heads, head_size),
        "feed_forward_size": feed_forward_size,
    }


PRESET_OPTIONS: dict[str, Options] = {
    #                    d_model layers group heads head  N_A  N_E  K
    "moeut-44m": _moeut(412, 16, 2, 4, 82, 8, 155, 12, renormalise_attention_experts=False),
    "moeut-126m": _moeut(768, 18, 2, 4, 96, 10, 254, 12),
    "moeut-244m": _moeut(1024, 18, 2, 4, 128, 10, 387, 16),
    "moeut-319m": _moeut(1024, 24, 3, 4, 128, 10, 338, 16),
    "moeut-728m": _moeut(1280, 36, 4, 5, 128, 13, 467, 20),
    "moeut-1b": _moeut(1536, 36, 4, 6, 128, 12, 565, 24),
    #                                         d_model layers heads head feed-forward
    "transformer-44m": _dense("transformer", 412, 16, 10, 41, 2053),
    "transformer-126m": _dense("transformer", 768, 16, 16, 48, 3072),
    "transformer-244m": _dense("transformer", 1024, 18, 16, 64, 4110),
    "transformer-319m": _dense("transformer", 1024, 24, 16, 64, 4110),
    "transformer-728m": _dense("transformer", 1280, 36, 20, 64, 5120),
    "transformer-1b": _dense("transformer", 1536, 36, 24, 64, 6144),
    #                        d_model layers heads head N_E  K
    "sigma_moe-44m": _sigma_moe(412, 16, 4, 82, 17, 12),
    "sigma_moe-126m": _sigma_moe(768, 18, 4, 96, 26, 12),
    "sigma_moe-244m": _sigma_moe(1024, 18, 4, 128, 40, 16),
    "sigma_moe-319m": _sigma_moe(1024, 24, 4, 128, 40, 16),
    "sigma_moe-728m": _sigma_moe(1280, 36, 5, 128, 50, 20),
    "sigma_moe-1b": _sigma_moe(1536, 36, 6, 128, 59, 24),
    #                                     d_model layers heads head feed-forward
    "universal-44m": _dense("universal", 412, 16, 10, 41, 44930),
    "universal-126m": _dense("universal", 768, 16, 16, 48, 72224),
    "universal-244m": _dense("universal", 1024, 18, 16, 64, 108703),
    "universal-319m": _dense("universal", 1024, 24, 16, 64, 145200),
    "universal-728m": _dense("universal", 1280, 36, 20, 64, 273477),
    "universal-1b": _dense("universal", 1536, 36, 24, 64, 327461),
}

OURS = frozenset(
    {"sigma_moe-1b", *(name for name in PRESET_OPTIONS if name.startswith("universal-"))}
)
"""Presets that continue the paper's series and are not in it."""

FREE_WIDTHS = ("num_experts", "feed_forward_size")
"""Options that ``match_parameters`` sizes, and which give way to it."""

PRESETS: dict[str, ModelConfig] = {
    name: architecture(
        options["architecture"],
        form="decoder_lm",
        vocabulary_size=VOCABULARY_SIZE,
        **{option: value for option, value in options.items() if option != "architecture"},
    )
    for name, options in PRESET_OPTIONS.items()
}


def preset_options(name: str, **changes: Any) -> Options:
    """Return ``architecture`` and the flat options of a preset, with ``changes`` over them.

    With ``match_parameters`` among the changes, the preset's own free width is left out. Raises
    ``ValueError`` for an unknown name.
    """
    if name not in PRESET_OPTIONS:
        raise ValueError(
            f"preset={name!r}: expected one of {', '.join(PRESET_OPTIONS)}"
            f"{nearest(name, PRESET_OPTIONS)}"
        )
    given_way = FREE_WIDTHS if changes.get("match_parameters") is not None else ()
    kept = {key: value for key, value in PRESET_OPTIONS[name].items() if key not in given_way}
    return kept | changes
