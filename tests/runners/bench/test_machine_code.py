"""What the resources of a compiled kernel say; that they are read is tested by the command."""

import pytest

from runners.bench.machine_code import occupancy


@pytest.mark.parametrize(
    ("registers", "kilobytes", "warps", "blocks", "limit"),
    [
        (128, 96, 8, 2, "registers"),  # 2 x 8 x 32 x 128 are all 65536 registers
        (64, 96, 8, 2, "shared memory"),  # 2 x 97 of 228 KiB
        (32, 0, 4, 16, "registers"),
        (16, 0, 4, 16, "warps"),
        (129, 0, 8, 1, "registers"),  # rounded up to 136
    ],
)
def test_blocks_that_share_a_multiprocessor(registers, kilobytes, warps, blocks, limit):
    held = occupancy(90, registers=registers, shared_bytes=kilobytes * 1024, num_warps=warps)
    assert (held["blocks_per_multiprocessor"], held["limited_by"]) == (blocks, limit)
