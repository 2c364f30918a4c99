"""TRM, its variant with one state, HRM and URM, with deep supervision, from their equations."""

from __future__ import annotations

from typing import Any

import torch
from restated.layers import (
    Tensors,
    attend,
    cross_entropies,
    draws,
    gradients,
    heads,
    leaves,
    normal,
    part,
    rms,
    rotary,
    silu,
    weights,
)
from torch import Tensor

STEPS = 4
GIVEN = (
    "param.*",
    "buffer.*",
    "step.*.inputs",
    "step.*.labels",
    "step.*.puzzle_identifiers",
    "step.*.explore_*",
    "step.*.preds",
    "step.*.metric.*",
)
"""Tensors of a file that are not compared: inputs, and counts for display."""


def _options(**changes: Any) -> dict[str, Any]:
    return {
        "H_cycles": 2,
        "H_layers": 1,
        "L_cycles": 2,
        "L_layers": 1,
        "batch_size": 3,
        "halt_exploration_prob": 0.4,
        "halt_max_steps": 3,
        "hidden_size": 12,
        "num_heads": 3,
        "num_puzzle_identifiers": 4,
        "pos_encodings": "rope",
        "puzzle_emb_len": 1,
        "puzzle_emb_ndim": 12,
        "seq_len": 5,
        "vocab_size": 9,
    } | changes


def _config(family: str, *, loss: str = "stablemax", **changes: Any) -> dict[str, Any]:
    options = _options(**changes)
    if family != "trm":
        options.pop("puzzle_emb_len")
    return {"family": family, "loss_type": f"{loss}_cross_entropy", "options": options}


def _single(**changes: Any) -> dict[str, Any]:
    return _config("trm", **changes) | {"code": "trm_singlez"}


VARIANTS = {
    "trm_learned": _config("trm", pos_encodings="learned", num_heads=1, batch_size=2),
    "trm_no_position": _config("trm", pos_encodings="none", L_layers=2, puzzle_emb_len=3),
    "trm_mlp_learned": _config("trm", pos_encodings="learned", mlp_t=True, seq_len=6),
    "trm_no_puzzle": _config("trm", puzzle_emb_ndim=0, puzzle_emb_len=0, H_cycles=1, L_cycles=3),
    "trm_rows_by_size": _config("trm", puzzle_emb_ndim=20, puzzle_emb_len=0, rope_theta=500.0),
    "trm_continue": _config("trm", no_ACT_continue=False, halt_max_steps=4, rms_norm_eps=1e-3),
    "trm_one_pass": _config("trm", halt_max_steps=1),
    "trm_softmax": _config("trm", loss="softmax", batch_size=1, num_heads=6),
    "trm_single": _single(L_layers=2),
    "trm_single_mlp": _single(mlp_t=True, pos_encodings="none", H_cycles=3, L_cycles=1),
    "trm_single_continue": _single(no_ACT_continue=False, loss="softmax"),
    "hrm_learned": _config("hrm", pos_encodings="learned", H_layers=2, batch_size=4),
    "hrm_one_pass": _config("hrm", halt_max_steps=1, H_cycles=1),
    "hrm_softmax": _config("hrm", loss="softmax", L_layers=2, H_cycles=3, L_cycles=1),
    "hrm_no_puzzle": _config("hrm", puzzle_emb_ndim=0, H_cycles=1, L_cycles=1, seq_len=7),
    "urm_one_cycle": _config("urm", H_cycles=1, L_cycles=3, num_layers=1, loops=5),
    "urm_softmax": _config("urm", loss="softmax", num_layers=3, loops=2, puzzle_emb_ndim=20),
    "urm_no_puzzle": _config("urm", puzzle_emb_ndim=0, num_layers=1, loops=4, num_heads=2),
}


def _is_single(config: dict[str, Any]) -> bool:
    return config["family"] == "urm" or "singlez" in config.get("code", "")


