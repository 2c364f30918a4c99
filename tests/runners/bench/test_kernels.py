"""The kernels compile for GPUs that are not there, with tensor cores and wide copies."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from runners.bench import __main__ as command


def compile_kernels(tmp_path, *options):
    file = tmp_path / "result.json"
    # Other tests have the interpreter on, which compiles nothing.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "runners.bench", "kernels", *options, "--json", str(file)],
        env=environment,
        check=True,
        capture_output=True,
    )
    return json.loads(file.read_text())["rows"]


def test_kernels_compile_for_hopper(tmp_path):
    rows = compile_kernels(tmp_path, "--sizes", "mlp-244m-64k", "--capability", "90")
    names = {row["kernel"].split(",")[0] for row in rows}
    assert names == {
        "row_product",
        "row_sum",
        "weight_gradient",
        "count",
        "scan",
        "offset",
        "place",
        "route",
        "route_gradient",
    }
    for row in rows:
        assert row["shared_bytes"] <= 227 * 1024
        assert row["stack_bytes"] <= 128, row
        if row["kernel"].startswith(("row_product", "weight_gradient")):
            assert row["wgmma"] > 0, row
        if row["kernel"].startswith(("row_product", "weight_gradient")):
            assert row["constants"].get("NUM_PARTS", 1) == 1  # as 387 experts have it
            assert row["blocks_per_multiprocessor"] >= 1
        if row["kernel"].startswith("row_product"):
            # Widths of 1024 and 128 give the widest copies.
            assert set(row["async_load_bytes"]) == {"16"}, row


def test_other_ways_to_walk_and_load_compile_for_hopper(tmp_path):
    """Descriptors leave the copies of weights to the hardware."""
    options = ["--sizes", "mlp-244m-64k", "--capability", "90"]
    plain = compile_kernels(tmp_path, *options, "--blocks", "columns=128,depth=64,span=1")
    other = compile_kernels(
        tmp_path, *options, "--blocks", "columns=128,depth=64,span=1,descriptor=1,persistent=1"
    )
    for one, two in zip(plain, other, strict=True):
        if one["kernel"] in ("row_product, relu", "row_product, linear"):
            assert two["constants"]["DESCRIPTOR"]
            assert two["stack_bytes"] == 0
            assert two["async_load_bytes"]["16"] < one["async_load_bytes"]["16"]


def test_unknown_blocks_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["kernels", "--blocks", "column=64"])
    assert "'column=64': expected a number for one of rows" in capsys.readouterr().err


def test_kernels_compile_for_ampere_in_float32(tmp_path):
    options = ["--sizes", "value-tiny", "--capability", "80", "--dtype", "float32"]
    rows = compile_kernels(tmp_path, *options)
    assert all(row["shared_bytes"] <= 99 * 1024 for row in rows)
    assert {row["wgmma"] + row["mma"] for row in rows} == {0}  # TF32 is off


def test_unknown_capability_is_refused(monkeypatch, capsys):
    assert command.main(["kernels", "--capability", "75"]) == 2
    assert "--capability 75: expected one of 80, 90, 100" in capsys.readouterr().err


def test_interpreter_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert command.main(["kernels"]) == 2
    assert "the interpreter compiles nothing" in capsys.readouterr().err
