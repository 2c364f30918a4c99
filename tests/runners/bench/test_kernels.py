"""The kernels compile for GPUs that are not there, with tensor cores and wide copies."""

import json
import os
import subprocess
import sys

import pytest
import torch

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


def test_kernels_compile_for_ampere_and_hopper(tmp_path):
    options = ["--sizes", "mlp-244m-64k", "output-44m-64k"]
    rows = compile_kernels(tmp_path, *options, "--capability", "90")
    names = {row["kernel"].split(",")[0] for row in rows}
    assert names == {"row_product", "row_sum", "weight_gradient"}
    for row in rows:
        assert row["shared_bytes"] <= 227 * 1024
        assert row["stack_bytes"] <= 128, row
        if row["kernel"] != "row_sum":
            assert row["wgmma"] > 0, row
            assert max(map(int, row["async_load_bytes"])) >= 8, row
            # A width of 1024 or 128 gives the widest copies for the rows.
            if row["size"].startswith("mlp-244m") and row["kernel"].startswith("row_product"):
                assert set(row["async_load_bytes"]) == {"16"}, row


@pytest.mark.parametrize("dtype", ["float32"])
def test_kernels_compile_in_other_types_for_ampere(tmp_path, dtype):
    rows = compile_kernels(
        tmp_path, "--sizes", "value-tiny", "--capability", "80", "--dtype", dtype
    )
    assert all(row["shared_bytes"] <= 99 * 1024 for row in rows)


def test_interpreter_is_refused(monkeypatch, capsys):
    if torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert command.main(["kernels"]) == 2
    assert "the interpreter compiles nothing" in capsys.readouterr().err
