"""Loops over small runs, in double precision."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import moeut
from runners.process.generators import seed_everything
from runners.process.run_directory import RunDirectory
from runners.training.experiment import build
from runners.training.lengths import train_columns
from runners.training.loop import Loop

sys.path.insert(0, str(Path(__file__).parent))  # for recorder


@pytest.fixture
def loop_of() -> Callable[..., Loop]:
    """Return a function that builds the loop of a run's directory, ``train`` options changed."""

    def make(directory, *, device="cpu", dtype=torch.float64, capture=None, **changes) -> Loop:
        config = RunDirectory(directory).read_config()
        built = build(config)
        seed_everything(0)
        return Loop(
            dataclasses.replace(config.train, **changes),
            objective=built.objective,
            model=moeut.build(built.model_config).to(device, dtype),
            columns=train_columns(built.objective),
            seed=0,
            d_model=built.model_config.d_model,
            device=torch.device(device),
            capture=capture,
        )

    return make
