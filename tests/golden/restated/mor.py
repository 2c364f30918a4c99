"""Mixture-of-Recursions and recursion with shared keys, from their equations."""

from __future__ import annotations

from typing import Any

import torch
from restated.layers import (
    Tensors,
    cross_entropies,
    draws,
    gradients,
    leaves,
    normal,
    part,
    weights,
)
from restated.llama import (
    NORMS,
    PEFT,
    PROJECTIONS,
    Model,
    applications,
    config_of,
    name_of,
    names_of,
    rank_of,
    sizes_of,
    targets_of,
)
from torch import Tensor

GIVEN = ("param.*", "tokens", "before_sharing.*")
"""Tensors of a file that are not compared: inputs, and weights before they were shared."""


def _mor(kind: str | None, shape: tuple[str, int, int], **changes: Any) -> dict[str, Any]:
    own = {key: changes.pop(key) for key in list(changes) if key in _ROUTER[kind or "expert"]}
    keys = changes.pop("keys", None)
    router = {
        "enable": kind is not None,
        "rand_router": False,
        "router_type": "linear",
        "type": kind or "expert",
        "z_coeff": 0.02,
        "temp": 1.0,
        "z_loss": changes.pop("z_loss", True),
    } | {key: changes.pop(key) for key in ("temp", "capacity") if key in changes}
    router |= {one: _ROUTER[one] | (own if one == kind else {}) for one in _ROUTER}
    shared = {"enable": keys is not None, "update_cache": keys == "update"}
    config = config_of(*shape, mor=router, kv_sharing=shared, **changes)
    return config | {"family": "mor", "code": "mor_model", "num_items_in_batch": 14}


_ROUTER: dict[str, dict[str, Any]] = {
    "expert": {
        "alpha": 0.1,
        "cap_warmup_step": 0,
        "coeff": 0.05,
        "gating": "weighted",
        "include_first": True,
        "router_func": "sigmoid",
        "sampling": "aux_loss",
    },
    "token": {
        "alpha": 1.0,
        "bal_warmup_step": 0,
        "balancing": "loss",
        "coeff": 0.1,
        "gating": "weighted",
        "router_func": "softmax",
        "u": 0.001,
    },
}


VARIANTS = {
    "expert_additive": _mor(
        "expert", ("cycle", 2, 2), gating="additive", temp=1.7, capacity="0.9,0.4", kv_heads=2
    ),
    "expert_none": _mor("expert", ("middle_cycle", 2, 3), router_func=None, sampling=None),
    "expert_logits": _mor(
        "expert", ("cycle", 1, 2), router_func=None, z_loss=False, capacity="1.0,0.5", alpha=3.0
    ),
    "expert_tanh_auxloss": _mor(
        "expert", ("middle_cycle", 1, 2), router_func="tanh", alpha=0.8, capacity="0.7,0.4"
    ),
    "expert_own_norms": _mor(
        "expert", ("cycle", 2, 2), sampling="aux_router", ln_share=False, capacity="1.0,0.5"
    ),
    "expert_shared_keys": _mor(
        "expert", ("middle_cycle", 2, 2), keys="first", capacity="0.8,0.5", heads=3, hidden=18
    ),
    "expert_updated_keys": _mor(
        "expert", ("middle_cycle", 2, 3), keys="update", capacity="1.0,0.7,0.3", kv_heads=2
    ),
    "expert_cycle_update": _mor("expert", ("cycle", 2, 2), keys="update", capacity="1.0,0.5"),
    "token_sigmoid": _mor(
        "token", ("middle_cycle", 2, 2), router_func="sigmoid", alpha=0.3, balancing=None
    ),
    "token_loss_free": _mor(
        "token", ("middle_cycle", 1, 4), balancing="loss_free", z_loss=False, temp=0.5
    ),
    "token_additive_keys": _mor(
        "token", ("middle_cycle", 2, 3), gating="additive", keys="first", ln_share=False
    ),
    "recursive_middle_sequence": _mor(None, ("middle_sequence", 2, 2), ln_share=False),
    "recursive_cycle_keys": _mor(None, ("cycle", 2, 3), keys="first", rope_theta=300.0),
    "recursive_middle_keys": _mor(None, ("middle_cycle", 1, 3), keys="first", rms_eps=1e-3),
}


