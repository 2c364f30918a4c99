"""What is run: ``python -m runners.sweep`` and the other commands, and what they are made of."""

import importlib.util as _util
import sys as _sys
from pathlib import Path as _Path


def _check_neighbours(folder: _Path, names: tuple[str, ...] = ("tasks", "moeut")) -> None:
    """Refuse a module of the user's that has the name of one of the packages beside this one.

    Python looks in the working folder first, and would end with a traceback from deep inside.
    """
    for name in names:
        spec = _util.find_spec(name)
        found = (
            None
            if spec is None
            else spec.origin or next(iter(spec.submodule_search_locations or ()), None)
        )
        if found is None or _Path(found).resolve().is_relative_to(folder / name):
            continue
        text = (
            f"{found}: hides the suite's package {name!r}, since Python looks in the working "
            "folder first; rename it, work in another folder, or start python with -P"
        )
        if _sys.argv[:1] == ["-m"]:  # a command, which Python is just looking up
            print(text, file=_sys.stderr)
            raise SystemExit(2)
        raise ImportError(text)


_check_neighbours(_Path(__file__).resolve().parents[1])
