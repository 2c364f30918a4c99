"""The configs that ship with the suite, found by name wherever one stands.

``quickstart`` is ``configs/quickstart.yaml`` and ``cogs/small`` is ``configs/cogs/small.yaml``: of
the checkout that the packages lie in, or of what was installed with them.
"""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path

from runners.config.yaml_nodes import ConfigError
from tasks.base.options import nearest

DISTRIBUTION = "moeut-suite"
INSTALLED = "share/moeut-suite/configs/"
"""Where a wheel has them, below the environment."""


@functools.cache
def shipped_configs(packages: Path = Path(__file__).parents[2]) -> dict[str, Path]:
    """Return name → file of each config that ships; none where only the packages were copied.

    Args:
        packages: folder that holds the packages.
    """
    folder = packages / "configs"
    if (packages / "pyproject.toml").is_file() and folder.is_dir():
        return {
            path.relative_to(folder).with_suffix("").as_posix(): path
            for path in sorted(folder.rglob("*.yaml"))
        }
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    listed = {file.as_posix().partition(INSTALLED)[2]: file for file in files}
    return {
        name.removesuffix(".yaml"): Path(str(file.locate())).resolve()
        for name, file in listed.items()
        if name
    }


def find_config(given: str | Path) -> Path:
    """Return the file that a command line names: a path, or a config that ships.

    A file that is there goes before a shipped one of the same name. What is neither is returned as
    it is, so that reading it says what is wrong; but for a bare name.

    Raises:
        ConfigError: a bare name, such as ``quikstart``, of nothing that ships.
    """
    path = Path(given)
    try:
        if path.is_file():
            return path
    except OSError:  # such as a name that is too long
        return path
    shipped = shipped_configs()
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    if path.suffix or path.exists() or not shipped:
        return path
    raise ConfigError(
        f"no such file, and no config of that name ships with the suite{nearest(name, shipped)}",
        place=str(given),
    )
