"""The published recipes of docs/recurrence.md are configs that build, key by key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runners.config.run_file import read_run
from runners.training.experiment import build

DOCUMENT = Path(__file__).parents[2] / "docs" / "recurrence.md"
ROWS = re.findall(r"^\| `(\w+)`[^|]*\| `(\{.*\})` \|", DOCUMENT.read_text(), flags=re.M)

RUN = """
task: {{name: looped, problem: parity, train_rows: 20, iid_rows: 4, rows_per_test_length: 2}}
model: {{architecture: {model}, form: {form}, d_model: 32, attention: {{num_heads: 2}}}}
train: {{steps: 100000}}
"""


def test_the_recipes_are_found():
    assert {"trm", "urm", "huginn", "ouro"} <= {model for model, _ in ROWS}


@pytest.mark.parametrize(("model", "recipe"), ROWS)
def test_a_recipe_is_a_config(model, recipe, tmp_path):
    path = tmp_path / "run.yaml"
    form = "encoder_labeller" if model in ("trm", "hrm", "urm") else "decoder_lm"
    path.write_text(RUN.format(model=model, form=form))
    overrides = [f"train={recipe}", "train.steps=100000"]
    if model == "abacus":
        overrides.append("model.input_position=none")
    config = read_run(path, overrides)
    assert build(config).model_config.form == form
    for name in ("optimizer", "ema", "schedule", "shared_rate"):
        written = re.search(rf"\b{name}: ([\w.]+)", recipe)
        default = {"optimizer": "adamw", "ema": 0.0, "schedule": "constant", "shared_rate": "same"}
        found = getattr(config.train, name)
        assert str(found) == (written[1] if written else str(default[name]))
