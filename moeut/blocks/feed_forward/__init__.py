"""Kinds of feed-forward: one file each, with its options, its module, its roles and its work."""

from typing import TYPE_CHECKING

from moeut.blocks.feed_forward.base import FeedForward, FeedForwardOptions
from moeut.options import Kinds

if TYPE_CHECKING:
    from moeut.blocks.feed_forward.convolutional import ConvolutionalFeedForward
    from moeut.blocks.feed_forward.dense import DenseFeedForward
    from moeut.blocks.feed_forward.gated import GatedFeedForward
    from moeut.blocks.feed_forward.sigma_moe import SigmaMoE
    from moeut.blocks.feed_forward.softmax_moe import SoftmaxMoE

FEED_FORWARD: Kinds[FeedForwardOptions] = Kinds(
    {
        "dense": "moeut.blocks.feed_forward.dense:DenseFeedForward",
        "sigma_moe": "moeut.blocks.feed_forward.sigma_moe:SigmaMoE",
        "gated": "moeut.blocks.feed_forward.gated:GatedFeedForward",
        "softmax_moe": "moeut.blocks.feed_forward.softmax_moe:SoftmaxMoE",
        "convolutional": "moeut.blocks.feed_forward.convolutional:ConvolutionalFeedForward",
    }
)
"""Every kind by name, imported when it is taken."""

__all__ = [
    "FEED_FORWARD",
    "ConvolutionalFeedForward",
    "DenseFeedForward",
    "FeedForward",
    "FeedForwardOptions",
    "GatedFeedForward",
    "SigmaMoE",
    "SoftmaxMoE",
]

if not TYPE_CHECKING:  # so that type checkers still know a name that is not there
    __getattr__ = FEED_FORWARD.export
