"""Kinds of attention: one file each, with its options, its module, its roles and its work."""

from collections.abc import Mapping

from moeut.blocks.attention.base import (
    Attention,
    AttentionContext,
    AttentionOptions,
    AttentionOutput,
    KeyValueStore,
    Participation,
    Source,
)
from moeut.blocks.attention.dense import DenseAttention
from moeut.blocks.attention.geometric import GeometricAttention
from moeut.blocks.attention.switch_head import SwitchHead

ATTENTION: Mapping[str, type[AttentionOptions]] = {
    "dense": DenseAttention,
    "switch_head": SwitchHead,
    "geometric": GeometricAttention,
}

__all__ = [
    "ATTENTION",
    "Attention",
    "AttentionContext",
    "AttentionOptions",
    "AttentionOutput",
    "DenseAttention",
    "GeometricAttention",
    "KeyValueStore",
    "Participation",
    "Source",
    "SwitchHead",
]
