"""Import Mixture-of-Recursions (raymin0223/mixture_of_recursions at 0c98df3, arXiv 2507.10524).

Also its recursive Transformers without a router, with or without shared keys and values. Expert
choice is that of 82c97f2 and later: before, each recursion had an attention of its own, by mistake.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from moeut.blocks.attention import DenseAttention
from moeut.blocks.feed_forward import GatedFeedForward
from moeut.blocks.own import Own
from moeut.blocks.positions import Rotary
from moeut.config import ModelConfig
from moeut.interop.mapping import PROJECTIONS, RawOptions, TensorMap, load, rename
from moeut.models import DecoderLM
from moeut.recurrence.controller import ControllerOptions, NoHalting
from moeut.recurrence.mixture import ExpertChoice, TokenChoice
from moeut.recurrence.schedule import Depth
from moeut.recurrence.stack_config import SharedKeys

SOURCE = "Mixture-of-Recursions"
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"}


def from_mor(options: dict[str, Any], state_dict: dict[str, Tensor]) -> DecoderLM:
    """Return the language model that the code makes of ``options`` with ``state_dict``.

    ``options`` are ``hidden``, ``heads``, ``kv_heads``, ``intermediate``, ``vocab``,
    ``num_layers``, ``rms_eps``, ``rope_theta`` and that code's sections ``recursive``, ``mor`` and
    ``kv_sharing``. A tensor that is shared may be there once, under its first name, or under all.

    Raises:
        ValueError: what an option asks for is not supported, tensors are missing, left over or of
            another shape, or tensors that are shared differ.
    """
    config = mor_config(options, is_tied=is_tied(state_dict))
    own = without_copies(state_dict, _copies(config, options))
    ignore = ("lm_head.weight",) if config.tie_embeddings else ()
    return load(DecoderLM, config, mor_maps(config, options), own, ignore=ignore)


def mor_config(options: Mapping[str, Any], *, is_tied: bool = True) -> ModelConfig:
    """Return the model config of the code's options.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    depth = depth_of(options)
    router = section(options, "mor")
    routed = router.boolean("enable", False)
    config = llama_config(options, depth, is_tied=is_tied)
    shared = section(options, "kv_sharing")
    keys: SharedKeys = "none"
    if shared.boolean("enable", False):
        # Without a router nobody sits out, and with cycle the code does not update.
        updates = shared.boolean("update_cache", False) and routed
        sharing = section(options, "recursive").raw("sharing")
        keys = "update" if updates and sharing == "middle_cycle" else "first"
    halting = _halting(router, options) if routed else NoHalting()
    return dataclasses.replace(config, halting=halting, shared_keys=keys)


def llama_config(
    options: Mapping[str, Any], depth: Depth, *, is_tied: bool, own: Own | None = None
) -> ModelConfig:
    """Return the config of the code's Llama layers at a depth."""
    read = RawOptions(dict(options), source=SOURCE)
    d_model, num_heads = read.integer("hidden"), read.integer("heads", least=1)
    if own is None:
        shares_norms = section(options, "recursive").boolean("ln_share", True)
        own = Own(norms=not shares_norms and depth.is_shared)
    return ModelConfig(
        form="decoder_lm",
        d_model=d_model,
        vocabulary_size=read.integer("vocab"),
        depth=depth,
        attention=DenseAttention(
            num_heads=num_heads,
            num_key_heads=read.integer("kv_heads", num_heads),
            head_size=d_model // num_heads,
        ),
        feed_forward=GatedFeedForward(hidden_size=read.integer("intermediate")),
        position=Rotary(base=read.number("rope_theta", 10000.0), fraction=1.0),
        norm="pre",
        norm_kind="rms",
        norm_epsilon=read.number("rms_eps", 1e-5),
        own=own,
        head_bias=False,
        tie_embeddings=is_tied,
    )


def section(options: Mapping[str, Any], name: str, *rest: str) -> RawOptions:
    """Return the options of a section, or of one in it; of one that is not there, none.

    Raises:
        ValueError: what should be a section is something else.
    """
    read = RawOptions(dict(options), source=SOURCE)
    for key in (name, *rest):
        read = read.section(key)
    return read


