"""The option that rounds the weights of a model while it is scored or writes."""

from __future__ import annotations

import argparse

from moeut.token_pass import WEIGHTS


def add_weights_argument(parser: argparse._ActionsContainer) -> None:
    """Add the option that names what weights are rounded to."""
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="float32",
        help="bfloat16 rounds the model's matrices; what a CPU reads for a token that it writes is "
        "then half as much (float32)",
    )
