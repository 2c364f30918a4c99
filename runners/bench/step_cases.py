"""What ``bench step`` measures: the sizes, who takes part in each, and what is to be reached.

A contestant is plain data that ``step_worker`` reads; its name says whose code it is. ``base`` is
an older checkout of this suite, the others are published code, each given by its path.
"""

from __future__ import annotations

import dataclasses
from typing import Any

Plain = dict[str, Any]

PEERS = ("nanoGPT", "transformer_generalization", "ndr")
"""Published code that takes part where its path is given; Transformers' Llama where installed."""


@dataclasses.dataclass(frozen=True)
class Contest:
    """One size: a model of ours, whom it is compared with, and the ratio to reach."""

    mine: Plain
    target: float
    against: str
    """``base``, a peer, or another contest's name: the same code's model of it."""
    peers: dict[str, Plain] = dataclasses.field(default_factory=dict)
    repeats: int = 10
    """Steps of a turn."""


QUICKSTART = ("model.d_model=64", "match.parameters=160000", "train.batch_size=128")
"""Twice the quickstart's width, so that a step is not calls alone; of every checkout compared."""


def _quickstart(variant: str, target: float, *changes: str) -> Contest:
    mine = {
        "maker": "configured",
        "config": "configs/quickstart.yaml",
        "variant": variant,
        "changes": [*QUICKSTART, *changes],
    }
    return Contest(mine, target, "base", repeats=20)


SCAN_ROWS = [
    {"batch": 256, "shortest": 3, "longest": 11, "vocabulary": 16},
    {"batch": 256, "shortest": 4, "longest": 24, "vocabulary": 9},
]
SCAN_OURS: Plain = {
    "form": "encoder_decoder",
    "source_vocabulary_size": 16,
    "vocabulary_size": 9,
    "d_model": 128,
    "dropout": 0.1,
    "tie_embeddings": True,
    "attention": {"num_heads": 8},
    "feed_forward": {"hidden_size": 256},
    "norm": "post",
}
ABSOLUTE: Plain = {"kind": "sinusoidal", "scale": "inverse_sqrt"}


def _scan(variant: str, name: str, depth: Plain, position: Any) -> Contest:
    model = {**SCAN_OURS, "name": name, "depth": depth, "position": position}
    mine = {"maker": "ours", "kind": "translation", "architecture": model, "rows": SCAN_ROWS}
    peer = {"kind": "translation", "variant": variant, "rows": SCAN_ROWS}
    return Contest(mine, 0.55, "transformer_generalization", {"transformer_generalization": peer})


def _scan_decoding() -> Contest:
    rows = [{**SCAN_ROWS[0], "batch": 500}, SCAN_ROWS[1]]
    model = {**SCAN_OURS, "name": "transformer", "depth": {"group": 3}, "position": "relative"}
    both: Plain = {"kind": "answers", "rows": rows, "longest": 48}
    mine = {**both, "maker": "ours", "architecture": model}
    peer = {**both, "variant": "relative"}
    peers = {"transformer_generalization": peer}
    return Contest(mine, 0.25, "transformer_generalization", peers, repeats=1)


def _table_lookup() -> Contest:
    rows = [{"batch": 512, "shortest": 6, "longest": 9, "vocabulary": 22}]
    model: Plain = {
        **{"name": "universal", "form": "encoder_classifier", "vocabulary_size": 22},
        **{"num_classes": 8, "d_model": 128, "dropout": 0.1, "depth": {"repeats": 11}},
        **{"attention": {"num_heads": 4}, "feed_forward": {"hidden_size": 256}},
        **{"norm": "post", "position": "relative", "pooling": "last"},
    }
    mine = {"maker": "ours", "kind": "classes", "architecture": model, "rows": rows}
    return Contest(mine, 0.55, "ndr", {"ndr": {"rows": rows}}, repeats=3)


LANGUAGE: Plain = {
    "form": "decoder_lm",
    "vocabulary_size": 4000,
    "d_model": 128,
    "tie_embeddings": True,
}
LANGUAGE_ROWS = [{"batch": 8, "shortest": 257, "longest": 257, "vocabulary": 4000}]
SMALL_MOEUT: Plain = {
    **{"name": "moeut", "depth": {"group": 2, "repeats": 2}},
    "attention": {"num_heads": 2, "head_size": 32, "num_experts": 4, "top_k": 2},
    "feed_forward": {"num_experts": 52, "expert_size": 32, "top_k": 8},
}
SMALL_DENSE: Plain = {
    **{"name": "transformer", "depth": {"group": 4}},
    **{"attention": {"num_heads": 4}, "feed_forward": {"hidden_size": 512}},
}
LARGE_ROWS = [{"batch": 2, "shortest": 1025, "longest": 1025, "vocabulary": 8000}]