def inputs(config: dict[str, Any]) -> Tensors:
    """Return weights and tokens (B, T)."""
    g, sizes = draws(config), sizes_of(config)
    prefix = PEFT if config.get("method") == "lora" else ""
    embedding, head = f"{prefix}model.embed_tokens.weight", f"{prefix}lm_head.weight"
    shapes: dict[str, tuple[int, ...]] = {embedding: (config["vocab"], config["hidden"])}
    shapes[f"{prefix}model.norm.weight"] = (config["hidden"],)
    if config["family"] == "relaxed":
        shapes[head] = (config["vocab"], config["hidden"])
    names = names_of(config)
    for one in applications(config):
        layer, norms = names[one.index]
        shapes |= {f"{norms}.{norm}.weight": (config["hidden"],) for norm in NORMS}
        for projection, sides in PROJECTIONS.items():
            shape = tuple(sizes[side] for side in sides)
            adapts = projection.rpartition(".")[2] in targets_of(config) and not one.is_outer
            middle = ".base_layer" if adapts else ""
            shapes.setdefault(f"{layer}.{projection}{middle}.weight", shape)
            if adapts:
                own, rank = f"{name_of(config, one)}.{projection}", rank_of(config, projection)
                shapes[f"{own}.lora_A.default.weight"] = (rank, shape[1])
                shapes[f"{own}.lora_B.default.weight"] = (shape[0], rank)
        if one.is_encoded:
            own = name_of(config, one).removesuffix(".block")
            shapes[f"{own}.recursion_encoding"] = (config["hidden"],)
    given = {f"param.{n}": t for n, t in weights(g, shapes).items()}
    router, recursions = config.get("mor", {}), config["recursive"]["num_recursion"]
    around = int(config["recursive"]["sharing"].startswith("middle"))
    if router.get("enable"):
        is_expert = router["type"] == "expert"
        for number in range(recursions if is_expert else 1):
            module = f"param.model.layers.{around + number}"
            rows = 1 if is_expert else recursions
            given[f"{module}.mor_router.router.weight"] = normal(g, rows, config["hidden"], std=0.4)
            if is_expert and router["expert"]["sampling"] == "aux_router":
                given[f"{module}.mlp_router.router.weight"] = normal(g, 1, config["hidden"])
            if not is_expert and router["token"]["balancing"] == "loss_free":
                given[f"{module}.router_bias"] = normal(g, recursions, std=0.1)
    given["tokens"] = torch.randint(config["vocab"], (2, 8), generator=g)
    return given


def _expert(model: Model, x: Tensor, out: Tensors) -> Tensor:
    c, router = model.c, model.c["mor"]
    own, recursions = router["expert"], c["recursive"]["num_recursion"]
    around = int(c["recursive"]["sharing"].startswith("middle"))
    default = [(recursions - r) / recursions for r in range(recursions)]
    capacity = (
        [float(one) for one in router["capacity"].split(",")] if router.get("capacity") else default
    )
    batch, length = model.shape
    candidates = torch.arange(length).expand(batch, length)
    losses, agreements, squares = [], [], []
    for r in range(recursions):
        module = f"model.layers.{around + r}"
        taken = x.gather(1, candidates.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        logits = (taken / router["temp"] @ model.p[f"{module}.mor_router.router.weight"].T).squeeze(
            -1
        )
        functions = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}
        function = functions.get(own["router_func"])
        gates = logits if function is None else own["alpha"] * function(logits)
        count = max(1, int(capacity[r] * length))
        best = gates.detach().topk(count, dim=1).indices.sort(1).values
        target = torch.zeros_like(gates).scatter(1, best, 1.0)
        if own["sampling"] is not None:
            deciding, least = logits, 0.0
            if own["sampling"] == "aux_router":
                weight = model.p[f"{module}.mlp_router.router.weight"]
                deciding = (taken.detach() @ weight.T).squeeze(-1)
            elif own["router_func"] is None:
                least = 0.5  # the code asks this of the logit, which it takes for a probability
            each = -(target * deciding.sigmoid().log() + (1 - target) * (-deciding).sigmoid().log())
            losses.append(each.mean())
            agreements.append(((deciding >= least) == target.bool()).double().mean())
        squares.append(logits.square().mean())
        chosen = candidates.gather(1, best)
        mask = torch.zeros(batch, length, dtype=torch.bool).scatter(1, chosen, True)
        made = model.block(r, x, mask)
        gate = torch.zeros(batch, length).double().scatter(1, chosen, gates.gather(1, best))
        factor = gate if own["gating"] == "weighted" else mask.double()
        x = x + factor.unsqueeze(-1) * made
        candidates = chosen
        out |= {f"selected.{around + r}": chosen, f"router_logits.{r}": logits.unsqueeze(-1)}
        out[f"layer_out.{around + r}"] = x
    if losses:
        out |= {"sampling_loss": sum(losses), "sampling_acc": sum(agreements) / len(agreements)}
    if router["z_loss"]:
        out["router_z_loss"] = sum(squares) * batch * length / c["num_items_in_batch"]
    return x


