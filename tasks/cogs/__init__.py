"""COGS: sentences to logical forms, as published and generated with free depth."""

from tasks.cogs.like import CogsLike
from tasks.cogs.official import Cogs
from tasks.cogs.recogs import Recogs
from tasks.cogs.variants import CogsVariant

__all__ = ["Cogs", "CogsLike", "CogsVariant", "Recogs"]
