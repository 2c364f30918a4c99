"""Sweeps with everything that the page shows."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for chromium and page_reader

from runners.analysis.figures import curves, maps
from runners.analysis.findings import Finding, write_numbers

CONFIG = "model:\n  d_model: {size}\n  norm: pre\nseed: {seed}\n"


def findings(shift):
    """Return curves in groups, curves over words, and maps; none of their numbers twice."""
    lens = [
        {"application": n, "difficulty": group, "accuracy": shift + n / 8 + wide, "loss": loss}
        for group, wide in (("all", 0.0), ("2", 0.0625))
        for n, loss in ((0, None), (1, shift + 1.5 + wide), (2, shift - 1 / 3 + wide))
    ]
    halting = [{"token": word, "mean": shift + n} for n, word in enumerate(("01", "<b>", "a,b"))]
    use = [
        {"head": head, "expert": expert, "token": word, "share": share, "chance": share / 2}
        for head in (0, 1)
        for expert in (0, 1, 2)
        for share in [shift + (head * 4 + expert) / 100]
        for word in ("00", "x")
    ]
    limits = "Not why."
    return [
        Finding(
            name="lens",
            title="Lens",
            rows=lens,
            limits=limits,
            draw=curves("application", ["accuracy", "loss"], group=["difficulty"]),
        ),
        Finding(
            name="halting",
            title="Halting",
            rows=halting,
            limits=limits,
            draw=curves("token", ["mean"]),
        ),
        Finding(
            name="use",
            title="Use",
            rows=use,
            limits=limits,
            draw=maps("expert", "token", "share", group=["head"], beside=["chance"]),
        ),
    ]


@pytest.fixture
def furnish():
    """Return a function that gives the runs of a sweep configs, environments and analyses."""

    def furnish(directory):
        for path in sorted(directory.glob("*/seed*")):
            seed = int(path.name.removeprefix("seed"))
            size = 16 + len(path.parent.name)
            (path / "config.yaml").write_text(CONFIG.format(size=size, seed=seed))
            (path / "env.json").write_text(json.dumps({"cores": 2, "packages": {"torch": "2.11"}}))
            if not (path / "result.json").is_file():
                continue
            folder = path / "analysis" / "gen"
            folder.mkdir(parents=True)
            for finding in findings(0.1 + seed / 1000 + size / 1e4):
                write_numbers(finding, folder)
        return directory

    return furnish
