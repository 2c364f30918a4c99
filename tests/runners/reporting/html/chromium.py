"""A Chromium for the tests of the page; as a script, one of npm's registry where there is none.

::

    python tests/runners/reporting/html/chromium.py FOLDER

prints the path of one that is there, or brings one into FOLDER (70 MB) and prints the path of that.
Where neither can be had, or it does not start, it says why on standard error; its status is 1.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PACKAGE = "@sparticuz/chromium@147"
"""A headless Chromium within a package of npm, which needs no download of another place."""
INFLATE = f"""
import chromium from "{PACKAGE.rpartition("@")[0]}";
console.log(await chromium.executablePath());
"""


def find() -> str | None:
    """Return the Chromium of MOEUT_BROWSER, of the path, or Playwright's own; None without any."""
    named = os.environ.get("MOEUT_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    return named or _of_playwright()


def _of_playwright() -> str | None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def bring(folder: Path) -> str:
    """Install npm's Chromium into a folder and return the path of what starts it.

    Raises:
        RuntimeError: it cannot be had; the message says why.
    """
    starter = folder / "chromium.sh"
    if starter.is_file():
        return str(starter)
    if shutil.which("npm") is None:
        raise RuntimeError("no Chromium, and no npm to bring one")
    unpacked = folder / "unpacked"
    unpacked.mkdir(parents=True, exist_ok=True)
    _run("npm", "install", "--silent", "--no-save", "--prefix", str(folder), PACKAGE)
    script = folder / "inflate.mjs"
    script.write_text(INFLATE)
    # It takes its own libraries along where it believes to be there for what it was made for.
    place = {"TMPDIR": str(unpacked), "AWS_LAMBDA_JS_RUNTIME": "nodejs22.x"}
    path = _run("node", str(script), **place).strip()
    libraries = shlex.quote(str(unpacked / "al2023" / "lib"))
    starter.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {shlex.quote(path)} "$@"\n', encoding="utf-8"
    )
    starter.chmod(0o755)
    return str(starter)


def _run(*command: str, **environment: str) -> str:
    try:
        ended = subprocess.run(
            command,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"no Chromium: {error}") from None
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"no Chromium: {command[0]} ends with {ended.returncode}: {lines[-1]}")
    return ended.stdout


def started(path: str) -> str:
    """Return the path of a Chromium that opens a page.

    Raises:
        RuntimeError: this one does not, as where a library of the system is missing.
    """
    _run(path, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "about:blank")
    return path


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{started(find() or bring(Path(sys.argv[1]).resolve()))}\n")
    except RuntimeError as error:
        sys.exit(str(error))
