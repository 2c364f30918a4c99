"""A stop is asked for once, and the handlers of before come back."""

import os
import signal
import subprocess
import sys

import pytest

from runners.process import signals


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)],
)
def test_signal_asks_for_a_stop(number, status):
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    with signals.Stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_status == status
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before


def test_request_without_a_signal():
    stop = signals.Stop()
    stop.request()
    assert stop.requested
    assert stop.exit_status == signals.RESUMABLE


def test_stop_that_the_ranks_agree_on_has_their_status():
    stop = signals.Stop()
    stop.adopt(signals.INTERRUPTED)
    assert stop.requested
    assert stop.exit_status == 130


def test_handlers_can_stay_to_the_end():
    before = {each: signal.getsignal(each) for each in signals.SIGNALS}
    try:
        with signals.Stop(restore=False) as stop:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_reader_that_has_gone_is_no_traceback(capfd):
    def main():
        raise BrokenPipeError

    with capfd.disabled():
        kept = os.dup(1)
        try:
            with pytest.raises(SystemExit) as caught:
                signals.exit_with(main)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    assert caught.value.code == signals.RESUMABLE


def test_interrupt_before_the_command_listens(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        signals.exit_with(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def hear_interrupts():
    """Undo what a shell does to the commands that it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("command", ["sweep", "train", "evaluate", "report", "generate", "bench"])
def test_interrupt_while_a_command_imports(command, tmp_path):
    slow = tmp_path / "argparse.py"  # which every command imports, and Python's own start does not
    slow.write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", f"runners.{command}", "--help"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted\n")


def test_interrupts_that_were_ignored_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signals.end_at_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
