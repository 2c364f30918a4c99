import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import moeut


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder", "encoder_classifier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_saved_model_loads_to_the_same_bits(make_model, tmp_path, form, dtype):
    tied = {"tie_embeddings": True} if form != "encoder_classifier" else {}
    model = make_model(form, position="learned", **tied).to(dtype)
    model.save(tmp_path / "new" / "folder")
    random = torch.get_rng_state()
    loaded = moeut.load(tmp_path / "new" / "folder")
    assert torch.equal(random, torch.get_rng_state())
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    weights, again = model.state_dict(), loaded.state_dict()
    assert list(weights) == list(again)
    for name, tensor in weights.items():
        assert again[name].dtype == dtype
        assert torch.equal(again[name], tensor), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_loaded_model_computes_the_same(make_model, tmp_path):
    model = make_model(position="sinusoidal").eval()
    model.save(tmp_path)
    tokens = torch.randint(0, 11, (2, 6))
    loaded = moeut.load(tmp_path)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    # As those of a model that was built: the last bits of a product may follow from the place.
    assert all(parameter.data_ptr() % 64 == 0 for parameter in loaded.parameters())


def test_files_that_do_not_fit_are_refused(make_model, tmp_path):
    make_model().save(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)

    name = "decoder.layers.0.feed_forward.router"
    save_file({n: w for n, w in weights.items() if n != name}, path)
    with pytest.raises(ValueError, match=rf"does not fit its config; 1 missing: {name}"):
        moeut.load(tmp_path)
    save_file({**weights, "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="1 not in this model: extra"):
        moeut.load(tmp_path)
    save_file({**weights, name: torch.zeros(5, 3)}, path)
    with pytest.raises(ValueError, match=r"1 of another shape: .*\(5, 3\) instead of \(5, 16\)"):
        moeut.load(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model.safetensors: damaged"):
        moeut.load(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"model.safetensors: no such file"):
        moeut.load(tmp_path)


def test_configs_that_do_not_fit_are_refused(make_model, tmp_path):
    make_model().save(tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "d_modle": 3}))
    with pytest.raises(
        ValueError, match=r"config.json: d_modle=3: unknown; .*did you mean 'd_model'"
    ):
        moeut.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not a JSON file"):
        moeut.load(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"config.json: no such file"):
        moeut.load(tmp_path)
