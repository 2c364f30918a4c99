"""Kinds of feed-forward: one file each, with its options, its module, its roles and its work."""

from collections.abc import Mapping

from moeut.blocks.feed_forward.base import FeedForward, FeedForwardOptions
from moeut.blocks.feed_forward.dense import DenseFeedForward
from moeut.blocks.feed_forward.gated import GatedFeedForward
from moeut.blocks.feed_forward.sigma_moe import SigmaMoE

FEED_FORWARD: Mapping[str, type[FeedForwardOptions]] = {
    "dense": DenseFeedForward,
    "sigma_moe": SigmaMoE,
    "gated": GatedFeedForward,
}

__all__ = [
    "FEED_FORWARD",
    "DenseFeedForward",
    "FeedForward",
    "FeedForwardOptions",
    "GatedFeedForward",
    "SigmaMoE",
]
