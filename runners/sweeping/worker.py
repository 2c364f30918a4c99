"""A process that executes one run after another: the far end of ``LocalExecutor``.

Serving several saves the seconds that importing torch takes. Orders come over the standard input,
messages go over the standard output, one line of JSON each. An input that ends without an order to
quit means that the driver has died: the worker ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from runners.config.schema import ConfigError
from runners.process.messages import Ended, Message, OnProgress, Ready, encode
from runners.process.run_directory import RunDirectory
from runners.process.signals import Stop, Stopped
from runners.run import run
from tasks.base.command_line import DONE, RESUMABLE, print_what_can_be
from tasks.base.lease import Locked

POLL_SECONDS = 0.2


def work(orders: BinaryIO, messages: BinaryIO) -> int:
    """Serve orders until told to quit, and return the exit status."""

    def send(message: Message) -> None:
        try:
            messages.write(encode(message))
            messages.flush()
        except BrokenPipeError:
            os._exit(RESUMABLE)  # the driver has died; no failure of the run

    with Stop() as stop:
        directories: queue.Queue[Path | None] = queue.Queue()
        threading.Thread(target=_listen, args=(orders, directories, stop), daemon=True).start()
        send(Ready())
        while True:
            try:
                directory = directories.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if stop.signal is not None:
                    return RESUMABLE
                continue
            if directory is None:
                return DONE
            _log_to(RunDirectory(directory).log)
            send(_execute(directory, stop, send))


def _execute(directory: Path, stop: Stop, on_progress: OnProgress) -> Ended:
    try:
        status = run(directory, stop=stop, on_progress=on_progress)
    except Stopped as stopped:
        return Ended("stopped", str(stopped))
    except Locked as error:
        return Ended("busy", str(error))
    except ConfigError as error:
        return Ended("refused", str(error))
    except OSError as error:  # no room for a lease, or for writing down why the run has failed
        return Ended("failed", str(error))
    return Ended(status, RunDirectory(directory).failure() if status == "failed" else None)


def _listen(orders: BinaryIO, directories: queue.Queue[Path | None], stop: Stop) -> None:
    for line in orders:
        order = json.loads(line)
        if order["order"] == "quit":
            directories.put(None)
            return
        if order["order"] == "stop":
            stop.request()
        else:
            directories.put(Path(order["directory"]))
    # The driver has died. Whatever the main thread is doing, checkpoints are whole or not there.
    os._exit(RESUMABLE)


def _log_to(path: Path) -> None:
    """Send what this process and its libraries print into the run's log."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stderr.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()}\n")
    sys.stderr.flush()


def main() -> int:
    """Serve a driver over the standard input and output."""
    print_what_can_be()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    # A private copy of the pipe: a library that prints must not write into the messages.
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return work(sys.stdin.buffer, messages)


if __name__ == "__main__":
    sys.exit(main())
