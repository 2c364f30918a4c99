"""Import relaxed recursive Transformers (raymin0223/mixture_of_recursions at 0c98df3).

That is the re-implementation of arXiv 2410.20672 by its authors: recursive Llama models with
low-rank adapters of each applied layer, or with a factor for each channel after each recursion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from moeut.blocks.own import Adapters, Own
from moeut.config import ModelConfig
from moeut.interop.mapping import PROJECTIONS, RawOptions, TensorMap, load, rename
from moeut.interop.mor import (
    NORMS,
    SOURCE,
    Applied,
    applied_layers,
    depth_of,
    is_tied,
    listed,
    llama_config,
    norm_maps,
    outer_maps,
    section,
    without_copies,
)
from moeut.models import DecoderLM
from moeut.recurrence.schedule import Depth

PEFT = "base_model.model."
"""What the adapters' library puts before every name."""


def from_relaxed(options: dict[str, Any], state_dict: dict[str, Tensor]) -> DecoderLM:
    """Return the language model that the code makes of ``options`` with ``state_dict``.

    ``options`` are those of ``from_mor`` with ``method`` (``lora`` or ``recursion_encoding``) and,
    for ``lora``, a section with ``r``, ``scaling`` (by module) and ``target_modules``.

    Raises:
        ValueError: what an option asks for is not supported, tensors are missing, left over or of
            another shape, or tensors that are shared differ.
    """
    prefix = _prefix(options)
    config = relaxed_config(options, is_tied=is_tied(state_dict, prefix))
    own = without_copies(state_dict, _copies(config, options))
    ignore = (f"{prefix}lm_head.weight",) if config.tie_embeddings else ()
    return load(DecoderLM, config, relaxed_maps(config, options), own, ignore=ignore)


def relaxed_config(options: Mapping[str, Any], *, is_tied: bool = False) -> ModelConfig:
    """Return the model config of the code's options.

    Raises:
        ValueError: what an option asks for is not supported.
    """
    read = RawOptions(dict(options), source=SOURCE)
    method = read.word("method", ("lora", "recursion_encoding"))
    norms = not section(options, "recursive").boolean("ln_share", True)
    own = Own(norms=norms, encoding=True)
    if method == "lora":
        own = Own(norms=norms, adapters=_adapters(options))
    return llama_config(options, depth_of(options), is_tied=is_tied, own=own)


def _adapters(options: Mapping[str, Any]) -> Adapters:
    read = section(options, "lora")
    targets = set(_targets(options))
    dense = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
    if targets - dense.keys() - attention.keys():
        allowed = f"expected some of {', '.join([*attention, *dense])}"
        raise read.error("target_modules", sorted(targets), allowed)
    parts = tuple(ours for theirs, ours in dense.items() if theirs in targets)
    return Adapters(
        rank=read.integer("r"),
        **_factor(read, options),
        feed_forward=bool(parts),
        feed_forward_parts=parts if 0 < len(parts) < len(dense) else (),
        **{ours: theirs in targets for theirs, ours in attention.items()},
    )


def _factor(read: RawOptions, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the factor on changes, or alpha where modules of other ranks have others."""
    scaling = read.raw("scaling", None)
    if scaling is None:
        return {"alpha": read.number("alpha")}
    by_module = read.section("scaling") if isinstance(scaling, Mapping) else None
    values = (
        {name: by_module.number(name) for name in scaling}
        if by_module
        else {"": read.number("scaling")}
    )
    if len(set(values.values())) == 1:
        return {"scaling": next(iter(values.values()))}
    alphas = {round(v * _rank(name, read, options), 9) for name, v in values.items()}
    if len(alphas) != 1:
        odd = next(name for name in values if values[name] != next(iter(values.values())))
        said = "expected one factor, or one alpha, for all modules"
        raise read.error(f"scaling.{odd}", values[odd], said)
    return {"alpha": alphas.pop()}


def _rank(module: str, read: RawOptions, options: Mapping[str, Any]) -> int:
    """Return the rank of a module's change, which the code bounds by that of its weight."""
    all_options = RawOptions(dict(options), source=SOURCE)
    d_model, heads = all_options.integer("hidden"), all_options.integer("heads")
    keys = d_model // heads * all_options.integer("kv_heads", heads)
    inner = all_options.integer("intermediate")
    bounds = {
        "k_proj": keys,
        "v_proj": keys,
        "gate_proj": inner,
        "up_proj": inner,
        "down_proj": inner,
    }
    return min(read.integer("r"), d_model, bounds.get(module.rpartition(".")[2], d_model))


def relaxed_maps(config: ModelConfig, options: Mapping[str, Any]) -> list[TensorMap]:
    """Return where each tensor of the code belongs, shared ones by their first name."""
    maps = outer_maps(config, _prefix(options))
    for applied in _applied(config.depth, options):
        maps += norm_maps(applied, config)
        layer = f"decoder.layers.{applied.layer}"
        for theirs, ours in PROJECTIONS.items():
            name, is_adapted = f"{applied.theirs}.{theirs}", _is_adapted(theirs, options)
            is_adapted = is_adapted and applied.repeat is not None
            if not applied.repeat:
                whole = f"{name}.base_layer.weight" if is_adapted else f"{name}.weight"
                maps.append(rename(whole, f"{layer}.{ours}.weight"))
            if is_adapted:
                block, _, projection = ours.partition(".")
                adapter = f"{layer}.{block}.adapters.{projection}"
                maps += [
                    rename(
                        f"{name}.lora_{half}.default.weight", f"{adapter}.{part}.{applied.repeat}"
                    )
                    for half, part in (("A", "down"), ("B", "up"))
                ]
        if config.own.encoding and config.depth.ends_recursion(applied.layer):
            factor = f"{applied.theirs.removesuffix('.block')}.recursion_encoding"
            maps.append(rename(factor, f"{layer}.encoding.scale.{applied.repeat}"))
    return maps


def _prefix(options: Mapping[str, Any]) -> str:
    return PEFT if options.get("method") == "lora" else ""


def _is_adapted(projection: str, options: Mapping[str, Any]) -> bool:
    return projection.rpartition(".")[2] in _targets(options)


def _targets(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the projections that have adapters."""
    return listed(section(options, "lora").raw("target_modules", ())) or []


def _applied(depth: Depth, options: Mapping[str, Any]) -> Iterator[Applied]:
    """Yield the applications; a layer that a recursion ends with is wrapped, if it has a factor."""
    is_encoded = options.get("method") == "recursion_encoding"
    for applied in applied_layers(depth):
        wrapped = ".block" if is_encoded and depth.ends_recursion(applied.layer) else ""
        name = f"{_prefix(options)}{applied.theirs}{wrapped}"
        yield Applied(name, applied.layer, applied.repeat)


def _copies(config: ModelConfig, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    first: dict[int, str] = {}
    for applied in _applied(config.depth, options):
        theirs = first.setdefault(applied.layer, applied.theirs)
        if theirs == applied.theirs:
            continue
        for name in PROJECTIONS:
            middle = ".base_layer" if _is_adapted(name, options) else ""
            yield f"{applied.theirs}.{name}{middle}.weight", f"{theirs}.{name}{middle}.weight"
        for name in () if config.own.norms else NORMS:
            yield f"{applied.theirs}.{name}.weight", f"{theirs}.{name}.weight"
