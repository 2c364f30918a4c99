"""``torchrun`` with the exit status of its ranks: ``python -m runners.sweeping.torchrun …``.

torchrun itself ends with 1 whenever a rank has not ended with 0. A job has to know more: after 75
it asks for another turn, after 2 it would be refused again.
"""

from __future__ import annotations

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from tasks.base.command_line import DONE, RESUMABLE


def main(arguments: list[str]) -> int:
    """Start this node's ranks and return the status of the first that did not end with 0.

    Args:
        arguments: those of torchrun.

    Returns:
        75 also where a signal has ended a rank, or torchrun: neither is a failure of the run.
    """
    try:
        run.main(arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else RESUMABLE
    except SignalException:
        return RESUMABLE
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
