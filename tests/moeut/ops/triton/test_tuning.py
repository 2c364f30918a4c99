import dataclasses
import json
import logging

import pytest
import torch

pytest.importorskip("triton")

from moeut.ops.triton import tuning as tuning
from moeut.ops.triton.tuning import ShapeClass, Tuner

PRODUCT = ShapeClass("row_product", "relu", torch.bfloat16, 128, 1024, 128)
GRADIENT = ShapeClass("weight_gradient", "plain", torch.bfloat16, 128, 412, 128)
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_file_name", lambda index: "blocks-gpu.json")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    # The narrowest blocks are the fastest.
    monkeypatch.setattr(tuning, "_time", lambda launch, blocks: launch(blocks) or blocks.columns)


def search(tuner, shape):
    tried = []
    with tuner.searching():
        return tuner.choose(shape, CUDA, lambda blocks: tried.append(blocks)), tried


def test_defaults_serve_until_a_search_is_asked_for():
    def launch(blocks):
        raise AssertionError("nothing may run")

    for shape in (PRODUCT, GRADIENT):
        assert Tuner().choose(shape, CUDA, launch) == tuning.default_blocks(shape)


@pytest.mark.parametrize("shape", [PRODUCT, GRADIENT])
def test_a_search_takes_the_fastest_and_keeps_it_on_disk(shape, tmp_path):
    best, tried = search(Tuner(), shape)
    assert best.columns == min(blocks.columns for blocks in tried)
    assert tried[0] == tuning.default_blocks(shape)
    assert json.loads((tmp_path / "blocks-gpu.json").read_text()).keys() == {shape.key}
    again, tried_again = search(Tuner(), shape)  # another process
    assert (again, tried_again) == (best, [])


def test_results_of_several_classes_are_kept_together(tmp_path):
    tuner = Tuner()
    for shape in (PRODUCT, GRADIENT):
        search(tuner, shape)
    kept = json.loads((tmp_path / "blocks-gpu.json").read_text())
    assert kept.keys() == {PRODUCT.key, GRADIENT.key}


def test_damaged_file_is_reported_and_left_out(tmp_path, caplog):
    for content in ("{", "[]", '{"a": {"rows": 1}}', '{"a": 3}'):
        (tmp_path / "blocks-gpu.json").write_text(content)
        with caplog.at_level(logging.WARNING):
            chosen = Tuner().choose(PRODUCT, CUDA, lambda blocks: None)
        assert chosen == tuning.default_blocks(PRODUCT)
        assert "not readable as block sizes" in caplog.records[-1].getMessage()


def test_searching_ends_with_the_step():
    with pytest.raises(KeyError):
        tuning.warmup(lambda: {}["fails"])
    assert not tuning.TUNER.is_searching
    seen = []
    tuning.warmup(lambda: seen.append(tuning.TUNER.is_searching), search=False)
    tuning.warmup(lambda: seen.append(tuning.TUNER.is_searching))
    assert seen == [False, True]


@pytest.mark.parametrize("kernel", ["row_product", "weight_gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("widths", [(1, 1), (82, 412), (1536, 128)])
def test_blocks_cover_the_shape_in_powers_of_two(kernel, dtype, widths):
    shape = ShapeClass(kernel, "", dtype, 128, *widths)
    default = tuning.default_blocks(shape)
    candidates = [
        dataclasses.replace(default, **change)
        for changes in tuning.search_rounds(shape, (9, 0))
        for change in changes
    ]
    assert len(set(candidates)) <= 20
    for blocks in (default, *(one for one in candidates if tuning.is_sensible(one, shape))):
        for size in (blocks.rows, blocks.columns, blocks.depth):
            assert size >= 16, blocks
            assert size.bit_count() == 1, blocks
    # Three stages of columns, and of rows where they are not loaded once for all columns.
    stages_of_rows = 1 if default.span > 1 else 3
    elements = default.depth * (stages_of_rows * default.rows + 3 * default.columns)
    assert elements * dtype.itemsize <= 99 * 1024  # of compute capability 8.6 and 8.9


def test_a_later_round_changes_the_best_of_the_earlier(monkeypatch):
    """The fastest is found where each choice helps by itself, without trying all of them."""
    wanted = {"columns": 64, "num_warps": 8, "depth": 32, "num_stages": 2, "descriptor": True}
    monkeypatch.setattr(
        tuning,
        "_time",
        lambda launch, blocks: sum(getattr(blocks, k) != v for k, v in wanted.items()),
    )
    best, _ = search(Tuner(), PRODUCT)
    assert dataclasses.asdict(best).items() >= wanted.items()


@pytest.mark.parametrize(
    ("widths", "capability", "expected"),
    [((1024, 128), (9, 0), True), ((1024, 128), (8, 0), False), ((412, 128), (9, 0), False)],
)
def test_weights_are_copied_by_descriptors_where_hardware_and_widths_allow(
    widths, capability, expected
):
    shape = ShapeClass("row_product", "relu", torch.bfloat16, 128, *widths)
    changes = [change for round in tuning.search_rounds(shape, capability) for change in round]
    assert any(change.get("descriptor") for change in changes) == expected
    gradient = dataclasses.replace(shape, kernel="weight_gradient")
    assert not any("persistent" in c for r in tuning.search_rounds(gradient, (9, 0)) for c in r)


def test_the_number_of_tokens_is_in_no_key():
    assert PRODUCT.key == "row_product/relu/bfloat16/128/1024x128"