def depth_of(options: Mapping[str, Any]) -> Depth:
    """Return the schedule that the section ``recursive`` says."""
    read = section(options, "recursive")
    kinds = ("cycle", "sequence", "middle_cycle", "middle_sequence")
    sharing = read.word("sharing", kinds)
    group, repeats = read.integer("base_depth"), read.integer("num_recursion")
    around = 1 if sharing.startswith("middle") else 0
    order: Literal["cycle", "sequence"] = "cycle"
    if sharing.endswith("sequence") and group > 1 and repeats > 1:
        order = "sequence"
    depth = Depth(prelude=around, group=group, repeats=repeats, coda=around, order=order)
    all_options = RawOptions(dict(options), source=SOURCE)
    layers = all_options.integer("num_layers", depth.num_applications)
    if layers != depth.num_applications:
        raise read.error("num_layers", layers, f"expected {depth.num_applications}")
    return depth


def _halting(read: RawOptions, options: Mapping[str, Any]) -> ControllerOptions:
    read.require("router_type", read.raw("router_type", "linear"), "linear", default="linear")
    read.require("rand_router", read.boolean("rand_router", False), False, default=False)
    z_loss = read.number("z_coeff", 0.0) if read.boolean("z_loss", False) else 0.0
    kind = read.word("type", ("expert", "token"))
    temperature = read.number("temp", 1.0)
    own = section(options, "mor", kind)
    shared = {
        "temperature": temperature,
        "z_loss": z_loss,
        "gating": own.word("gating", ("weighted", "additive"), "weighted"),
        "alpha": own.number("alpha", 0.1 if kind == "expert" else 1.0),
    }
    if kind == "expert":
        own.require("include_first", own.boolean("include_first", True), True, default=True)
        warm_up = own.integer("cap_warmup_step", 0)
        own.require("cap_warmup_step", warm_up, 0, default=0)
        capacity = _capacity(read)
        parts = {} if capacity is None else {"capacity": capacity}
        samples = {"aux_loss": "loss", "aux_router": "router", None: "none"}
        of_expert = {"sigmoid": "sigmoid", "tanh": "tanh", None: "none"}
        return ExpertChoice.from_dict(
            shared
            | parts
            | {
                "gate": _translated(own, "router_func", of_expert),
                "sampling": _translated(own, "sampling", samples),
                "sampling_loss": own.number("coeff", 0.001),
            }
        )
    own.require("bal_warmup_step", own.integer("bal_warmup_step", 0), 0, default=0)
    balances = {"loss": "loss", "loss_free": "bias", None: "none"}
    gates = {"softmax": "softmax", "sigmoid": "sigmoid", None: "softmax"}
    return TokenChoice.from_dict(
        shared
        | {
            "gate": _translated(own, "router_func", gates),
            "balancing": _translated(own, "balancing", balances),
            "balancing_loss": own.number("coeff", 0.1),
            "balance_over": "batch",
            "bias_rate": own.number("u", 0.001),
        }
    )


def _translated(read: RawOptions, name: str, words: Mapping[str | None, str]) -> str:
    """Return our word for an option of theirs, which may be none."""
    value = read.raw(name, None)
    if value not in list(words):
        raise read.error(name, value, f"supported are {', '.join(map(str, words))}")
    return words[value]


def _capacity(read: RawOptions) -> tuple[float, ...] | None:
    """Return the parts that recursions take, which the code has as one text."""
    given = read.raw("capacity", None)
    parts = listed(given)
    if parts is None:
        return None
    try:
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise read.error("capacity", given, "expected numbers with commas between them") from None


def listed(given: Any) -> list[Any] | None:
    """Return the parts of a list, which may be one text with commas; None: there is none."""
    if given is None or isinstance(given, list | tuple):
        return None if given is None else list(given)
    return [part.strip() for part in str(given).split(",")]


# --- names ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Applied:
    """One application of a layer: what the code calls it, and where it is."""

    theirs: str
    layer: int
    repeat: int | None


def applied_layers(
    depth: Depth, routed: Literal["expert", "token"] | None = None
) -> Iterator[Applied]:
    """Yield the applications of a pass with the code's names, the first of each layer first."""
    for place in depth.places():
        repeat, index = place.repeat, place.layer - depth.prelude
        if routed is None:
            name = f"model.layers.{place.application}"
        elif repeat is not None and routed == "expert":
            name = f"model.layers.{depth.prelude + repeat}.block.{index}"
        elif repeat is not None:
            name = f"model.layers.{depth.prelude}.block_list.{repeat}.{index}"
        else:
            modules = depth.repeats if routed == "expert" else 1
            outside = place.layer if place.layer < depth.prelude else place.layer - depth.group
            is_coda = place.layer >= depth.prelude
            name = f"model.layers.{outside + modules * is_coda}"
        yield Applied(name, place.layer, repeat)


