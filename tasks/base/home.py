"""The user's home directory, which containers and batch jobs may lack."""

from __future__ import annotations

from pathlib import Path

from tasks.base.options import OptionError


class NoHome(ValueError):
    """There is no home directory for a default that lies below it."""


def below_home(*names: str, variable: str) -> Path:
    """Return a path below the home directory.

    Args:
        names: parts of the path.
        variable: what the user can set in place of it, for the message.

    Raises:
        NoHome: the user has no home directory.
    """
    try:
        return Path.home().joinpath(*names)
    except RuntimeError:
        raise NoHome(
            f"this user has no home directory for {'/'.join(('~', *names))}; set {variable} to a "
            "folder that may be written to"
        ) from None


def expand_user(name: str, option: str) -> Path:
    """Return a path that a user gave, its ``~`` or ``~name`` replaced.

    Args:
        name: the path as given.
        option: dotted path of the option that gave it, such as ``task.train``.

    Raises:
        OptionError: there is no such user, or it has no home directory.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        user = name.split("/")[0]
        reason = "no home directory; set HOME" if user == "~" else f"no home directory of {user}"
        raise OptionError(option, name, f"{reason}, or write the whole path") from None
