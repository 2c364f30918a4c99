"""All ranks stop at one step, and know what rank 0 did for them."""

from types import SimpleNamespace

import pytest

from runners.process.ranks import Agreement, World
from runners.process.signals import Stop, Stopped


def test_a_signal_during_the_agreement_waits_for_the_next_step():
    """The other ranks have not heard of it: to stop now would leave them waiting for this one."""
    stop = Stop()

    def largest(number):
        stop.request()
        return number

    agreement = Agreement(SimpleNamespace(size=2, largest=largest), stop)
    assert [agreement.stop_requested(), agreement.stop_requested()] == [False, True]


def test_the_stop_of_another_rank_is_adopted_with_its_exit_status():
    stop = Stop()
    agreement = Agreement(SimpleNamespace(size=2, largest=lambda number: 130), stop)
    assert agreement.stop_requested()
    assert stop.requested
    assert stop.exit_status == 130


def test_alone_the_work_is_done_here():
    agreement = Agreement(World(), Stop())
    assert agreement.on_first(lambda: 7) == 7
    assert not agreement.stop_requested()


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_works_and_all_have_its_value(rank):
    done = []
    world = SimpleNamespace(
        size=2, is_first=rank == 0, share=lambda outcome: ("done", 7, 0) if rank else outcome
    )
    assert Agreement(world, Stop()).on_first(lambda: done.append(rank) or 7) == 7
    assert done == ([0] if rank == 0 else [])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_rank_0_stops_all(rank):
    stop = Stop()
    told = ("stopped", "while scoring", 75)
    world = SimpleNamespace(
        size=2, is_first=rank == 0, share=lambda outcome: told if rank else outcome
    )

    def work():
        stop.request()
        raise Stopped("while scoring")

    with pytest.raises(Stopped, match="while scoring"):
        Agreement(world, stop).on_first(work)
    assert stop.requested
    assert stop.exit_status == 75
