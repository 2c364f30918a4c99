"""A saved model is its weights and its config."""

import json

from moeut.saving import CONFIG, WEIGHTS, save


def test_a_saved_model_is_two_files(make_model, tmp_path):
    model = make_model()
    save(model, tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == [CONFIG, WEIGHTS]
    assert json.loads((tmp_path / "model" / CONFIG).read_text()) == model.config.to_dict()
