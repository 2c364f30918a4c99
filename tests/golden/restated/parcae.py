"""Parcae's model with depths per row or token, from its equations."""

from __future__ import annotations

from typing import Any

import torch
from restated.layers import (
    ACTIVATIONS,
    Tensors,
    attend,
    cross_entropies,
    draws,
    gradients,
    heads,
    layer_norm,
    leaves,
    normal,
    part,
    rms,
    rotary,
    weights,
)
from torch import Tensor

GIVEN = ("param.*", "tokens", "initial_state", "steps_*")
"""Tensors of a file that are not compared: inputs."""

DEFAULTS = {
    "bias": False,
    "injection_type": "diagonal",
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "GELU",
    "norm_class_name": "LayerNorm",
    "norm_eps": 1e-5,
    "init_strategy": "scaled",
    "tie_embeddings": False,
}


def _config(layers: tuple[int, int, int], gates: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    names = ("n_layers_in_prelude", "n_layers_in_recurrent_block", "n_layers_in_coda")
    options = {
        "intermediate_size": 10,
        "mean_backprop_depth": 2,
        "mean_recurrence": 4,
        "n_embd": 12,
        "num_attention_heads": 3,
        "padded_vocab_size": 11,
        "recurrent_embedding_dimension": 12,
        "recurrent_intermediation_embedding_dimension": 10,
        "recurrent_iteration_method": "per-sequence",
        "vocab_size": 11,
    }
    options |= dict(zip(names, layers, strict=True)) | changes
    return {
        "family": "parcae",
        "precision": "float64",
        "gates": gates,
        "rope_base": options.get("rope_base", 50000),
        "options": options,
    }


VARIANTS = {
    "parcae_defaults": _config((1, 1, 2), (0, 3), intermediate_size=14),
    "parcae_token": _config(
        (1, 2, 1),
        (2, 3),
        injection_type="linear",
        logit_softcap=1.5,
        norm_class_name="RMSNorm",
        nonlin_name="ReLU2",
        qk_norm=True,
        recurrent_embedding_dimension=16,
        recurrent_num_attention_heads=4,
        recurrent_intermediation_embedding_dimension=18,
        recurrent_iteration_method="per-token",
        tie_embeddings=True,
    ),
    "parcae_batch": _config(
        (2, 1, 1),
        (1, 3),
        bias=True,
        init_strategy="takase-scaled",
        injection_type="add",
        norm_class_name="RMSNorm",
        mlp_class_name="GatedMLP",
        nonlin_name="SiLU",
        norm_eps=1e-4,
        prelude_norm=True,
        recurrent_iteration_method="per-batch",
        rope_base=700.0,
    ),
    "parcae_biased": _config(
        (1, 2, 1),
        (),
        injection_type="linear",
        bias=False,
        qk_bias=True,
        prelude_norm=True,
        num_attention_heads=2,
        init_strategy="takase",
    ),
}


def _options(config: dict[str, Any]) -> dict[str, Any]:
    options = DEFAULTS | config["options"]
    options["width"] = options["recurrent_embedding_dimension"]
    options["core_heads"] = (
        options.get("recurrent_num_attention_heads") or options["num_attention_heads"]
    )
    return options


def _layers(o: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    """Return name, width, hidden width and heads of each layer."""
    outer = (o["n_embd"], o["intermediate_size"], o["num_attention_heads"])
    core = (o["width"], o["recurrent_intermediation_embedding_dimension"], o["core_heads"])
    made = []
    for name, theirs, sizes in (
        ("prelude", "prelude", outer),
        ("core_block", "recurrent_block", core),
        ("coda", "coda", outer),
    ):
        made += [(f"{name}.{i}", *sizes) for i in range(o[f"n_layers_in_{theirs}"])]
    return made


def inputs(config: dict[str, Any]) -> Tensors:
    """Return weights, tokens (B, T + 1), the first state, and the steps of rows or tokens."""
    o, g = _options(config), draws(config)
    width, core = o["n_embd"], o["width"]
    parts = ("weight", "bias") if o["bias"] else ("weight",)
    norm_parts = ("weight", "bias") if o["norm_class_name"] == "LayerNorm" else ("weight",)
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (o["vocab_size"], width)}

    def linear(name: str, rows: int, columns: int) -> None:
        name = f"transformer.{name}"
        shapes.update({f"{name}.{p}": (rows, columns) if p == "weight" else (rows,) for p in parts})

    def norm(name: str, size: int) -> None:
        shapes.update({f"transformer.{name}.{p}": (size,) for p in norm_parts})

    linear("C", width, core)
    norm("ln_f", width)
    if o.get("prelude_norm"):
        norm("ln_prelude", width)
    if o["injection_type"] == "linear":
        linear("adapter.adapter", core, core + width)
    elif o["injection_type"] == "diagonal":
        shapes |= {f"transformer.adapter.{name}": (core,) for name in ("A_log", "dt_bias")}
        shapes["transformer.adapter.B"] = (core, width)
    layers = _layers(o)
    for name, size, inner, count in layers:
        norm(f"{name}.norm_1", size)
        norm(f"{name}.norm_2", size)
        for which in ("c_q", "c_k", "c_v", "c_proj"):
            linear(f"{name}.attn.{which}", size, size)
        if o.get("qk_bias"):
            shapes[f"transformer.{name}.attn.qk_bias"] = (2, 1, count, size // count)
        linear(f"{name}.mlp.fc", inner * (2 if o["mlp_class_name"] == "GatedMLP" else 1), size)
        linear(f"{name}.mlp.proj", size, inner)
    for slot, (name, _, _, count) in enumerate(layers):
        if slot in config["gates"]:
            shapes[f"transformer.{name}.attn.ve_gate.weight"] = (count, 8)
        if slot % 2 == (len(layers) - 1) % 2:
            shapes[f"value_embeds.{slot}.weight"] = (o["vocab_size"], width)
    given = {f"param.{n}": t for n, t in weights(g, shapes).items()}
    if not o["tie_embeddings"]:
        given["param.lm_head.weight"] = normal(g, o["vocab_size"], width, std=0.4)
    given["tokens"] = torch.randint(o["vocab_size"], (3, 6), generator=g)
    given["initial_state"] = normal(g, 3, 5, core, std=0.7)
    kinds = {"per-batch": (1,), "per-sequence": (3,), "per-token": (3, 5)}
    shape = kinds[o["recurrent_iteration_method"]]
    for name, least, most in (("steps_without_gradient", 0, 3), ("steps_with_gradient", 1, 2)):
        given[name] = torch.randint(least, most + 1, shape, generator=g)
    return given


class _Model:
    """The model with some weights."""

    def __init__(self, config: dict[str, Any], parameters: Tensors, tokens: Tensor) -> None:
        self.o, self.all, self.tokens = _options(config), parameters, tokens
        self.p = part(parameters, "transformer")
        self.base = float(config["rope_base"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.p[f"{name}.weight"].T + self.p.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, epsilon = self.p[f"{name}.weight"], self.o["norm_eps"]
        if self.o["norm_class_name"] == "LayerNorm":
            return layer_norm(x, weight, self.p[f"{name}.bias"], epsilon)
        return rms(x, weight, epsilon)

    def attention(self, name: str, x: Tensor, slot: int, count: int) -> Tensor:
        q, k, v = (heads(self.linear(f"{name}.attn.c_{one}", x), count) for one in "qkv")
        gate = self.p.get(f"{name}.attn.ve_gate.weight")
        table = self.all.get(f"value_embeds.{slot}.weight")
        if gate is not None and table is not None:
            share = 2.0 * (x[..., : gate.shape[1]] @ gate.T).sigmoid()  # (B, T, H)
            v = v + share.transpose(1, 2).unsqueeze(-1) * heads(table[self.tokens], count)
        if self.o.get("qk_bias"):
            biases = self.p[f"{name}.attn.qk_bias"]  # (2, 1, H, d)
            q, k = (one + b.transpose(0, 1) for one, b in zip((q, k), biases, strict=True))
        q, k = (rotary(one, base=self.base, pairs=True) for one in (q, k))
        if self.o.get("qk_norm"):
            q, k = (rms(one, 1.0, torch.finfo(one.dtype).eps) for one in (q, k))
        return self.linear(f"{name}.attn.c_proj", attend(q, k, v, causal=True))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        act, x = ACTIVATIONS[self.o["nonlin_name"]], self.linear(f"{name}.mlp.fc", x)
        if self.o["mlp_class_name"] == "GatedMLP":
            first, second = x.chunk(2, dim=-1)
            return self.linear(f"{name}.mlp.proj", act(first) * second)
        return self.linear(f"{name}.mlp.proj", act(x))

    def through(self, which: str, x: Tensor) -> Tensor:
        for slot, (name, _, _, count) in enumerate(_layers(self.o)):
            if name.startswith(which):
                x = x + self.attention(name, self.norm(f"{name}.norm_1", x), slot, count)
                x = x + self.mlp(name, self.norm(f"{name}.norm_2", x))
        return x

    def inject(self, h: Tensor, e: Tensor) -> Tensor:
        kind = self.o["injection_type"]
        if kind == "add":
            return h + e
        if kind == "linear":
            return self.linear("adapter.adapter", torch.cat((h, e), dim=-1))
        dt = (1.0 + self.p["adapter.dt_bias"].exp()).log()
        decay = (-dt * self.p["adapter.A_log"].exp()).exp()
        return h * decay + dt * (e @ self.p["adapter.B"].T)


def numbers(config: dict[str, Any], given: Tensors) -> Tensors:
    """Return what a pass gives, and the gradients of its loss."""
    parameters, tokens = leaves(part(given, "param")), given["tokens"][:, :-1]
    model = _Model(config, parameters, tokens)
    o, width = model.o, model.o["n_embd"]
    e = model.p["wte.weight"][tokens] * (width**0.5 if "takase" in o["init_strategy"] else 1.0)
    e = model.through("prelude", e)
    if o.get("prelude_norm"):
        e = model.norm("ln_prelude", e)
    h, out, count = given["initial_state"], {"prelude": e}, 0
    for which, learns in (("steps_without_gradient", False), ("steps_with_gradient", True)):
        steps = given[which]
        for step in range(int(steps.max())):
            with torch.set_grad_enabled(learns):
                moved = model.through("core_block", model.inject(h, e))
                moves = (step < steps).view(*steps.shape, *[1] * (3 - steps.dim()))
                h = torch.where(moves, moved, h)
            count += 1
            out[f"core_out.{count}"] = moved
    out["final_state"] = h
    read = model.norm("ln_f", model.through("coda", model.linear("C", h)))
    logits = (
        read @ (model.p["wte.weight"] if o["tie_embeddings"] else parameters["lm_head.weight"]).T
    )
    if o["init_strategy"] == "takase-scaled":
        logits = logits * (2.0 / (5.0 * width)) ** 0.5
    if o.get("logit_softcap"):
        logits = o["logit_softcap"] * (logits / o["logit_softcap"]).tanh()
    out["logits"] = logits
    out["loss"] = cross_entropies(logits, given["tokens"][:, 1:]).mean()
    found = gradients(out["loss"], parameters, prefix="grad")
    return {name: tensor.detach() for name, tensor in out.items()} | found


def metadata(config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Return the metadata of a file with these tensors."""
    names = part(tensors, "param")
    return config | {"params_without_gradient": [n for n in names if f"grad.{n}" not in tensors]}
