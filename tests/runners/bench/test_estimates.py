import pytest

from runners.bench.estimates import DEVICES, estimate, occupancy, tile_work
from runners.bench.sizes import SIZES

H200 = DEVICES[90]
UP = {
    "BLOCK_ROWS": 128,
    "WIDTH_IN": 1024,
    "WIDTH_OUT": 128,
    "BLOCK_IN": 64,
    "BLOCK_OUT": 128,
    "SPAN": 1,
    "EPILOGUE": "relu",
}


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
    held = occupancy(H200, registers=registers, shared_bytes=kilobytes * 1024, num_warps=warps)
    assert (held["blocks_per_multiprocessor"], held["limited_by"]) == (blocks, limit)
    assert held["occupancy"] == blocks * warps / 64


def test_a_tile_of_a_row_product_moves_its_rows_columns_and_result():
    work = tile_work(UP, 2, 1000.0)
    assert work["flop_per_tile"] == 2 * 128 * 128 * 1024
    assert work["bytes_per_tile"] == 2 * (2 * 128 * 1024 + 128 * 128)
    gradient = tile_work(UP | {"EPILOGUE": "relu_gradient"}, 2, 1000.0)
    assert gradient["bytes_per_tile"] - work["bytes_per_tile"] == 2 * 2 * 128 * 128


def test_narrow_rows_are_loaded_once_for_all_columns_of_a_program():
    down = UP | {"WIDTH_IN": 128, "WIDTH_OUT": 1024, "EPILOGUE": "linear"}
    one, whole = tile_work(down, 2, 1000.0), tile_work(down | {"SPAN": 8, "BLOCK_IN": 128}, 2, 1.0)
    assert whole["flop_per_tile"] == 8 * one["flop_per_tile"]
    assert whole["bytes_per_tile"] == 8 * one["bytes_per_tile"] - 7 * 2 * 128 * 128
    again = tile_work(down | {"SPAN": 8}, 2, 1000.0)  # two steps: not kept
    assert again["bytes_per_tile"] == 8 * one["bytes_per_tile"]


def test_a_tile_of_a_weight_gradient_moves_the_rows_of_an_expert():
    constants = {"WIDTH_LEFT": 412, "BLOCK_LEFT": 128, "WIDTH_RIGHT": 82, "BLOCK_RIGHT": 128}
    work = tile_work(constants, 2, 1000.0)
    assert work["flop_per_tile"] == 2 * 128 * 82 * 1000
    assert work["bytes_per_tile"] == 2 * ((128 + 82) * 1000 + 128 * 82)


def test_the_whole_work_and_its_waste_are_counted():
    row = {"capability": 90, "constants": UP, "registers": 128, "shared_bytes": 98304}
    got = estimate(row | {"num_warps": 8}, SIZES["mlp-244m-64k"], 2)
    assert got["waste"] == pytest.approx(64 / 2709, abs=1e-3)  # half a tile of each expert
    useful = SIZES["mlp-244m-64k"].forward_flop / 2
    assert got["compute_ms"] == pytest.approx(1.0236 * useful / 790e9, rel=1e-3)
    assert got["bound_by"] == "cache"
    assert got["flop_per_byte"] == pytest.approx(
        128 * 128 * 1024 / (2 * 128 * 1024 + 128 * 128), 1e-2
    )
    few = estimate(row | {"num_warps": 8}, SIZES["mlp-244m-1k"], 2)
    assert few["waste"] > 1  # 42 rows an expert in tiles of 128
    assert few["waves"] < got["waves"]


def test_other_kernels_and_unknown_rates_are_not_guessed():
    row = {"capability": 90, "constants": {"BLOCK": 128}, "registers": 32, "shared_bytes": 0}
    assert "bytes_per_tile" not in estimate(row, SIZES["mlp-244m-64k"], 2)
    row |= {"capability": 100, "constants": UP}
    got = estimate(row, SIZES["mlp-244m-64k"], 2)
    assert got["tiles"] > 0
    assert "bound_by" not in got
