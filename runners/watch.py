"""The page of a sweep under way: ``python -m runners.watch runs/quickstart``.

Serves report.html to this machine alone, with the progress of each run, the time left, loss curves,
and failures with their last lines. It reads what is on disk, writes nothing, and asks no run.
Ctrl-C ends it.
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from runners.config.yaml_nodes import ConfigError
from runners.reporting.html.document import PageUnavailable, plotting_library
from runners.reporting.html.live import live_data, live_page
from runners.reporting.results import load
from tasks.base.command_line import DONE, Parser, bad_input_in_one_line, exit_with
from tasks.base.console import make_console, say

PORT = 8765


class Server(ThreadingHTTPServer):
    """Serves the page of one sweep to this machine.

    Args:
        sweep: its directory.
        port: 0 for any that is free.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, sweep: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.sweep = sweep

    @property
    def address(self) -> str:
        """Return where a browser finds the page."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        answers = {"/": ("text/html", live_page), "/live.json": ("application/json", live_data)}
        if self.path not in answers:
            self.send_error(404)
            return
        kind, make = answers[self.path]
        try:
            body = make(load(self.server.sweep)).encode()
        except (ConfigError, OSError) as error:  # of files that change while they are read
            self.send_error(503, explain=str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing of requests."""


@bad_input_in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m runners.watch`` and return its exit status."""
    parser = Parser(
        prog="python -m runners.watch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", metavar="SWEEP", help="directory of a sweep, as runs/quickstart")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"0: any that is free (default: {PORT})"
    )
    options = parser.parse_args(arguments)
    load(options.sweep)
    try:
        plotting_library()
        server = Server(options.sweep, options.port)
    except PageUnavailable as error:
        raise ConfigError(str(error)) from error
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port {options.port}: {error}; --port 0 takes any") from error
    with server:
        say(make_console(), f"{options.sweep}: {server.address} (Ctrl-C ends it)")
        server.serve_forever()
    return DONE


if __name__ == "__main__":
    exit_with(main)
