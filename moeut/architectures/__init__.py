"""Named architectures: what a configuration file says of a model, to its config.

An architecture is a function that returns defaults for the tree of ``moeut.config.Blueprint``, as
plain data; what a file says is merged over it. ``ARCHITECTURES`` is the whole menu.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from moeut.architectures.injecting import abacus, huginn, looped, parcae
from moeut.architectures.recursive import mor_expert, mor_token, relaxed_recursive
from moeut.budget import with_free_options
from moeut.config import Form, ModelConfig
from moeut.design import Blueprint
from moeut.options import OptionError, Options, kinds_of, nearest, nested_of, type_hints
from moeut.sizing import match_parameters as sized_to

VOCABULARY_SIZE = 8000

Tree = dict[str, Any]
"""Options as plain data: what YAML holds."""


def transformer() -> Tree:
    """The dense Transformer, every layer distinct."""
    return {
        "depth": {"group": 4, "repeats": 1},
        "attention": {"kind": "dense"},
        "feed_forward": {"kind": "dense"},
    }


def universal() -> Tree:
    """The Universal Transformer: one dense layer (or a small group) repeated in depth."""
    return transformer() | {"depth": {"group": 1, "repeats": 4}}


def sigma_moe() -> Tree:
    """σ-MoE without sharing: every layer distinct, one value and output projection per head,
    both gated."""
    return {
        "depth": {"group": 4, "repeats": 1},
        "attention": {"kind": "dense", "gates": "value_and_output"},
        "feed_forward": {"kind": "sigma_moe"},
        "norm": "peri",
        "initialization": "moeut",
    }


def moeut() -> Tree:
    """MoEUT: a group of layers repeated in depth, σ-MoE feed-forward, SwitchHead attention."""
    return sigma_moe() | {
        "depth": {"group": 2, "repeats": 2},
        "attention": {"kind": "switch_head"},
    }


def ndr() -> Tree:
    """The Neural Data Router: a repeated layer with geometric attention, whose copy gate keeps or
    replaces the state of each token."""
    return {
        "depth": {"group": 1, "repeats": 4},
        "attention": {"kind": "geometric"},
        "feed_forward": {"kind": "dense", "hidden_size": 256},
        "position": {"kind": "none"},
        "norm": "post",
        "update": {"kind": "copy_gate"},
        "initialization": "normal",
    }


def ndr_gate() -> Tree:
    """The Neural Data Router without geometric attention: a gate mixes relative with absolute
    positions, and what the copy gate lets in passes tanh."""
    return ndr() | {
        "attention": {"kind": "dense"},
        "feed_forward": {"kind": "dense", "hidden_size": 512},
        "position": {"kind": "relative", "learned_scale": True, "absolute_gate": True},
        "update": {"kind": "copy_gate", "proposal": "tanh"},
    }


def universal_act() -> Tree:
    """The Universal Transformer as published: coordinates of position and step before each repeat,
    and adaptive computation time for each token."""
    return universal() | {
        "depth": {"group": 1, "repeats": 8},
        "conditioning": {"kind": "coordinates"},
        "halting": {"kind": "act", "average": "running", "cost": "ponder", "initial_bias": 1.0},
        "position": {"kind": "none"},
        "embedding_scale": "sqrt_d_model",
    }


def sut() -> Tree:
    """The Sparse Universal Transformer: one layer of experts, in feed-forward and attention, from
    which each token breaks off parts until it halts."""
    return {
        "depth": {"group": 1, "repeats": 6},
        "halting": {"kind": "stick_breaking"},
        "attention": {"kind": "mixture_of_attention"},
        "feed_forward": {"kind": "softmax_moe", "expert_size": 128},
        "position": {"kind": "clipped"},
        "norm": "post",
        "norm_input": True,
        "embedding_scale": "sqrt_d_model",
        "initialization": "moeut",
    }


def ouro() -> Tree:
    """Ouro: a looped language model whose gate says where a token may leave; each loop ends with a
    norm, and training weighs the losses of all loops by their exits."""
    return {
        "depth": {"group": 2, "repeats": 4},
        "halting": {"kind": "exit_gate", "entropy_weight": 0.05},
        "attention": {"kind": "dense"},
        "feed_forward": {"kind": "gated"},
        "position": {"kind": "rotary", "fraction": 1.0},
        "norm": "branch",
        "norm_kind": "rms",
        "norm_epsilon": 1e-6,
        "repeat_norm": True,
        "head_bias": False,
    }


def ponder() -> Tree:
    """PonderNet on a Universal Transformer: exits drawn to a geometric prior, and in evaluation a
    draw that says where each token leaves."""
    return universal() | {"depth": {"group": 1, "repeats": 8}, "halting": {"kind": "ponder"}}


def trm() -> Tree:
    """The Tiny Recursive Model: two layers that revise an answer and a latent state in turn, again
    and again, trained pass by pass (arXiv 2510.04871)."""
    return {
        "depth": {"group": 2, "repeats": 3},
        "recursion": {"kind": "two_level", "low_cycles": 6},
        "carry": {"steps": 16, "halting": "right"},
        "attention": {"kind": "dense"},
        "feed_forward": {"kind": "gated"},
        "position": {"kind": "rotary", "fraction": 1.0},
        "norm": "post",
        "norm_kind": "rms",
        "norm_weights": False,
        "embedding_scale": "sqrt_d_model",
        "head_bias": False,
        "initialization": "lecun",
    }


def hrm() -> Tree:
    """The Hierarchical Reasoning Model: a fast and a slow network of four layers each, of whose
    updates the very last alone has a gradient (arXiv 2506.21734)."""
    return trm() | {
        "depth": {"group": 4, "repeats": 2},
        "recursion": {
            "kind": "two_level",
            "low_cycles": 2,
            "networks": "two",
            "gradient": "last_updates",
        },
        "carry": {"steps": 16, "halting": "value"},
    }


def urm() -> Tree:
    """The Universal Reasoning Model: a loop of four layers with a short convolution in their
    feed-forwards, gradients through its last rounds alone (arXiv 2512.14693)."""
    return trm() | {
        "depth": {"group": 4, "repeats": 2},
        "recursion": {"kind": "single", "low_cycles": 6},
        "feed_forward": {"kind": "gated", "short_convolution": 2},
    }


ARCHITECTURES: Mapping[str, Callable[[], Tree]] = {
    "transformer": transformer,
    "universal": universal,
    "moeut": moeut,
    "sigma_moe": sigma_moe,
    "ndr": ndr,
    "ndr_gate": ndr_gate,
    "universal_act": universal_act,
    "trm": trm,
    "hrm": hrm,
    "urm": urm,
    "sut": sut,
    "ouro": ouro,
    "ponder": ponder,
    "huginn": huginn,
    "parcae": parcae,
    "abacus": abacus,
    "relaxed_recursive": relaxed_recursive,
    "mor_expert": mor_expert,
    "mor_token": mor_token,
    "looped": looped,
}


def blueprint(section: Mapping[str, Any], *, budgets: Collection[str] = ()) -> Blueprint:
    """Return the options that a section ``model`` of a configuration file says.

    The section names an ``architecture`` or a ``preset``, and any keys of ``Blueprint`` over its
    defaults. Another ``kind`` of a block drops the defaults of that block; ``encoder_depth`` says
    what differs from ``depth``. What ``budgets`` size (``moeut.budget.free_options``) cannot be
    given too, and that of a preset gives way.

    Raises:
        OptionError: an unknown name or key, a value of a wrong type, or sizes that do not fit.
    """
    given = dict(section)
    tree = _merge(Blueprint, _defaults(given), given)
    if isinstance(tree.get("encoder_depth"), Mapping) and isinstance(tree["depth"], Mapping):
        tree["encoder_depth"] = {**tree["depth"], **tree["encoder_depth"]}
    return with_free_options(tree, given, budgets) if budgets else Blueprint.from_dict(tree)


def configure(
    blueprint: Blueprint,
    *,
    form: Form,
    vocabulary_size: int,
    source_vocabulary_size: int | None = None,
    num_classes: int | None = None,
    match_parameters: int | None = None,
) -> ModelConfig:
    """Return the config of a blueprint for the vocabularies of a task.

    With ``match_parameters`` the feed-forward is sized to that many parameters, see
    ``moeut.sizing.match_parameters``.

    Raises:
        OptionError: an option of another form, a size that the form lacks or does not take, or a
            budget below the smallest model.
    """
    options = {f.name: getattr(blueprint, f.name) for f in dataclasses.fields(Blueprint)}
    config = ModelConfig(
        **options,
        form=form,
        vocabulary_size=vocabulary_size,
        source_vocabulary_size=source_vocabulary_size,
        num_classes=num_classes,
    )
    return config if match_parameters is None else sized_to(config, match_parameters)


def architecture(
    name: str,
    *,
    form: Form,
    vocabulary_size: int,
    source_vocabulary_size: int | None = None,
    num_classes: int | None = None,
    match_parameters: int | None = None,
    **options: Any,
) -> ModelConfig:
    """Return the config of a named architecture, its defaults changed by ``options``.

    ``options`` are the keys of ``Blueprint``, blocks as mappings or words::

        architecture("moeut", form="decoder_lm", vocabulary_size=8000, depth={"repeats": 9})

    Raises:
        OptionError: as ``blueprint`` and ``configure``.
    """
    return configure(
        blueprint({"architecture": name, **options}, budgets=_budgets(match_parameters)),
        form=form,
        vocabulary_size=vocabulary_size,
        source_vocabulary_size=source_vocabulary_size,
        num_classes=num_classes,
        match_parameters=match_parameters,
    )


def preset(
    name: str,
    *,
    form: Form = "decoder_lm",
    vocabulary_size: int = VOCABULARY_SIZE,
    source_vocabulary_size: int | None = None,
    num_classes: int | None = None,
    match_parameters: int | None = None,
    **options: Any,
) -> ModelConfig:
    """Return the config of one of ``PRESETS``, changed by ``options``.

    Left out, form and vocabulary are those of the paper's language models.

    Raises:
        OptionError: as ``blueprint`` and ``configure``.
    """
    return configure(
        blueprint({"preset": name, **options}, budgets=_budgets(match_parameters)),
        form=form,
        vocabulary_size=vocabulary_size,
        source_vocabulary_size=source_vocabulary_size,
        num_classes=num_classes,
        match_parameters=match_parameters,
    )


def _budgets(match_parameters: int | None) -> tuple[str, ...]:
    return () if match_parameters is None else ("parameters",)


# --- merging ----------------------------------------------------------------------------


def _defaults(given: Tree) -> Tree:
    """Take ``architecture`` or ``preset`` out of ``given``; return the defaults it stands for."""
    name, chosen = given.pop("preset", None), given.pop("architecture", None)
    if name is None:
        return ARCHITECTURES[_named("architecture", chosen, ARCHITECTURES)]()
    if chosen is not None:
        said = f"expected either architecture or preset, which is {name!r}"
        raise OptionError("architecture", chosen, said)
    from moeut.presets import PRESETS  # sizes of published models, which few runs name

    tree = dict(PRESETS[_named("preset", name, PRESETS)])
    return _merge(Blueprint, ARCHITECTURES[tree.pop("architecture")](), tree)


def _named(option: str, name: Any, registry: Mapping[str, Any]) -> str:
    """Return ``name`` if ``registry`` has it."""
    if not isinstance(name, str) or name not in registry:
        missing = "" if name is not None else "missing (or a preset); "
        said = f"{missing}expected one of {', '.join(registry)}{nearest(name, registry)}"
        raise OptionError(option, name, said)
    return name


def _merge(cls: type[Options], base: Mapping[str, Any], change: Mapping[str, Any]) -> Tree:
    """Return ``base`` with ``change`` over it; blocks of one kind are merged key by key."""
    merged = dict(base)
    for name, value in change.items():
        old = merged.get(name)
        if name not in type_hints(cls):
            merged[name] = value  # refused by its name when the options are read
        elif kinds_of(cls, name) is not None:
            merged[name] = _merge_kind(old, value)
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            nested = nested_of(cls, name)
            merged[name] = {**old, **value} if nested is None else _merge(nested, old, value)
        else:
            merged[name] = value
    return merged


def _merge_kind(old: Any, new: Any) -> Any:
    """Return a block with ``new`` over ``old``, whose keys are dropped if the kind changes."""
    old, new = ({"kind": each} if isinstance(each, str) else each for each in (old, new))
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    same = new.get("kind", old.get("kind")) == old.get("kind")
    return {**old, **new} if same else dict(new)


__all__ = ["ARCHITECTURES", "architecture", "blueprint", "configure", "preset"]