def _applied(config: ModelConfig, options: Mapping[str, Any]) -> Iterator[Applied]:
    is_routed = not isinstance(config.halting, NoHalting)
    kind = section(options, "mor").raw("type", None) if is_routed else None
    return applied_layers(config.depth, kind)


def mor_maps(config: ModelConfig, options: Mapping[str, Any]) -> list[TensorMap]:
    """Return where each tensor of the code belongs, shared ones by their first name."""
    maps = outer_maps(config)
    for applied in _applied(config, options):
        theirs, ours = applied.theirs, f"decoder.layers.{applied.layer}"
        if not applied.repeat:
            maps += [
                rename(f"{theirs}.{a}.weight", f"{ours}.{b}.weight") for a, b in PROJECTIONS.items()
            ]
        maps += norm_maps(applied, config)
    prelude, halting = config.depth.prelude, "decoder.controllers.halting"
    if isinstance(config.halting, ExpertChoice):
        pairs = {"mor_router": "routers"}
        if config.halting.sampling == "router":
            pairs["mlp_router"] = "samplers"
        maps += [
            rename(f"model.layers.{prelude + repeat}.{a}.router.weight", f"{halting}.{b}.{repeat}")
            for a, b in pairs.items()
            for repeat in range(config.depth.repeats)
        ]
    elif isinstance(config.halting, TokenChoice):
        module = f"model.layers.{prelude}"
        maps.append(rename(f"{module}.mor_router.router.weight", f"{halting}.weight"))
        if config.halting.balancing == "bias":
            maps.append(rename(f"{module}.router_bias", f"{halting}.bias"))
    return maps


def outer_maps(config: ModelConfig, prefix: str = "") -> list[TensorMap]:
    """Return the maps of embedding, last norm and, if it is not tied, the head."""
    maps = [
        rename(f"{prefix}model.embed_tokens.weight", "embedding.weight"),
        rename(f"{prefix}model.norm.weight", "decoder.final_norm.weight"),
    ]
    return (
        maps if config.tie_embeddings else [*maps, rename(f"{prefix}lm_head.weight", "head.weight")]
    )


def norm_maps(applied: Applied, config: ModelConfig) -> list[TensorMap]:
    """Return the maps of the norms of an application: its own, or those of the first."""
    is_own = config.own.norms and applied.repeat is not None
    if applied.repeat and not is_own:
        return []
    ours = f"decoder.layers.{applied.layer}"
    which = f".{applied.repeat}" if is_own else ""
    return [
        rename(f"{applied.theirs}.{a}.weight", f"{ours}.{b}{which}.weight")
        for a, b in NORMS.items()
    ]


def _copies(config: ModelConfig, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    first: dict[int, str] = {}
    for applied in _applied(config, options):
        theirs = first.setdefault(applied.layer, applied.theirs)
        if theirs != applied.theirs:
            names = [*PROJECTIONS] if config.own.norms else [*PROJECTIONS, *NORMS]
            yield from ((f"{applied.theirs}.{n}.weight", f"{theirs}.{n}.weight") for n in names)


def without_copies(
    state_dict: dict[str, Tensor], copies: Iterator[tuple[str, str]]
) -> dict[str, Tensor]:
    """Return a state dict without the second names of tensors, ``copies`` of (second, first).

    Raises:
        ValueError: what should be one tensor is two.
    """
    left = dict(state_dict)
    for copy, first in copies:
        tensor = left.pop(copy, None)
        if tensor is not None and first in left and not torch.equal(tensor, left[first]):
            raise ValueError(
                f"state_dict[{copy!r}]: differs from {first!r}, which it is shared with"
            )
    return left


def is_tied(state_dict: Mapping[str, Tensor], prefix: str = "") -> bool:
    """Return whether the head is the embedding: it is not there, or the same."""
    head = state_dict.get(f"{prefix}lm_head.weight")
    embedding = state_dict.get(f"{prefix}model.embed_tokens.weight")
    return head is None or (embedding is not None and torch.equal(head, embedding))
