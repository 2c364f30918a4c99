"""One line and a telling status, whatever ends a command."""

import os
import signal
import subprocess
import sys

import pytest

from tasks.base.command_line import bad_input_in_one_line, exit_with


def status_of(main, **options):
    with pytest.raises(SystemExit) as caught:
        exit_with(main, **options)
    return caught.value.code


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), (75, 75)])
def test_status_is_what_the_command_returns(returned, status):
    assert status_of(lambda: returned) == status


def test_interrupt_is_one_line(capsys):
    def main():
        raise KeyboardInterrupt

    assert status_of(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_interrupt_is_heard_though_the_imports_before_had_their_own_answer():
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        assert status_of(lambda: os.kill(os.getpid(), signal.SIGINT)) == 130
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_bad_input_is_one_line(kind, capsys):
    @bad_input_in_one_line
    def main(arguments):
        raise kind(f"{arguments}:\n  wrong")

    assert main("x") == 2
    assert capsys.readouterr().err == "x: wrong\n"


@pytest.mark.parametrize("kind", [BrokenPipeError, RuntimeError])
def test_other_errors_come_through(kind):
    @bad_input_in_one_line
    def main():
        raise kind

    with pytest.raises(kind):
        main()


@pytest.mark.parametrize("status", [75, 0])
def test_reader_that_has_gone_is_no_traceback(status):
    """What is still in the buffer at the end counts too."""
    code = (
        f"from tasks.base.command_line import *; exit_with(lambda: print(7), reader_gone={status})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read()
    assert (process.wait(timeout=30), error) == (status, b"")


def run_in(encoding, code, *arguments):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    code = f"from tasks.base.command_line import exit_with\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        timeout=60,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", b"0.5 ? 0.1\n"), ("latin-1", b"0.5 \xb1 0.1\n"), ("utf-8", b"0.5 \xc2\xb1 0.1\n")],
)
def test_what_the_encoding_lacks_is_replaced(encoding, shown):
    ended = run_in(encoding, "exit_with(lambda: print('0.5 \\u00b1 0.1'))")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, shown, b"")
    ended = run_in(encoding, "exit_with(lambda: print('a\\ud800b'))")
    assert (ended.returncode, ended.stdout) == (0, b"a?b\n")


def test_help_is_printed_in_any_encoding():
    code = (
        "from tasks.base.command_line import Parser\n"
        "exit_with(Parser(prog='x', description='a \\u2013 b').parse_args)"
    )
    ended = run_in("ascii", code, "--help")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"a ? b" in ended.stdout


def test_help_without_a_reader():
    code = (
        "from tasks.base.command_line import exit_with\n"
        "from tasks.base.command_line import Parser\n"
        "exit_with(Parser(prog='x', description='long ' * 9999).parse_args)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read()
    assert (process.wait(timeout=30), error) == (75, b"")


def test_reader_of_both_streams_has_gone():
    code = (
        "import sys\nfrom tasks.base.command_line import exit_with\n"
        "def main():\n"
        "    for n in range(100_000): print(n)\n"
        "    print('problem', file=sys.stderr)\n"
        "exit_with(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 75


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere(closed, tmp_path):
    code = (
        "import os, sys\n"
        "from tasks.base.console import make_console\n"
        "from tasks.base.command_line import exit_with\n"
        "def main():\n"
        "    file = open(sys.argv[1], 'w')\n"
        "    print('out'); make_console().print('out'); print('error', file=sys.stderr)\n"
        "    os.write(1, b'raw'); file.write('content')\n"
        "    return 75\n"
        "exit_with(main)"
    )
    path = tmp_path / "file"
    command = [sys.executable, "-c", code, str(path)]
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command], capture_output=True, check=False
    )
    assert ended.returncode == 75
    assert path.read_text() == "content"
    assert b"Traceback" not in ended.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_is_full_is_one_line():
    code = "from tasks.base.command_line import exit_with\nexit_with(lambda: print('text'))"
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == b"standard output: [Errno 28] No space left on device\n"
