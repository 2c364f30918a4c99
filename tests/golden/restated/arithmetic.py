"""The recurrent models of arithmetic, with their progressive loss, from their equations."""

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

_DRAWN = ("pass.*.n", "pass.*.k", "pass.*.initial_state", "pass.*.abacus_offset")
GIVEN = ("param.*", "tokens", "greedy.prompt", "greedy.steps", *_DRAWN)
"""Tensors of a file that are not compared: inputs."""

EQUALS = 17


def _config(
    *, attention: dict[str, Any] | None = None, embedding: dict[str, Any] | None = None, **arch: Any
) -> dict[str, Any]:
    made = {
        "alpha": 0.4,
        "decoder_bias": False,
        "final_norm": True,
        "forward_only_model_with_skip": False,
        "head": "ffn",
        "hidden_size": 12,
        "initial_hidden_randomized": True,
        "input_injection_type": "add",
        "intermed_size": 10,
        "layers_in_recurrent_block": 1,
        "loss_reduction": "mean",
        "mask_before_equals": False,
        "max_backprop": None,
        "maximal_recurrence": 4,
        "maximal_recurrence_in_eval": 3,
        "nonlin": "GELUglu",
        "norm": "LayerNorm",
        "norm_eps": 1e-12,
        "norm_scheme": "post",
        "state_init": "embed",
        "throttle": False,
        "tie_weights": False,
        "use_bias": False,
    } | arch
    made["attention"] = {
        "bias_in_proj": False,
        "max_length": 0,
        "num_attention_heads": 3,
        "qkv_bias": False,
        "rotary_embedding": False,
        "type": "self-attention",
    } | (attention or {})
    made["embedding"] = {
        "embedding_dim": 12,
        "max_abacus_len": 5,
        "max_seq_length": 20,
        "normalization": True,
        "pos_embedding": "learned",
        "vocab_size": 18,
    } | (embedding or {})
    return {"family": "arithmetic", "arch": made, "equals_token": EQUALS}


VARIANTS = {
    "linear_sandwich": _config(
        input_injection_type="linear",
        norm_scheme="sandwich",
        norm="RMSNorm",
        norm_eps=1e-6,
        head="linear",
        use_bias=True,
        layers_in_recurrent_block=2,
        attention={"rotary_embedding": True, "qkv_bias": True, "num_attention_heads": 2},
        embedding={"pos_embedding": None},
        state_init="normal",
        throttle=True,
    ),
    "ffn_deepnorm": _config(
        input_injection_type="ffn",
        norm_scheme="deepnorm",
        nonlin="GELU",
        decoder_bias=True,
        use_bias=True,
        attention={"type": "pytorch", "bias_in_proj": True},
        embedding={"normalization": False},
        initial_hidden_randomized=False,
        maximal_recurrence=5,
        max_backprop=3,
        loss_reduction="none",
    ),
    "ffn_gated_pre": _config(
        input_injection_type="ffn",
        norm_scheme="pre",
        nonlin="SiLUglu",
        head="identity",
        attention={"bias_in_proj": True, "rotary_embedding": "fire"},
        embedding={"pos_embedding": "abacus"},
        layers_in_recurrent_block=2,
        mask_before_equals=True,
        state_init="unit",
        alpha=0,
    ),
    "tied_narrow": _config(
        tie_weights=True,
        attention={"type": "pytorch-seqfirst"},
        embedding={"embedding_dim": 8, "pos_embedding": "none"},
        state_init="zero",
        norm="RMSNorm",
        alpha=1,
    ),
    "untied_narrow_none": _config(
        input_injection_type="none",
        final_norm=False,
        nonlin="ReLU",
        attention={"rotary_embedding": "fire"},
        embedding={"embedding_dim": 16},
        initial_hidden_randomized=False,
    ),
    "skip_linear": _config(
        forward_only_model_with_skip=True,
        input_injection_type="linear",
        layers_in_recurrent_block=3,
        maximal_recurrence=1,
        maximal_recurrence_in_eval=1,
        attention={"rotary_embedding": "fire", "num_attention_heads": 4},
        embedding={"pos_embedding": "abacus"},
        alpha=1.0,
    ),
    "skip_none_sinusoidal": _config(
        forward_only_model_with_skip=True,
        input_injection_type="none",
        initial_hidden_randomized=False,
        layers_in_recurrent_block=2,
        embedding={"embedding_dim": 14, "pos_embedding": "sinusoidal"},
    ),
    "skip_ffn": _config(
        forward_only_model_with_skip=True,
        input_injection_type="ffn",
        layers_in_recurrent_block=2,
        norm_scheme="pre",
        maximal_recurrence=2,
        initial_hidden_randomized=False,
    ),
}


