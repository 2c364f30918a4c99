"""Llama layers that recursions share, with what each has of its own, from their equations."""

from __future__ import annotations

from typing import Any

import torch
from restated.layers import Tensors, attend, heads, rms, rotary, silu
from torch import Tensor

PROJECTIONS = {
    "self_attn.q_proj": ("hidden", "hidden"),
    "self_attn.k_proj": ("keys", "hidden"),
    "self_attn.v_proj": ("keys", "hidden"),
    "self_attn.o_proj": ("hidden", "hidden"),
    "mlp.gate_proj": ("inner", "hidden"),
    "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"),
}
NORMS = ("input_layernorm", "post_attention_layernorm")
PEFT = "base_model.model."


def config_of(sharing: str, base: int, recursions: int, **changes: Any) -> dict[str, Any]:
    """Return the options of Llama layers that recursions share as ``sharing`` says."""
    around = 2 if sharing.startswith("middle") else 0
    return {
        "heads": 2,
        "hidden": 12,
        "intermediate": 10,
        "kv_heads": 1,
        "num_layers": base * recursions + around,
        "recursive": {
            "base_depth": base,
            "ln_share": changes.pop("ln_share", True),
            "num_recursion": recursions,
            "sharing": sharing,
        },
        "rms_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab": 13,
    } | changes


class Applied:
    """One application: which weights, by the first name of each, and what it is called itself."""

    def __init__(self, config: dict[str, Any], index: int) -> None:
        read = config["recursive"]
        base, recursions, sharing = read["base_depth"], read["num_recursion"], read["sharing"]
        around = 1 if sharing.startswith("middle") else 0
        inner = index - around
        self.is_outer = around > 0 and not 0 <= inner < base * recursions
        self.index, self.recursion, self.layer = index, None, inner
        if not self.is_outer:
            by_run = sharing.endswith("sequence")
            self.layer = inner // recursions if by_run else inner % base
            self.recursion = inner % recursions if by_run else inner // base
        wraps = sharing.endswith("sequence") or self.layer == base - 1
        self.is_encoded = (
            config.get("method") == "recursion_encoding" and not self.is_outer and wraps
        )

    @property
    def key(self) -> Any:
        return ("outer", self.index) if self.is_outer else self.layer


def applications(config: dict[str, Any]) -> list[Applied]:
    """Return every application of a pass, in order."""
    return [Applied(config, index) for index in range(config["num_layers"])]


def name_of(config: dict[str, Any], one: Applied) -> str:
    """Return what the code calls the layer of an application."""
    prefix = PEFT if config.get("method") == "lora" else ""
    router, around = config.get("mor", {}), config["recursive"]["sharing"].startswith("middle")
    recursions = config["recursive"]["num_recursion"]
    if not router.get("enable"):
        return f"{prefix}model.layers.{one.index}{'.block' if one.is_encoded else ''}"
    is_expert = router["type"] == "expert"
    if one.is_outer:
        return f"model.layers.{0 if one.index == 0 else 1 + (recursions if is_expert else 1)}"
    if is_expert:
        return f"model.layers.{one.recursion + around}.block.{one.layer}"
    return f"model.layers.{int(around)}.block_list.{one.recursion}.{one.layer}"


def names_of(config: dict[str, Any]) -> dict[int, tuple[str, str]]:
    """Return, by application, the name of its projections and that of its norms."""
    first: dict[Any, str] = {}
    names = {}
    for one in applications(config):
        own = name_of(config, one)
        shared = first.setdefault(one.key, own)
        names[one.index] = (shared, shared if config["recursive"]["ln_share"] else own)
    return names


def targets_of(config: dict[str, Any]) -> list[str]:
    """Return the names of the projections that have adapters."""
    return config.get("lora", {}).get("target_modules", [])


def sizes_of(config: dict[str, Any]) -> dict[str, int]:
    """Return the widths that projections go between."""
    size = config["hidden"] // config["heads"]
    keys = size * config["kv_heads"]
    return {"hidden": config["hidden"], "keys": keys, "inner": config["intermediate"]}


def scaling_of(config: dict[str, Any], rank: int, module: str) -> float:
    """Return the factor on the change of a module."""
    scaling = config["lora"].get("scaling", config["lora"].get("alpha", 0) / rank)
    return scaling[module] if isinstance(scaling, dict) else scaling


