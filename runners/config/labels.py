"""What grid values and settings are called in tables, legends and progress lines.

Names are read by people and also used to tell settings apart, so no two settings share one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.base.options import exact_text


def compact(value: Any) -> str:
    """Return a grid value in few characters, none of which is lost."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return exact_text(value) if isinstance(value, float) else str(value)


def grid_values(point: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[str]:
    """Return ``key=value`` of each value of a grid point, the keys by other ``names`` if given."""
    return [f"{names[key] if names else key}={compact(value)}" for key, value in point.items()]


def setting_name(variant: str, point: Mapping[str, Any]) -> str:
    """Return what a setting is called where no other one is known: variant, keys and values."""
    return " ".join([variant, *grid_values(point)])


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return for each dotted path its shortest ending that no other one has.

    ``train.steps`` is ``steps``; beside ``model.dropout``, ``model.attention.dropout`` is
    ``attention.dropout``, and the first keeps its whole path.
    """
    paths = list(dict.fromkeys(keys))
    endings = Counter(ending for path in paths for ending in _endings(path))
    return {
        path: next((ending for ending in _endings(path) if endings[ending] == 1), path)
        for path in paths
    }


def _endings(path: str) -> list[str]:
    words = path.split(".")
    return [".".join(words[start:]) for start in reversed(range(len(words)))]


def setting_labels(settings: Sequence[tuple[str, Mapping[str, Any], str]]) -> list[str]:
    """Return a label for each (variant, grid point, hash), no two of them equal.

    A label is the variant and its grid values; where that is the same for two, as for runs of an
    earlier config that are still on the disk, the hash stands behind it.
    """
    short = short_keys(key for _, point, _ in settings for key in point)
    labels = []
    for variant, point, _ in settings:
        values = ", ".join(grid_values(point, short))
        labels.append(f"{variant} ({values})" if values else variant)
    times = Counter(labels)
    return [
        f"{label} {digest}" if times[label] > 1 else label
        for label, (_, _, digest) in zip(labels, settings, strict=True)
    ]
