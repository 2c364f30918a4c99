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
        values = ", ".join(f"{short[key]}={compact(value)}" for key, value in point.items())
        labels.append(f"{variant} ({values})" if values else variant)
    times = Counter(labels)
    return [
        f"{label} {digest}" if times[label] > 1 else label
        for label, (_, _, digest) in zip(labels, settings, strict=True)
    ]
