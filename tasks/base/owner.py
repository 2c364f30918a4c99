"""Who holds a lease: one process of one machine, told apart from every other there has been."""

from __future__ import annotations

import functools
import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, as others find it in a file: on this machine, on another one, or long gone."""

    id: str
    """Random: no two leases have the same, not even two of one process."""
    host: str
    boot: str | None
    """The kernel's name for this start of the machine; None where it has none (macOS)."""
    namespace: str | None
    """Where the process number counts: containers of one machine number theirs apart."""
    pid: int
    started: int | None
    """Kernel ticks at the start of the process, since the number is given to another one later."""

    @classmethod
    def here(cls) -> Owner:
        """Return the running process under a new random id."""
        host, boot, namespace = _machine()
        return cls(
            id=secrets.token_hex(8),
            host=host,
            boot=boot,
            namespace=namespace,
            pid=os.getpid(),
            started=_started(),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_local(self) -> bool:
        """Whether the process is, or was, one whose number means something here."""
        return (self.host, self.boot, self.namespace) == _machine()

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to have ended; of another machine's nothing is known."""
        if not self.is_local:
            return False
        if self.started is None:
            return not _exists(self.pid)
        found = _stat(self.pid)
        # A zombie has ended and waits for its parent to ask how.
        return found is None or found[0] in "ZX" or int(found[19]) != self.started

    @property
    def is_running(self) -> bool:
        """Whether the process is known to run here, neither ended nor suspended (Ctrl-Z)."""
        if not self.is_local or self.is_dead:
            return False
        found = _stat(self.pid)
        return found is None or found[0] not in "Tt"

    def to_dict(self) -> dict[str, object]:
        """Return plain data, from which ``from_json`` makes the owner again."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: bytes) -> Owner | None:
        """Return the owner that a JSON object names, or None for any other content."""
        try:
            content = json.loads(text)
            return cls(**{name: content[name] for name in cls.__dataclass_fields__})
        except (ValueError, TypeError, KeyError):
            return None


@functools.cache
def _machine() -> tuple[str, str | None, str | None]:
    host = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return host, boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return host, None, None


def _started() -> int | None:
    found = _stat(os.getpid())
    return None if found is None else int(found[19])


def _stat(pid: int) -> list[str] | None:
    """Return what Linux says of a process from its state on; None if it says nothing.

    The state is the first field, the start the twentieth. The command's name before them may hold
    spaces and brackets itself.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
