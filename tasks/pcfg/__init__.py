"""Functions of strings: PCFG SET as published, and rows of the same rules without its files."""

from tasks.pcfg.like import StringFunctions
from tasks.pcfg.official import PcfgSet

__all__ = ["PcfgSet", "StringFunctions"]
