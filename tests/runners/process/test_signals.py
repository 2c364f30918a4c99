"""A stop is asked for once, and the handlers of before come back."""

import os
import signal

import pytest

from runners.process import signals
from tasks.base.command_line import INTERRUPTED, RESUMABLE


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
    assert stop.exit_status == RESUMABLE


def test_stop_that_the_ranks_agree_on_has_their_status():
    stop = signals.Stop()
    stop.adopt(INTERRUPTED)
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