def _blocks(arch: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the name of each block, and those of its layers."""
    count = range(arch["layers_in_recurrent_block"])
    if arch["forward_only_model_with_skip"]:
        names = [f"encoder.recurrent_blocks.{number}" for number in count]
        return [(name, [f"{name}.layers.0"]) for name in names]
    name = "encoder.recurrent_block"
    return [(name, [f"{name}.layers.{number}" for number in count])]


def _attention_name(arch: dict[str, Any], layer: str) -> str:
    return (
        f"{layer}.attn" if arch["attention"]["type"] == "self-attention" else f"{layer}.attn.attn"
    )


def inputs(config: dict[str, Any]) -> Tensors:
    """Return weights, tokens, and what every pass drew."""
    arch, g = config["arch"], draws(config)
    attention, embedding = arch["attention"], arch["embedding"]
    width, entry, vocabulary = (
        arch["hidden_size"],
        embedding["embedding_dim"],
        embedding["vocab_size"],
    )
    inner = arch["intermed_size"]
    gated = inner // 2 if arch["nonlin"].endswith("glu") else inner
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def norm(name: str, size: int) -> None:
        if arch["norm"] == "RMSNorm":
            shapes[f"{name}.learnable_scale"] = (size,)
        else:
            shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def ffn(name: str, columns: int) -> None:
        linear(f"{name}.dense_in", inner, columns, arch["use_bias"])
        linear(f"{name}.dense_out", width, gated, arch["use_bias"])

    linear("encoder.embedding.word_embedding", vocabulary, entry, bias=False)
    if embedding["pos_embedding"] in ("learned", "abacus"):
        name = "encoder.embedding.pos_embedding.embedding"
        linear(name, embedding["max_seq_length"], entry, bias=False)
    if embedding["normalization"]:
        norm("encoder.embedding.norm", entry)
    if entry != width:
        linear("encoder.adapter", width, entry, bias=False)
    if arch["head"] == "ffn":
        ffn("encoder.head", width)
    elif arch["head"] == "linear":
        linear("encoder.head", width, width, arch["use_bias"])
    if arch["final_norm"]:
        norm("encoder.final_norm", width)
    if not arch["tie_weights"]:
        linear("adapter", width, entry, bias=False)
        linear("decoder", vocabulary, entry, bias=False)
    if arch["decoder_bias"]:
        shapes["decoder.bias"] = (vocabulary,)
    is_own = attention["type"] == "self-attention"
    for block, layers in _blocks(arch):
        if arch["input_injection_type"] == "linear":
            linear(f"{block}.adapter", width, 2 * width, bias=False)
        elif arch["input_injection_type"] == "ffn":
            ffn(f"{block}.ffn", 2 * width)
        for layer in layers:
            name = _attention_name(arch, layer)
            shapes[f"{name}.in_proj_weight"] = (3 * width, width)
            if attention["qkv_bias"] if is_own else attention["bias_in_proj"]:
                shapes[f"{name}.in_proj_bias"] = (3 * width,)
            linear(f"{name}.out_proj", width, width, attention["bias_in_proj"])
            if attention["rotary_embedding"] == "fire":
                shapes |= {
                    f"{name}.rotary_emb.{one}": (1,) for one in ("c", "init_L", "L_multiplier")
                }
                linear(f"{name}.rotary_emb.mlp.0", 32, 1, bias=True)
                linear(f"{name}.rotary_emb.mlp.2", attention["num_attention_heads"], 32, bias=True)
            ffn(f"{layer}.ffn", width)
            for residual in (f"{layer}.residual1", f"{layer}.residual2"):
                norm(f"{residual}.norm", width)
                if arch["norm_scheme"] == "sandwich":
                    norm(f"{residual}.norm2", width)
    given = {f"param.{n}": t for n, t in weights(g, shapes).items()}
    for number, name in enumerate(n for n in given if n.endswith("init_L")):
        given[name] = torch.tensor([(-1.0) ** number * (2.5 + number)]).double()
    tokens = torch.randint(4, 14, (3, 10), generator=g)
    tokens[:, 2], tokens[:, 5], tokens[0, 9] = 15, EQUALS, 0
    given["tokens"] = tokens
    most, backprop = arch["maximal_recurrence"], _backprop(arch)
    passes = [(most - backprop, backprop)] if arch["alpha"] != 1 else []
    if arch["alpha"] != 0:
        n = int(torch.randint(most, (1,), generator=g))
        passes.append((n, int(torch.randint(1, 1 + min(most - n, backprop), (1,), generator=g))))
    for number, (n, k) in enumerate(passes):
        given |= {f"pass.{number}.n": torch.tensor([n]), f"pass.{number}.k": torch.tensor([k])}
        if embedding["pos_embedding"] == "abacus":
            given[f"pass.{number}.abacus_offset"] = torch.tensor([2 + number])
        if arch["initial_hidden_randomized"]:
            std = 0.0 if arch["state_init"] == "zero" else 0.5
            given[f"pass.{number}.initial_state"] = normal(g, 3, 10, width, std=std)
    given["greedy.prompt"] = tokens[:, :6]
    given["greedy.steps"] = torch.tensor([arch["maximal_recurrence_in_eval"]])
    return given


def _backprop(arch: dict[str, Any]) -> int:
    given, half = arch["max_backprop"], arch["maximal_recurrence"] // 2
    return max(half if given is None else given, 1)


def digit_numbers(tokens: Tensor, offset: int) -> Tensor:
    """Number each maximal run of digits 1, 2, …, and add the offset to what is above 0."""
    rows = []
    for row in tokens.tolist():
        numbers, run = [], 0
        for token in row:
            run = run + 1 if 4 <= token <= 13 else 0
            numbers.append(run + offset if run else 0)
        rows.append(numbers)
    return torch.tensor(rows)


class _Model:
    """The model with some weights."""

    def __init__(self, config: dict[str, Any], parameters: Tensors) -> None:
        self.arch, self.p = config["arch"], parameters

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.p[f"{name}.weight"].T + self.p.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Tensor) -> Tensor:
        if self.arch["norm"] == "RMSNorm":
            return rms(x, self.p[f"{name}.learnable_scale"], self.arch["norm_eps"])
        return layer_norm(
            x, self.p[f"{name}.weight"], self.p[f"{name}.bias"], self.arch["norm_eps"]
        )

    def ffn(self, name: str, x: Tensor) -> Tensor:
        x, nonlin = self.linear(f"{name}.dense_in", x), self.arch["nonlin"]
        act = ACTIVATIONS[nonlin.removesuffix("glu")]
        if nonlin.endswith("glu"):
            first, second = x.chunk(2, dim=-1)
            return self.linear(f"{name}.dense_out", first * act(second))
        return self.linear(f"{name}.dense_out", act(x))

    def fire(self, name: str, length: int) -> Tensor:
        c, m, fixed = (self.p[f"{name}.{one}"] for one in ("c", "L_multiplier", "init_L"))
        i = torch.arange(length).double()
        distance = ((c * (i[:, None] - i[None, :])).abs() + 1).log()
        reach = torch.maximum(i, (m * fixed).abs().expand(length))
        relative = distance / (((c * reach).abs() + 1).log() + 1e-6)[:, None]
        hidden = self.linear(f"{name}.mlp.0", relative.unsqueeze(-1)).relu()
        return self.linear(f"{name}.mlp.2", hidden).permute(2, 0, 1)

    def attention(self, layer: str, x: Tensor) -> Tensor:
        options, name = self.arch["attention"], _attention_name(self.arch, layer)
        count = options["num_attention_heads"]
        joint = x @ self.p[f"{name}.in_proj_weight"].T + self.p.get(f"{name}.in_proj_bias", 0.0)
        bias: Tensor | float = 0.0
        if options["type"] != "self-attention":
            q, k, v = (heads(one, count) for one in joint.chunk(3, dim=-1))
        else:
            q, k, v = heads(joint, count).chunk(3, dim=-1)
            if options["rotary_embedding"] == "fire":
                bias = self.fire(f"{name}.rotary_emb", x.shape[1])
            elif options["rotary_embedding"]:
                q, k = rotary(q, base=10000.0), rotary(k, base=10000.0)
        return self.linear(f"{name}.out_proj", attend(q, k, v, causal=True, bias=bias))

    def residual(self, name: str, x: Tensor, f: Any) -> Tensor:
        scheme = self.arch["norm_scheme"]
        if scheme == "pre":
            return x + f(self.norm(f"{name}.norm", x))
        if scheme == "sandwich":
            return self.norm(f"{name}.norm2", x + f(self.norm(f"{name}.norm", x)))
        depth = self.arch["layers_in_recurrent_block"] * self.arch["maximal_recurrence"]
        alpha = (2.0 * depth) ** 0.25 if scheme == "deepnorm" else 1.0
        return self.norm(f"{name}.norm", alpha * x + f(x))

    def repeat(self, h: Tensor, e: Tensor) -> Tensor:
        for block, layers in _blocks(self.arch):
            kind, both = self.arch["input_injection_type"], torch.cat((h, e), dim=-1)
            if kind == "add":
                h = h + e
            elif kind != "none":
                h = (
                    self.linear(f"{block}.adapter", both)
                    if kind == "linear"
                    else self.ffn(f"{block}.ffn", both)
                )
            for layer in layers:
                h = self.residual(
                    f"{layer}.residual1", h, lambda x, at=layer: self.attention(at, x)
                )
                h = self.residual(
                    f"{layer}.residual2", h, lambda x, at=layer: self.ffn(f"{at}.ffn", x)
                )
        return h

    def embed(self, tokens: Tensor, offset: int) -> Tensor:
        e = self.p["encoder.embedding.word_embedding.weight"][tokens]
        table = self.p.get("encoder.embedding.pos_embedding.embedding.weight")
        if self.arch["embedding"]["pos_embedding"] == "abacus":
            e = e + table[digit_numbers(tokens, offset)]
        elif table is not None:
            e = e + table[: tokens.shape[1]]
        elif self.arch["embedding"]["pos_embedding"] == "sinusoidal":
            width = torch.arange(0, e.shape[-1], 2)
            angles = torch.arange(tokens.shape[1]).outer(10000.0 ** (-width.double() / e.shape[-1]))
            e = e + torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        if self.arch["embedding"]["normalization"]:
            e = self.norm("encoder.embedding.norm", e)
        return e @ self.p["encoder.adapter.weight"].T if "encoder.adapter.weight" in self.p else e

    def read(self, h: Tensor) -> Tensor:
        if self.arch["head"] != "identity":
            h = (
                self.ffn("encoder.head", h)
                if self.arch["head"] == "ffn"
                else self.linear("encoder.head", h)
            )
        h = self.norm("encoder.final_norm", h) if self.arch["final_norm"] else h
        is_tied, p = self.arch["tie_weights"], self.p
        out = h @ p["encoder.adapter.weight" if is_tied else "adapter.weight"]
        table = p["encoder.embedding.word_embedding.weight" if is_tied else "decoder.weight"]
        return out @ table.T + p.get("decoder.bias", 0.0)

    def run(
        self, tokens: Tensor, n: int, k: int, start: Tensor | None, offset: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        e = self.embed(tokens, offset)
        if start is None:
            start = torch.zeros_like(e) if self.arch["initial_hidden_randomized"] else e
        h, states = start, []
        for step in range(n + k):
            with torch.set_grad_enabled(step >= n and torch.is_grad_enabled()):
                h = self.repeat(h, e)
            states.append(h)
        return self.read(h), states


def _loss(config: dict[str, Any], logits: Tensor, tokens: Tensor) -> Tensor:
    targets = tokens[:, 1:].clone()
    if config["arch"]["mask_before_equals"]:
        for row, places in zip(targets, (tokens == EQUALS).nonzero()[:, 1].tolist(), strict=True):
            row[:places] = 0
    each = cross_entropies(logits[:, :-1], targets.masked_fill(targets == 0, -100))
    count = targets.numel() if config["arch"]["loss_reduction"] == "none" else (targets != 0).sum()
    return each.sum() / count


def numbers(config: dict[str, Any], given: Tensors) -> Tensors:
    """Return every pass, the progressive loss with its gradients, evaluation and decoding."""
    arch, parameters, tokens = config["arch"], leaves(part(given, "param")), given["tokens"]
    model, out, losses = _Model(config, parameters), {}, []
    while f"pass.{len(losses)}.n" in given:
        name = f"pass.{len(losses)}"
        own = part(given, name)
        n, k, offset = int(own["n"]), int(own["k"]), int(own.get("abacus_offset", 0))
        start = own["initial_state"] if arch["initial_hidden_randomized"] else None
        logits, states = model.run(tokens, n, k, start, offset)
        losses.append(_loss(config, logits, tokens))
        out |= {f"{name}.state.{i}": state.detach() for i, state in enumerate(states, start=1)}
        out |= {f"{name}.logits": logits.detach(), f"{name}.loss": losses[-1].detach()}
    out["last_logits"] = out["pass.0.logits"][:, -1]
    alpha = arch["alpha"]
    total = losses[0] if len(losses) == 1 else (1 - alpha) * losses[0] + alpha * losses[1]
    if arch["throttle"]:
        most, backprop = arch["maximal_recurrence"], _backprop(arch)
        total = total * (1 + min(most / 4, backprop / 2)) / backprop
    trained = {n: p for n, p in parameters.items() if not n.endswith("init_L")}
    out |= gradients(total, trained, prefix="grad")
    out["loss"] = total.detach() if len(losses) == 2 else total.detach().float()
    with torch.no_grad():
        logits, _ = model.run(tokens, 0, arch["maximal_recurrence_in_eval"], None)
        out |= {"eval.logits": logits, "eval.loss": _loss(config, logits, tokens)}
        row = given["greedy.prompt"]
        for _ in range(4):
            logits, _ = model.run(row, 0, int(given["greedy.steps"]), None)
            row = torch.cat((row, logits[:, -1:].argmax(-1)), dim=1)
    return out | {"greedy.tokens": row[:, given["greedy.prompt"].shape[1] :]}


def metadata(config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Return the metadata of a file with these tensors."""
    return config
