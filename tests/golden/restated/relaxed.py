"""Relaxed recursion: Llama layers with adapters, or factors after each recursion."""

from __future__ import annotations

from typing import Any

from restated.llama import PROJECTIONS, config_of
from restated.mor import GIVEN, inputs, metadata, numbers

__all__ = ["GIVEN", "VARIANTS", "inputs", "metadata", "numbers"]


def _relaxed(shape: tuple[str, int, int], method: str, **changes: Any) -> dict[str, Any]:
    lora = changes.pop("lora", None)
    made = config_of(*shape, **changes) | {"family": "relaxed", "method": method}
    return made | ({"lora": lora | {"svd_init": False}} if lora else {})


EVERY = [name.rpartition(".")[2] for name in PROJECTIONS]
VARIANTS = {
    "encoding_cycle": _relaxed(("cycle", 2, 2), "recursion_encoding"),
    "encoding_sequence": _relaxed(("sequence", 2, 2), "recursion_encoding", ln_share=False),
    "encoding_middle_cycle": _relaxed(("middle_cycle", 2, 2), "recursion_encoding"),
    "encoding_middle_sequence": _relaxed(("middle_sequence", 2, 3), "recursion_encoding"),
    "encoding_single": _relaxed(("cycle", 1, 3), "recursion_encoding"),
    "lora_every": _relaxed(
        ("middle_cycle", 1, 2),
        "lora",
        lora={"r": 8, "scaling": 2.0, "target_modules": EVERY},
    ),
    "lora_up_only": _relaxed(
        ("cycle", 2, 2),
        "lora",
        lora={"r": 2, "scaling": 0.5, "target_modules": ["up_proj", "o_proj"]},
        ln_share=False,
    ),
    "lora_by_rank": _relaxed(
        ("middle_sequence", 2, 2),
        "lora",
        lora={"r": 8, "alpha": 16, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    ),
}