def _rows(config: dict[str, Any]) -> int:
    options = config["options"]
    by_size = -(-options["puzzle_emb_ndim"] // options["hidden_size"])
    return options.get("puzzle_emb_len") or by_size


def _networks(config: dict[str, Any]) -> dict[str, int]:
    """Return what each network is called, and its layers."""
    options = config["options"]
    if config["family"] == "urm":
        return {"layers": options["num_layers"]}
    if config["family"] == "trm":
        return {"L_level.layers": options["L_layers"]}
    return {"H_level.layers": options["H_layers"], "L_level.layers": options["L_layers"]}


def inputs(config: dict[str, Any]) -> Tensors:
    """Return weights, buffers, and what each step of supervision is given."""
    options, g = config["options"], draws(config)
    size, hidden, rows = options["hidden_size"], 8, _rows(config)
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.embedding_weight": (options["vocab_size"], size),
        "lm_head.weight": (options["vocab_size"], size),
        "q_head.weight": (2, size),
        "q_head.bias": (2,),
    }
    length = options["seq_len"] + rows
    if config["family"] != "urm" and options["pos_encodings"] == "learned":
        shapes["embed_pos.embedding_weight"] = (length, size)
    for network, count in _networks(config).items():
        for layer in (f"{network}.{number}" for number in range(count)):
            shapes[f"{layer}.mlp.gate_up_proj.weight"] = (2 * hidden, size)
            shapes[f"{layer}.mlp.down_proj.weight"] = (size, hidden)
            if options.get("mlp_t"):
                shapes[f"{layer}.mlp_t.gate_up_proj.weight"] = (8, length)
                shapes[f"{layer}.mlp_t.down_proj.weight"] = (length, 4)
            else:
                shapes[f"{layer}.self_attn.qkv_proj.weight"] = (3 * size, size)
                shapes[f"{layer}.self_attn.o_proj.weight"] = (size, size)
            if config["family"] == "urm":
                shapes[f"{layer}.mlp.dwconv.weight"] = (hidden, 1, 2)
                shapes[f"{layer}.mlp.dwconv.bias"] = (hidden,)
    given = {f"param.model.inner.{n}": t for n, t in weights(g, shapes).items()}
    given["param.model.inner.embed_tokens.embedding_weight"] *= 0.5
    single = ("init_hidden",) if config["family"] == "urm" else ("L_init",)
    for name in single if _is_single(config) else ("L_init", "H_init"):
        given[f"buffer.{name}"] = normal(g, size)
    if options["puzzle_emb_ndim"]:
        shape = options["num_puzzle_identifiers"], options["puzzle_emb_ndim"]
        given["buffer.puzzle_emb.weights"] = normal(g, *shape, std=0.3)
    most, batch = _most(config), options["batch_size"]
    for step in range(STEPS):
        tokens, labels = (
            torch.randint(options["vocab_size"], (batch, options["seq_len"]), generator=g)
            for _ in range(2)
        )
        labels[:, 0] = -100
        given |= {
            f"step.{step}.inputs": tokens,
            f"step.{step}.labels": labels,
            f"step.{step}.puzzle_identifiers": torch.randint(4, (batch,), generator=g),
            f"step.{step}.explore_uniform": torch.rand(batch, generator=g),
            f"step.{step}.explore_steps": torch.randint(
                min(2, most), most + 1, (batch,), generator=g
            ),
        }
    return given


def _most(config: dict[str, Any]) -> int:
    return config["options"]["loops" if config["family"] == "urm" else "halt_max_steps"]


