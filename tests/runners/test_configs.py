"""Every config that ships expands, opens with its contract, and has a sibling for two cores."""

from pathlib import Path

import pytest

from runners.expand import expand, read_sweep

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SWEEPS = [path for path in CONFIGS if "\nvariants:" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_it_expands(path):
    sweep = read_sweep(path)
    planned = expand(sweep, data_hash=lambda task: "")
    assert sweep.config.name == path.stem
    assert sweep.notices == ()
    assert len({run.variant for run in planned}) >= 2
    assert len({run.seed for run in planned}) >= 2


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_it_opens_with_its_contract(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])
    for word in ("# Command ", "# Cost ", "# Expect "):
        assert word in header, word
    assert f"configs/{path.name}" in header


def test_published_scales_have_small_siblings():
    names = {path.stem for path in SWEEPS}
    assert {"scan_length", "scan_jump", "scan_templates"} <= names
    for name in names - {"quickstart"}:
        assert name.endswith("_small") or f"{name}_small" in names, name
