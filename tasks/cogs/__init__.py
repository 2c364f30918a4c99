"""COGS: sentences to logical forms, as published and generated with free depth."""

from tasks.cogs.like import CogsLike
from tasks.cogs.official import Cogs

__all__ = ["Cogs", "CogsLike"]