class _Model:
    """The networks with some weights; states are (B, T, D)."""

    def __init__(self, config: dict[str, Any], parameters: Tensors, buffers: Tensors) -> None:
        self.family, self.o = config["family"], config["options"]
        self.p, self.buffers = part(parameters, "model.inner"), buffers
        self.rows, self.is_single = _rows(config), _is_single(config)
        self.networks, self.epsilon = _networks(config), self.o.get("rms_norm_eps", 1e-5)

    def begin(self) -> list[Tensor]:
        names = ("init_hidden", "L_init", "H_init")
        return [self.buffers[name] for name in names if name in self.buffers]

    def embed(self, tokens: Tensor, puzzles: Tensor | None) -> Tensor:
        """``puzzles`` (B, n) are the vectors of the rows' puzzles."""
        e = self.p["embed_tokens.embedding_weight"][tokens]
        if puzzles is not None:
            missing = self.rows * e.shape[-1] - puzzles.shape[1]
            wide = torch.cat((puzzles, torch.zeros(len(puzzles), missing).double()), dim=1)
            e = torch.cat((wide.view(len(e), self.rows, -1), e), dim=1)
        if "embed_pos.embedding_weight" in self.p:
            e = 0.707106781 * (e + self.p["embed_pos.embedding_weight"])
        return e.shape[-1] ** 0.5 * e

    def network(self, name: str, z: Tensor) -> Tensor:
        for layer in (f"{name}.{number}" for number in range(self.networks[name])):
            if self.o.get("mlp_t"):
                turned = z.transpose(1, 2)
                turned = rms(turned + self._glu(f"{layer}.mlp_t", turned), epsilon=self.epsilon)
                z = turned.transpose(1, 2)
            else:
                z = rms(z + self._attention(layer, z), epsilon=self.epsilon)
            z = rms(z + self._glu(f"{layer}.mlp", z), epsilon=self.epsilon)
        return z

    def _glu(self, name: str, x: Tensor) -> Tensor:
        gate, up = (x @ self.p[f"{name}.gate_up_proj.weight"].T).chunk(2, dim=-1)
        product = silu(gate) * up
        if f"{name}.dwconv.weight" in self.p:
            taps = self.p[f"{name}.dwconv.weight"][:, 0]
            before = torch.cat((torch.zeros_like(product[:, :1]), product[:, :-1]), dim=1)
            product = silu(
                before * taps[:, 0] + product * taps[:, 1] + self.p[f"{name}.dwconv.bias"]
            )
        return product @ self.p[f"{name}.down_proj.weight"].T

    def _attention(self, layer: str, x: Tensor) -> Tensor:
        joint = x @ self.p[f"{layer}.self_attn.qkv_proj.weight"].T
        q, k, v = (heads(one, self.o["num_heads"]) for one in joint.chunk(3, dim=-1))
        if self.family == "urm" or self.o["pos_encodings"] == "rope":
            base = self.o.get("rope_theta", 10000.0)
            q, k = rotary(q, base=base), rotary(k, base=base)
        return attend(q, k, v, causal=False) @ self.p[f"{layer}.self_attn.o_proj.weight"].T

    def recur(self, states: list[Tensor], e: Tensor) -> list[Tensor]:
        """Return the states after one pass; gradients flow through the last updates alone."""
        high, low = self.o["H_cycles"], self.o["L_cycles"]
        for cycle in range(high):
            is_last = cycle == high - 1
            for number in range(low):
                through = is_last and (self.family != "hrm" or number == low - 1)
                with torch.set_grad_enabled(through):
                    z = states[0] + e if self.is_single else states[0] + states[1] + e
                    states = [self.network(list(self.networks)[-1], z), *states[1:]]
            if self.family == "urm":
                continue
            with torch.set_grad_enabled(is_last):
                z = self.network(next(iter(self.networks)), sum(states[1:], states[0]))
                states = [z] if self.is_single else [states[0], z]
        return states

    def heads_of(self, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits = states[-1][:, self.rows :] @ self.p["lm_head.weight"].T
        return logits, states[-1][:, 0] @ self.p["q_head.weight"].T + self.p["q_head.bias"]


def _answer_losses(config: dict[str, Any], logits: Tensor, labels: Tensor) -> Tensor:
    if config["loss_type"].startswith("softmax"):
        each = cross_entropies(logits, labels)
    else:
        below = 1.0 / (1.0 - logits.clamp(max=0.0) + 1e-30)
        size = torch.where(logits < 0, below, logits + 1.0)
        share = size.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1) / size.sum(-1)
        each = -share.log() * (labels >= 0)
    return each.sum(1) / (labels >= 0).sum(1)


