"""Kinds of attention: one file each, with its options, its module, its roles and its work."""

from typing import TYPE_CHECKING

from moeut.blocks.attention.base import Attention, AttentionOptions
from moeut.blocks.attention.context import (
    AttentionContext,
    AttentionOutput,
    KeyValueStore,
    Participation,
    Source,
)
from moeut.options import Kinds

if TYPE_CHECKING:
    from moeut.blocks.attention.dense import DenseAttention
    from moeut.blocks.attention.geometric import GeometricAttention
    from moeut.blocks.attention.mixture import MixtureOfAttention
    from moeut.blocks.attention.switch_head import SwitchHead
    from moeut.blocks.attention.token_mixing import TokenMixing

ATTENTION: Kinds[AttentionOptions] = Kinds(
    {
        "dense": "moeut.blocks.attention.dense:DenseAttention",
        "switch_head": "moeut.blocks.attention.switch_head:SwitchHead",
        "geometric": "moeut.blocks.attention.geometric:GeometricAttention",
        "mixture_of_attention": "moeut.blocks.attention.mixture:MixtureOfAttention",
        "token_mixing": "moeut.blocks.attention.token_mixing:TokenMixing",
    }
)
"""Every kind by name, imported when it is taken."""

__all__ = [
    "ATTENTION",
    "Attention",
    "AttentionContext",
    "AttentionOptions",
    "AttentionOutput",
    "DenseAttention",
    "GeometricAttention",
    "KeyValueStore",
    "MixtureOfAttention",
    "Participation",
    "Source",
    "SwitchHead",
    "TokenMixing",
]

if not TYPE_CHECKING:  # so that type checkers still know a name that is not there
    __getattr__ = ATTENTION.export