def _language(model: Plain, target: float, against: str, peers: dict[str, Plain]) -> Contest:
    mine: Plain = {
        **{"maker": "ours", "kind": "language", "rows": LANGUAGE_ROWS},
        **{"architecture": {**LANGUAGE, **model}},
    }
    return Contest(mine, target, against, peers, repeats=3)


def _large(preset: str, target: float, against: str, peers: dict[str, Plain]) -> Contest:
    mine = {"maker": "ours", "kind": "language", "preset": preset, "rows": LARGE_ROWS}
    return Contest(mine, target, against, peers, repeats=1)


def _decoding(
    preset: str, batch: int, target: float, against: str, *, weights: str = "float32"
) -> Contest:
    about: Plain = {"kind": "decode", "batch": batch, "prompt": 16, "weights": weights}
    is_peer = against == "llama"
    peers = {"llama": {**about, "sizes": LARGE_LLAMA["sizes"]}} if is_peer else {}
    return Contest({**about, "maker": "ours", "preset": preset}, target, against, peers, repeats=4)


def _token(batch: int, target: float, weights: str = "float32") -> dict[str, Contest]:
    """Return a token of the dense 44M model beside Llama's, and MoEUT's beside the dense one's."""
    ending = "" if weights == "float32" else f"-{weights}"
    dense = f"token-{batch}-transformer{ending}"
    return {
        dense: _decoding("transformer-44m", batch, 0.5, "llama", weights=weights),
        f"token-{batch}-moeut{ending}": _decoding(
            "moeut-44m", batch, target, dense, weights=weights
        ),
    }


SMALL_GPT = {
    "rows": LANGUAGE_ROWS,
    "sizes": {"block_size": 256, "vocab_size": 4000, "n_layer": 4, "n_head": 4, "n_embd": 128},
}
LARGE_GPT = {
    "rows": LARGE_ROWS,
    "sizes": {"block_size": 1024, "vocab_size": 8000, "n_layer": 19, "n_head": 4, "n_embd": 412},
}
LARGE_LLAMA = {
    "rows": LARGE_ROWS,
    "sizes": {
        **{"vocab_size": 8000, "hidden_size": 416, "intermediate_size": 1365},
        **{"num_hidden_layers": 16, "num_attention_heads": 8, "tie_word_embeddings": False},
    },
}

TOKENS = (
    *(_token(1, 2.0), _token(16, 1.5)),
    *(_token(1, 2.0, "bfloat16"), _token(16, 1.5, "bfloat16")),
)
CONTESTS: dict[str, Contest] = {
    "quickstart-universal": _quickstart("universal", 0.5),
    "quickstart-transformer": _quickstart("transformer", 0.7),
    "quickstart-moeut": _quickstart("moeut", 0.6, "model.feed_forward.expert_size=32"),
    "scan-standard": _scan("standard", "transformer", {"group": 3}, ABSOLUTE),
    "scan-relative": _scan("relative", "transformer", {"group": 3}, "relative"),
    "scan-universal": _scan("universal", "universal", {"repeats": 3}, ABSOLUTE),
    "table-lookup": _table_lookup(),
    "lm-transformer": _language(SMALL_DENSE, 0.6, "nanoGPT", {"nanoGPT": SMALL_GPT}),
    "lm-moeut": _language(SMALL_MOEUT, 0.8, "lm-transformer", {}),
    "44m-transformer": _large(
        "transformer-44m", 0.55, "nanoGPT", {"nanoGPT": LARGE_GPT, "llama": LARGE_LLAMA}
    ),
    "44m-moeut": _large("moeut-44m", 1.0, "44m-transformer", {}),
    **{name: contest for pair in TOKENS for name, contest in pair.items()},
    "scan-decoding": _scan_decoding(),
}
GROUPS = (
    *([name] for name in CONTESTS if name.startswith(("quick", "scan", "table"))),
    ["lm-transformer", "lm-moeut"],
    ["44m-transformer", "44m-moeut"],
    *(list(pair) for pair in TOKENS),
)
"""Contests whose contestants take turns with one another."""
