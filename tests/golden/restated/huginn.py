"""Huginn's released model and the model of its training code, from their equations."""

from __future__ import annotations

import math
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
    silu,
    weights,
)
from torch import Tensor

GIVEN = (
    "param.*",
    "tokens",
    "labels",
    "initial_state",
    "buffer.*",
    "exit.*",
    "cache.*",
    "greedy.*",
)
"""Tensors of a file that are not compared: inputs, and what is tested of them alone."""

RELEASED = {
    "bias": False,
    "block_class_name": "SandwichBlock",
    "init_strategy": "takase",
    "injection_type": "linear",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "norm_class_name": "RMSNorm_llama",
    "norm_eps": 1e-6,
    "qk_bias": True,
    "tie_embeddings": True,
}
TRAINED = {
    "bias": False,
    "block_class_name": "TransformerPreNormBlock",
    "init_strategy": "scaled",
    "injection_type": "add",
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "GELU",
    "norm_class_name": "LayerNorm",
    "norm_eps": 1e-5,
    "qk_bias": False,
    "tie_embeddings": False,
}


def _sizes(steps: tuple[int, int], layers: tuple[int, int, int]) -> dict[str, Any]:
    names = ("n_layers_in_prelude", "n_layers_in_recurrent_block", "n_layers_in_coda")
    sizes = {"n_embd": 12, "vocab_size": 11, "mean_backprop_depth": 2}
    return sizes | {"mean_recurrence": sum(steps)} | dict(zip(names, layers, strict=True))


def _raven(steps: tuple[int, int], layers: tuple[int, int, int], **changes: Any) -> dict[str, Any]:
    options = _sizes(steps, layers) | {"intermediate_size": 10, "n_heads": 3} | changes
    options["n_layers"] = sum(layers)
    return _config("raven_modeling_minimal.RavenForCausalLM", steps, options)


def _train(steps: tuple[int, int], layers: tuple[int, int, int], **changes: Any) -> dict[str, Any]:
    own = {
        "architecture_class_name": "RecurrentGPT",
        "num_attention_heads": 3,
        "padded_vocab_size": 11,
    }
    return _config("model_dynamic.RecurrentGPT", steps, _sizes(steps, layers) | own | changes)


def _config(code: str, steps: tuple[int, int], options: dict[str, Any]) -> dict[str, Any]:
    return {
        "code": code,
        "family": "huginn",
        "precision": "float64",
        "num_steps_no_grad": steps[0],
        "num_steps_with_grad": steps[1],
        "options": options,
    }


POST = "TransformerPostNormBlock"
VARIANTS = {
    "raven_untied": _raven((1, 3), (1, 3, 2), tie_embeddings=False, norm_eps=1e-4),
    "raven_no_bias": _raven((0, 2), (2, 1, 1), qk_bias=False, n_heads=1, rope_base=1000.0),
    "raven_adapter_bias": _raven((1, 1), (1, 2, 1), bias=True, tie_embeddings=False),
    "train_no_rotation": _train(
        (1, 2),
        (1, 2, 1),
        norm_class_name="GemmalikeRMS",
        intermediate_size=7,
        bias=True,
        injection_type="linear",
        init_strategy="llama-by-dim-ls",
        rope_settings={"use_rope": False},
    ),
    "train_defaults": _train((1, 2), (1, 1, 1), intermediate_size=9, qk_norm=False),
    "train_gate": _train(
        (3, 1),
        (1, 2, 1),
        block_class_name=POST,
        norm_class_name="RMSNorm",
        mlp_class_name="GatedMLP",
        nonlin_name="SiLU",
        intermediate_size=10,
        injection_type="gate",
        init_strategy="takase-scaled",
        state_init="embed",
        tie_embeddings=True,
        elbayad_weighing=True,
        elbayad_exponent=0.5,
    ),
    "train_linear_grouped": _train(
        (2, 2),
        (1, 2, 2),
        block_class_name="SandwichBlockSwin",
        norm_class_name="RMSNorm_llama",
        injection_type="linear",
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=14,
        qk_norm=True,
        bias=True,
        mean_recurrence=7,
        elbayad_weighing=True,
    ),
    "train_ffn": _train(
        (1, 2),
        (1, 1, 2),
        block_class_name=POST,
        injection_type="ffn",
        intermediate_size=8,
        bias=True,
        nonlin_name="ReLU",
        state_init="unit",
    ),
    "train_ffn_gated": _train(
        (2, 1),
        (1, 2, 1),
        block_class_name="SandwichBlock",
        norm_class_name="RMSNorm_llama",
        mlp_class_name="GatedMLP",
        nonlin_name="SiLU",
        injection_type="ffn",
        intermediate_size=10,
        embed_step=True,
        init_strategy="takase",
        norm_eps=1e-6,
        mcleish_throttle=True,
        elbayad_weighing=True,
        elbayad_exponent=1.5,
        state_init="zero",
    ),
}


