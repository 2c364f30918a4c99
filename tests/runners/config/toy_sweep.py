"""A sweep over a toy task, its plan, and what is said where it is refused."""

import pytest

from runners.config.grid import expand
from runners.config.schema import ConfigError
from runners.config.sweep_file import read_sweep

SWEEP = """\
name: demo
base:
  task: {name: toy}
  model: {architecture: transformer, d_model: 32}
  train: {steps: 10}
variants:
  transformer: {}
  universal: {model.architecture: universal}
  wide:
    model:
      architecture: moeut
      d_model: 64
parameters:
  model.depth.group: {values: [2, 4]}
  train: {parameters: {learning_rate: {value: 1e-3}}}
seeds: 3
"""


def plan(path, *overrides):
    return expand(read_sweep(path, list(overrides)), data_hash=lambda task: "data")


def message(path, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(path, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)
