"""Kinds of position: one file for those that act in one place, with options, modules and tables."""

from typing import TYPE_CHECKING

from moeut.blocks.positions.added import (
    Learned,
    LearnedPositions,
    Sinusoidal,
    SinusoidalPositions,
    sinusoids,
)
from moeut.blocks.positions.base import (
    AbsolutePositions,
    Entry,
    LogitPosition,
    NoPosition,
    PositionOptions,
    PositionTables,
    RotaryTables,
)
from moeut.blocks.positions.relative import (
    Distances,
    Relative,
    RelativePosition,
    align_distances,
    ragged_distances,
    regular_distances,
)
from moeut.blocks.positions.rotary import Rotary, rotary_tables, rotate
from moeut.options import Kinds

if TYPE_CHECKING:
    from moeut.blocks.positions.abacus import Abacus
    from moeut.blocks.positions.clipped import Clipped
    from moeut.blocks.positions.fire import Fire

_ADDED: dict[str, type[PositionOptions] | str] = {
    "sinusoidal": Sinusoidal,
    "learned": Learned,
    "abacus": "moeut.blocks.positions.abacus:Abacus",
}
POSITION: Kinds[PositionOptions] = Kinds(
    {
        "none": NoPosition,
        "rotary": Rotary,
        "relative": Relative,
        **_ADDED,
        "clipped": "moeut.blocks.positions.clipped:Clipped",
        "fire": "moeut.blocks.positions.fire:Fire",
    }
)
"""Every kind by name, the rarer ones imported when they are taken."""

INPUT_POSITION: Kinds[PositionOptions] = Kinds({"none": NoPosition, **_ADDED})
"""Those that are added to the embedded tokens, which others may stand beside."""

__all__ = [
    "INPUT_POSITION",
    "POSITION",
    "Abacus",
    "AbsolutePositions",
    "Clipped",
    "Distances",
    "Entry",
    "Fire",
    "Learned",
    "LearnedPositions",
    "LogitPosition",
    "NoPosition",
    "PositionOptions",
    "PositionTables",
    "Relative",
    "RelativePosition",
    "Rotary",
    "RotaryTables",
    "Sinusoidal",
    "SinusoidalPositions",
    "align_distances",
    "ragged_distances",
    "regular_distances",
    "rotary_tables",
    "rotate",
    "sinusoids",
]

if not TYPE_CHECKING:  # so that type checkers still know a name that is not there
    __getattr__ = POSITION.export