def _token(model: Model, x: Tensor, out: Tensors) -> Tensor:
    c, router = model.c, model.c["mor"]
    own, recursions, module = router["token"], c["recursive"]["num_recursion"], "model.layers.1"
    batch, length = model.shape
    logits = x / router["temp"] @ model.p[f"{module}.mor_router.router.weight"].T
    p = logits.sigmoid() if own["router_func"] == "sigmoid" else logits.softmax(-1)
    p = own["alpha"] * p
    biased = p + model.p[f"{module}.router_bias"] if own["balancing"] == "loss_free" else p
    depth = biased.argmax(-1)
    gate = p.gather(-1, depth.unsqueeze(-1)) if own["gating"] == "weighted" else 1.0
    final, state = x, x
    for r in range(recursions):
        runs = depth >= r
        made = model.block(r, state, runs)
        final = torch.where((depth == r).unsqueeze(-1), x + gate * made, final)
        state = torch.where((depth > r).unsqueeze(-1), made, state)
    share = torch.bincount(depth.flatten(), minlength=recursions).double() / depth.numel()
    scale = batch * length / c["num_items_in_batch"]
    if own["balancing"] == "loss":
        out["balancing_loss"] = (p.mean((0, 1)) * recursions * share).sum() * scale
    if own["balancing"] is not None:
        out["balancing_ratio"] = share
    if router["z_loss"]:
        out["router_z_loss"] = logits.logsumexp(-1).square().mean() * scale
    out |= {"depth": depth, "router_logits.0": logits, "layer_out.1": final}
    return final


def _forward(model: Model, out: Tensors) -> Tensor:
    """Return the logits, and note what happened on the way."""
    x, router = model.embedded, model.c.get("mor", {})
    is_routed, places = router.get("enable", False), applications(model.c)
    everywhere = torch.arange(model.shape[1]).expand(model.shape)
    around = places[0].is_outer
    if not is_routed:
        for one in places:
            x = model.layer(one, x, everywhere)
            out[f"layer_out.{one.index}"] = x
        return model.read(x)
    if around:
        x = model.layer(places[0], x, everywhere)
        out["layer_out.0"] = x
    x = (_expert if router["type"] == "expert" else _token)(model, x, out)
    if around:
        x = model.layer(places[-1], x, everywhere)
        last = name_of(model.c, places[-1]).rpartition(".")[2]
        out[f"layer_out.{last}"] = x
    return model.read(x)


def numbers(config: dict[str, Any], given: Tensors) -> Tensors:
    """Return what a pass gives, its losses and their gradients."""
    parameters, tokens, out = leaves(part(given, "param")), given["tokens"], {}
    logits = _forward(Model(config, parameters, tokens), out)
    each = cross_entropies(logits[:, :-1], tokens[:, 1:])
    if config["family"] == "relaxed":
        loss = each.mean()
        out |= {"logits": logits, "loss": loss}
    else:
        loss = each.sum() / config["num_items_in_batch"]
        out |= {"logits": logits, "lm_loss": loss, "eval.logits": logits}
        loss = loss + _router_loss(config, out)
        out["loss"] = loss
    trained = {n: p for n, p in parameters.items() if not n.endswith("router_bias")}
    found = gradients(loss, trained, prefix="grad")
    if (
        config.get("mor", {}).get("expert", {}).get("sampling") == "aux_router"
        and "sampling_loss" in out
    ):
        routers = {n: p for n, p in trained.items() if "mlp_router" in n}
        found |= gradients(out["sampling_loss"], routers, prefix="grad_sampling")
    return {name: tensor.detach() for name, tensor in out.items()} | found


def _router_loss(config: dict[str, Any], out: Tensors) -> Tensor | float:
    router, total = config["mor"], 0.0
    own = router[router["type"]]
    if "balancing_loss" in out:
        total = total + own["coeff"] * out["balancing_loss"]
    if "sampling_loss" in out and own["sampling"] == "aux_loss":
        total = total + own["coeff"] * out["sampling_loss"]
    if "router_z_loss" in out:
        total = total + router["z_coeff"] * out["router_z_loss"]
    return total


def metadata(config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Return the metadata of a file with these tensors."""
    parameters = part(tensors, "param")
    groups: dict[str, list[str]] = {}
    names = names_of(config)
    for one in applications(config):
        shared, own = names[one.index][0], name_of(config, one)
        for projection in PROJECTIONS:
            adapts = projection.rpartition(".")[2] in targets_of(config) and not one.is_outer
            middle = ".base_layer" if adapts else ""
            first = f"{shared}.{projection}{middle}.weight"
            groups.setdefault(first, []).append(f"{own}.{projection}{middle}.weight")
    without = [
        n for n in parameters if f"grad.{n}" not in tensors and not n.endswith("router_bias")
    ]
    return config | {
        "params_without_gradient": without,
        "tied_parameters": [group for group in groups.values() if len(group) > 1],
    }