def _binary(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log())


def numbers(config: dict[str, Any], given: Tensors) -> Tensors:
    """Return the numbers of every step of supervision, and of evaluation."""
    options, out = config["options"], {}
    parameters, buffers = leaves(part(given, "param")), part(given, "buffer")
    model, begin = _Model(config, parameters, buffers), None
    learns_value = config["family"] == "hrm" or not options.get("no_ACT_continue", True)
    learns_value = learns_value and _most(config) > 1  # one pass alone can go nowhere
    exploration = 0.1 if config["family"] == "urm" else options["halt_exploration_prob"]
    table, states, data = buffers.get("puzzle_emb.weights"), [], {}
    halted = torch.ones(options["batch_size"], dtype=torch.bool)
    steps = torch.zeros(options["batch_size"], dtype=torch.int64)
    number = 0
    while f"step.{number}.inputs" in given:
        step = part(given, f"step.{number}")
        out[f"step.{number}.halted_before"] = halted
        for name in ("inputs", "labels", "puzzle_identifiers"):
            fresh = halted if step[name].dim() == 1 else halted[:, None]
            data[name] = torch.where(fresh, step[name], data.get(name, step[name]))
        begin = [b.expand(*step["inputs"].shape[:1], 1, -1) for b in model.begin()]
        states = states or begin
        states = [
            torch.where(halted[:, None, None], b, s) for b, s in zip(begin, states, strict=True)
        ]
        steps = torch.where(halted, 0, steps) + 1
        puzzles = None
        if table is not None:
            puzzles = table[data["puzzle_identifiers"]].clone().requires_grad_()
        states = model.recur(states, model.embed(data["inputs"], puzzles))
        logits, q = model.heads_of(states)
        states = [state.detach() for state in states]
        answer = _answer_losses(config, logits, data["labels"]).sum()
        right = ((logits.argmax(-1) == data["labels"]) | (data["labels"] < 0)).all(1).double()
        loss = answer + 0.5 * _binary(q[:, 0], right).sum()
        is_last = steps >= _most(config)
        if learns_value:
            with torch.no_grad():
                _, further = model.heads_of(
                    model.recur(states, model.embed(data["inputs"], puzzles))
                )
            best = torch.where(is_last, further[:, 0], further.max(1).values).sigmoid()
            loss = loss + 0.5 * _binary(q[:, 1], best).sum()
            out[f"step.{number}.target_q_continue"] = best
        stops = q[:, 0] > (q[:, 1] if learns_value else 0.0)
        least = (step["explore_uniform"] < exploration) * step["explore_steps"]
        halted = (is_last | stops) & (steps >= least)
        values = {
            "logits": logits,
            "q_halt_logits": q[:, 0],
            "q_continue_logits": q[:, 1],
            "loss": loss.reshape(1),
            "metric.lm_loss": answer.reshape(1),
            "steps": steps,
            "halted": halted,
        } | dict(zip(("z_L", "z_H"), states, strict=False))
        trained = dict(parameters)
        if puzzles is not None:
            trained["puzzle_emb.local_weights"] = puzzles
        found = gradients(loss / len(halted), trained, prefix=f"step.{number}.grad")
        out |= {f"step.{number}.{name}": value.detach() for name, value in values.items()} | found
        number += 1
    return out | _evaluated(config, model, given)


def metadata(config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Return the metadata of a file with these tensors."""
    return config


@torch.no_grad()
def _evaluated(config: dict[str, Any], model: _Model, given: Tensors) -> Tensors:
    """Return the logits of every step, all of which evaluation takes."""
    table, identifiers = model.buffers.get("puzzle_emb.weights"), given["step.0.puzzle_identifiers"]
    e = model.embed(given["step.0.inputs"], None if table is None else table[identifiers])
    states, logits = [state.expand_as(e) for state in model.begin()], []
    for _ in range(_most(config)):
        states = model.recur(states, e)
        logits.append(model.heads_of(states)[0])
    return {"eval.step_logits": torch.stack(logits)}