def rank_of(config: dict[str, Any], projection: str) -> int:
    """Return the rank of the change of a projection."""
    return min(config["lora"]["r"], *(sizes_of(config)[side] for side in PROJECTIONS[projection]))


class Model:
    """The layers with some weights."""

    def __init__(self, config: dict[str, Any], parameters: Tensors, tokens: Tensor) -> None:
        self.c, self.p, self.names = config, parameters, names_of(config)
        self.prefix = PEFT if config.get("method") == "lora" else ""
        self.embedded = parameters[f"{self.prefix}model.embed_tokens.weight"][tokens]
        self.shape = tokens.shape
        shared = config.get("kv_sharing", {})
        self.shares = bool(shared.get("enable"))
        self.updates = (
            shared.get("update_cache") and config["recursive"]["sharing"] == "middle_cycle"
        )
        self.first: dict[Any, tuple[Tensor, Tensor]] = {}

    def project(self, one: Applied, projection: str, x: Tensor) -> Tensor:
        layer, own = self.names[one.index][0], f"{name_of(self.c, one)}.{projection}"
        if f"{own}.lora_A.default.weight" not in self.p:
            return x @ self.p[f"{layer}.{projection}.weight"].T
        down, up = (self.p[f"{own}.lora_{half}.default.weight"] for half in "AB")
        change = scaling_of(self.c, len(down), own) * (x @ down.T @ up.T)
        return x @ self.p[f"{layer}.{projection}.base_layer.weight"].T + change

    def layer(
        self, one: Applied, x: Tensor, positions: Tensor, chosen: Tensor | None = None
    ) -> Tensor:
        """Return what a layer makes of x (B, K, D) at ``positions`` (B, K)."""
        norms, c = self.names[one.index][1], self.c
        read = rms(x, self.p[f"{norms}.{NORMS[0]}.weight"], c["rms_eps"])
        q, k, v = (
            heads(self.project(one, f"self_attn.{n}_proj", read), count)
            for n, count in (("q", c["heads"]), ("k", c["kv_heads"]), ("v", c["kv_heads"]))
        )
        q, k = (rotary(each, base=c["rope_theta"], positions=positions) for each in (q, k))
        if self.shares and one.recursion is not None:
            held = self.first.setdefault(one.key, (k, v))
            if self.updates and one.recursion:
                at = chosen[:, None, :, None]
                k, v = (torch.where(at, new, old) for new, old in zip((k, v), held, strict=True))
            else:
                k, v = held
        # Positions rise along a row, so the mask is that of the columns.
        x = x + self.project(one, "self_attn.o_proj", attend(q, k, v, causal=True))
        read = rms(x, self.p[f"{norms}.{NORMS[1]}.weight"], c["rms_eps"])
        gate = silu(self.project(one, "mlp.gate_proj", read))
        x = x + self.project(one, "mlp.down_proj", gate * self.project(one, "mlp.up_proj", read))
        own = f"{name_of(c, one).removesuffix('.block')}.recursion_encoding"
        return x * self.p[own] if one.is_encoded else x

    def block(self, recursion: int, x: Tensor, chosen: Tensor) -> Tensor:
        """Return what a recursion makes of x (B, T, D); chosen tokens (B, T) see one another."""
        places = [a for a in applications(self.c) if a.recursion == recursion]
        everywhere = torch.arange(self.shape[1]).expand(self.shape)
        if self.shares:
            for one in places:
                x = self.layer(one, x, everywhere, chosen)
            return x
        made = x.clone()
        for row in range(len(x)):  # rows may have chosen other numbers of tokens
            columns = chosen[row].nonzero().squeeze(1)
            if len(columns) == 0:
                continue
            part_of_row = x[row : row + 1, columns]
            for one in places:
                part_of_row = self.layer(one, part_of_row, columns.unsqueeze(0))
            made[row, columns] = part_of_row[0]
        return made

    def read(self, x: Tensor) -> Tensor:
        p, name = self.p, f"{self.prefix}lm_head.weight"
        x = rms(x, p[f"{self.prefix}model.norm.weight"], self.c["rms_eps"])
        return x @ p.get(name, p[f"{self.prefix}model.embed_tokens.weight"]).T