def _options(config: dict[str, Any]) -> dict[str, Any]:
    is_released = config["code"].startswith("raven")
    options = (RELEASED if is_released else TRAINED) | config["options"]
    options["heads"] = options["n_heads" if is_released else "num_attention_heads"]
    options["key_heads"] = options.get("num_key_value_heads") or options["heads"]
    # The released layers have no biases; its adapter may have one.
    options["layer_bias"] = options["bias"] and not is_released
    return options


def _parts(options: dict[str, Any]) -> dict[str, int]:
    names = {"prelude": "prelude", "core_block": "recurrent_block", "coda": "coda"}
    return {ours: options[f"n_layers_in_{theirs}"] for ours, theirs in names.items()}


def inputs(config: dict[str, Any]) -> Tensors:
    """Return weights, tokens (B, T + 1) and the state that the first recurrence reads."""
    o, g = _options(config), draws(config)
    width, inner = o["n_embd"], o["intermediate_size"]
    parts = ("weight", "bias") if o["layer_bias"] else ("weight",)
    norm_parts = ("weight", "bias") if o["norm_class_name"] == "LayerNorm" else ("weight",)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (o["vocab_size"], width)}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes.update({f"{name}.{p}": (rows, columns) if p == "weight" else (rows,) for p in parts})

    def mlp(name: str, columns: int) -> None:
        linear(f"{name}.fc", inner * (2 if o["mlp_class_name"] == "GatedMLP" else 1), columns)
        linear(f"{name}.proj", width, inner)

    shapes |= {f"ln_f.{p}": (width,) for p in norm_parts}
    if o["injection_type"] == "linear":
        linear("adapter", width, 2 * width)
        if o["bias"]:
            shapes["adapter.bias"] = (width,)
    elif o["injection_type"] == "ffn":
        mlp("adapter", 2 * width)
    rows = width + 2 * width // o["heads"] * o["key_heads"]
    for layer in (f"{name}.{i}" for name, count in _parts(o).items() for i in range(count)):
        for number in range(1, 5 if "Sandwich" in o["block_class_name"] else 3):
            shapes |= {f"{layer}.norm_{number}.{p}": (width,) for p in norm_parts}
        linear(f"{layer}.attn.Wqkv", rows, width)
        linear(f"{layer}.attn.proj", width, width)
        if o["qk_bias"]:
            shapes[f"{layer}.attn.qk_bias"] = (2, 1, o["heads"], width // o["heads"])
        mlp(f"{layer}.mlp", width)
    given = {f"param.transformer.{n}": t for n, t in weights(g, shapes).items()}
    if not o["tie_embeddings"]:
        given["param.lm_head.weight"] = normal(g, o["vocab_size"], width, std=0.4)
    if o.get("embed_step"):
        for name, columns in (("0", 256), ("2", width)):
            given[f"param.step_embedding.mlp.{name}.weight"] = normal(g, width, columns, std=0.1)
            given[f"param.step_embedding.mlp.{name}.bias"] = normal(g, width, std=0.2)
    given["tokens"] = torch.randint(o["vocab_size"], (3, 6), generator=g)
    given["labels"] = given["tokens"][:, 1:].clone()
    if config["code"].startswith("raven"):
        given["labels"][0, 1:3] = -100
    is_zero = o.get("state_init") == "zero"
    given["initial_state"] = normal(g, 3, 5, width, std=0.0 if is_zero else 0.7)
    return given


class _Model:
    """The model with some weights; states are (B, T, D)."""

    def __init__(self, config: dict[str, Any], parameters: Tensors) -> None:
        self.o, self.all = _options(config), parameters
        self.p = part(parameters, "transformer")

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.p[f"{name}.weight"].T + self.p.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, epsilon = self.p[f"{name}.weight"], self.o["norm_eps"]
        if self.o["norm_class_name"] == "LayerNorm":
            return layer_norm(x, weight, self.p[f"{name}.bias"], epsilon)
        return rms(x, weight, epsilon)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        x, act = self.linear(f"{name}.fc", x), ACTIVATIONS[self.o["nonlin_name"]]
        if self.o["mlp_class_name"] == "GatedMLP":
            first, second = x.chunk(2, dim=-1)
            return self.linear(f"{name}.proj", act(first) * second)
        return self.linear(f"{name}.proj", act(x))

    def attention(self, name: str, x: Tensor) -> Tensor:
        size = x.shape[-1] // self.o["heads"]
        rows = [x.shape[-1], *[size * self.o["key_heads"]] * 2]
        q, k, v = self.linear(f"{name}.Wqkv", x).split(rows, dim=-1)
        q, k, v = (heads(one, one.shape[-1] // size) for one in (q, k, v))
        if self.o["qk_bias"]:
            q, k = (
                one + bias.transpose(0, 1)
                for one, bias in zip((q, k), self.p[f"{name}.qk_bias"], strict=True)
            )
        base = self.o.get("rope_base", 50000.0)
        if self.o.get("rope_settings", {}).get("use_rope", True):
            q, k = rotary(q, base=base, pairs=True), rotary(k, base=base, pairs=True)
        if self.o.get("qk_norm"):
            q, k = (rms(one, 1.0, torch.finfo(one.dtype).eps) for one in (q, k))
        return self.linear(f"{name}.proj", attend(q, k, v, causal=True))

    def block(self, name: str, x: Tensor) -> Tensor:
        def att(y: Tensor) -> Tensor:
            return self.attention(f"{name}.attn", y)

        def mlp(y: Tensor) -> Tensor:
            return self.mlp(f"{name}.mlp", y)

        def norm(number: int, y: Tensor) -> Tensor:
            return self.norm(f"{name}.norm_{number}", y)

        kind = self.o["block_class_name"]
        if kind == "SandwichBlock":
            x = norm(2, x + att(norm(1, x)))
            return norm(4, x + mlp(norm(3, x)))
        if kind == "SandwichBlockSwin":
            x = x + norm(2, att(norm(1, x)))
            return x + norm(4, mlp(norm(3, x)))
        if kind == "TransformerPostNormBlock":
            x = norm(1, x + att(x))
            return norm(2, x + mlp(x))
        x = x + att(norm(1, x))
        return x + mlp(norm(2, x))

    def through(self, which: str, x: Tensor) -> Tensor:
        for number in range(_parts(self.o)[which]):
            x = self.block(f"{which}.{number}", x)
        return x

    def inject(self, h: Tensor, e: Tensor) -> Tensor:
        kind, both = self.o["injection_type"], torch.cat((h, e), dim=-1)
        if kind == "linear":
            return self.linear("adapter", both)
        if kind == "ffn":
            return self.mlp("adapter", both)
        return h + e if kind == "add" else h * e

    def step_vector(self, step: int) -> Tensor | float:
        if not self.o.get("embed_step"):
            return 0.0
        rates = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        angles = step * rates.double()
        x, p = torch.cat((angles.cos(), angles.sin())), part(self.all, "step_embedding.mlp")
        x = silu(p["0.weight"] @ x + p["0.bias"])
        return p["2.weight"] @ x + p["2.bias"]

    def head(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent = self.norm("ln_f", h)
        read = self.norm("ln_f", self.through("coda", latent))
        table = self.p["wte.weight"] if self.o["tie_embeddings"] else self.all["lm_head.weight"]
        factors = {"takase-scaled": (2.0 / 5.0) ** 0.5, "llama-by-dim-ls": 1.0}
        factor = factors.get(self.o["init_strategy"])
        scale = 1.0 if factor is None else factor / h.shape[-1] ** 0.5
        return latent, read, read @ table.T * scale


def _pass(config: dict[str, Any], given: Tensors, parameters: Tensors, through: int) -> Tensors:
    """Return what a pass gives, with gradients through its last recurrences."""
    model = _Model(config, parameters)
    tokens = given["tokens"][:, :-1]
    scale = model.o["n_embd"] ** 0.5 if "takase" in model.o["init_strategy"] else 1.0
    e = model.through("prelude", model.p["wte.weight"][tokens] * scale)
    total = config["num_steps_no_grad"] + config["num_steps_with_grad"]
    h, out = given["initial_state"], {"prelude": e}
    for step in range(total):
        with torch.set_grad_enabled(step >= total - through):
            h = model.through("core_block", model.inject(h, e) + model.step_vector(step))
        out[f"state.{step + 1}"] = h
        out[f"step_logits.{step + 1}"] = model.head(h)[2]
    out["latent"], out["head_input"], out["logits"] = model.head(h)
    labels = given.get("labels", given["tokens"][:, 1:])
    out["log_ppl"] = cross_entropies(out["logits"], labels).sum() / (labels >= 0).sum()
    return out


def _weight(config: dict[str, Any], through: int) -> float:
    o, factor = _options(config), 1.0
    total = config["num_steps_no_grad"] + config["num_steps_with_grad"]
    if o.get("mcleish_throttle"):
        factor /= through
    if o.get("elbayad_weighing"):
        middle = o["mean_recurrence"] // 2 + 1
        factor *= ((total + 1) / middle) ** o.get("elbayad_exponent", 1.0)
    return factor


def numbers(config: dict[str, Any], given: Tensors) -> Tensors:
    """Return what a pass gives, and its gradients through the last, all or no recurrences."""
    is_released = config["code"].startswith("raven")
    last = config["num_steps_with_grad"]
    total = config["num_steps_no_grad"] + last
    numbers: Tensors = {}
    for prefix, through in (("grad", last), ("grad_full", total), ("grad_none", 0)):
        if prefix == "grad_none" and not is_released:
            continue
        parameters = leaves(part(given, "param"))
        out = _pass(config, given, parameters, through)
        loss = out["log_ppl"] * (1.0 if is_released else _weight(config, through))
        numbers |= gradients(loss, parameters, prefix=prefix)
        if prefix == "grad":
            numbers |= {name: t.detach() for name, t in out.items()} | {"loss": loss.detach()}
        elif not is_released:
            numbers["loss_full"] = loss.detach()
    return numbers


def metadata(config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Return the metadata of a file with these tensors."""
    return config
