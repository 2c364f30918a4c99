"""From a config to task, objective and model."""

import pytest
import torch

import moeut
from moeut import architectures
from moeut.config import ModelConfig
from runners.config.grid import expand, read_sweep
from runners.config.run_file import read_run
from runners.config.schema import ConfigError, EvaluateConfig
from runners.process.run_directory import RunDirectory, RunRecord
from runners.scoring.splits import split_scorer
from runners.sweep import check as check_runs
from runners.training.experiment import build, build_model, notices
from runners.training.lengths import train_columns


@pytest.fixture
def built(tmp_path, run_text):
    def make(*overrides, **options):
        file = tmp_path / "run.yaml"
        file.write_text(run_text(**options))
        config = read_run(file, overrides)
        return build(config), config

    return make


def test_sizes_come_from_the_task(built):
    one, _ = built(form="encoder_decoder")
    assert one.model_config.vocabulary_size == one.model_config.source_vocabulary_size == 9
    one, _ = built(form="encoder_classifier")
    assert (one.model_config.vocabulary_size, one.model_config.num_classes) == (9, 5)
    assert len(train_columns(one.objective)) == 30


def test_depths_of_a_shared_model(built):
    one, config = built("evaluate.repeats=[4, 2, 8]", form="decoder_lm", architecture="universal")
    assert one.depths(config) == [2, 4, 8]
    one, config = built("evaluate.repeats=[4, 2]", architecture="universal")
    assert one.depths(config) == [[2, 2], [4, 4]]
    one, config = built(
        "evaluate.repeats=[4, 2]", "model.encoder_depth.repeats=3", architecture="universal"
    )
    assert one.depths(config) == [[3, 2], [4, 4], [2, 2]]


def test_depths_follow_from_the_models_own(built):
    """One, half and twice, of each stack; a list, empty or not, takes their place."""
    depths = []
    for repeats in (2, 5, 12):
        given = f"model.depth.repeats={repeats}"
        one, config = built(given, form="decoder_lm", architecture="universal")
        depths.append(one.depths(config))
    assert depths == [[2, 1, 4], [5, 1, 3, 10], [12, 1, 6, 24]]
    one, config = built("model.encoder_depth.repeats=3", architecture="universal")
    assert one.depths(config) == [[3, 2], [1, 1], [2, 1], [6, 4]]
    for none in ("evaluate.repeats=null", "evaluate.repeats=[]"):
        one, config = built(none, architecture="universal")
        assert one.depths(config) == [[2, 2]]


@pytest.mark.parametrize(
    ("options", "form", "is_blind"),
    [
        (("model.position=none",), "encoder_classifier", True),
        (("model.position=none",), "encoder_decoder", True),
        (("model.position=none",), "decoder_lm", False),
        (("model.position=relative",), "encoder_classifier", False),
        (("model.position=none", "model.input_position=learned"), "encoder_classifier", False),
        (("model.position=none", "model.conditioning=coordinates"), "encoder_classifier", False),
        (("model.position=none", "model.conditioning=vectors"), "encoder_classifier", True),
        (("model.position=none", "model.attention=geometric"), "encoder_classifier", False),
        (("model.position=none", "model.feed_forward=convolutional"), "encoder_classifier", False),
    ],
)
def test_a_model_that_cannot_tell_an_order_is_named(built, options, form, is_blind):
    """And is one: its result is that of the tokens in another order."""
    one, config = built(*options, form=form, architecture="universal")
    said = notices([("this", config, one)])
    assert [text.partition(":")[0] for text in said] == [
        "nothing tells the order of tokens in this"
    ] * is_blind
    if form == "encoder_classifier":
        torch.manual_seed(0)
        model = moeut.build(one.model_config).double().eval()
        tokens = torch.tensor([[3, 4, 5, 6]])
        moved = [model(each).logits for each in (tokens, tokens[:, [0, 2, 1, 3]])]
        assert torch.allclose(*moved, rtol=0, atol=1e-9) == is_blind


def test_depth_of_an_unshared_model_is_fixed(built):
    one, config = built("evaluate.repeats=[4, 2]", architecture="transformer")
    assert one.depths(config) == [[1, 1]]
    assert one.ignores_repeats(config)
    one, config = built(architecture="transformer")
    assert not one.ignores_repeats(config)
    one, config = built("evaluate.repeats=[4, 2]", architecture="universal")
    assert not one.ignores_repeats(config)


def test_splits(built):
    one, config = built()
    assert one.final_splits(config) == ["dev", "test"]
    assert one.interval_splits(config) == ["dev"]
    one, config = built("evaluate.splits=[test]", "task.in_distribution=null")
    assert one.final_splits(config) == ["test"]
    assert one.interval_splits(config) == ["test"]
    one, config = built("evaluate.interval_splits=[test]", "select=best:dev")
    assert one.interval_splits(config) == ["test", "dev"]


def test_selection_without_evaluations_is_refused(built):
    with pytest.raises(ConfigError, match=r"select='best:dev': needs evaluate\.interval"):
        built("select=best:dev", "evaluate.interval=null")


def test_budget_below_the_longest_row_is_refused(built):
    with pytest.raises(ConfigError, match=r"tokens_per_batch=14: below .* train, 15 tokens"):
        built("train.tokens_per_batch=14")  # 6 letters: 8 on the source side, 7 on the target's
    built("train.tokens_per_batch=15")


@pytest.mark.parametrize(
    ("form", "needed"), [("encoder_decoder", 8), ("decoder_lm", 16), ("encoder_classifier", 8)]
)
def test_learned_positions_reach_the_longest_row(form, needed, built):
    """Six letters: 8 tokens between the marks, 8 to write at most."""
    options = {"form": form, "architecture": "universal"}
    learned = ("model.position=learned", "train.steps=2", "train.warmup_steps=0")
    with pytest.raises(ConfigError, match=rf"max_length={needed - 1}: must be at least {needed}"):
        built(*learned, f"model.position.max_length={needed - 1}", **options)
    one, _ = built(*learned, f"model.position.max_length={needed}", **options)
    model = build_model(one.model_config, torch.device("cpu"))
    scorer = split_scorer(one.objective)
    settings = {"config": EvaluateConfig(), "device": torch.device("cpu")}
    scorer(model=model, built=one, **settings).score("train")


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
def test_abacus_positions_know_the_digits_of_the_task(tmp_path, form):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"task: {{name: addition}}\nmodel: {{architecture: universal, d_model: 8, form: {form}, "
        "position: fire, input_position: abacus}\n"
        "train: {steps: 2, batch_size: 4, warmup_steps: 0}\n"
    )
    one = build(read_run(file))
    position, (words, source) = one.model_config.input_position, one.objective.words()
    assert sorted(words[token] for token in position.digits) == list("0123456789")
    if form == "encoder_decoder":
        assert sorted(source[token] for token in position.source_digits) == list("0123456789")


def test_initial_weights_depend_on_the_seed_alone(built):
    one, _ = built(architecture="moeut")
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build_model(one.model_config, torch.device("cpu")).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert any(not torch.equal(models[0][name], models[2][name]) for name in models[0])


def test_a_model_is_checked_and_described_once_in_the_driver_and_once_in_a_worker(
    tmp_path, run_text, monkeypatch
):
    """Two models, three seeds of each: the seeds share what is read and built."""
    read, built = [], []
    blueprint, check = architectures.blueprint, ModelConfig.__post_init__

    def reading(section, **options):
        read.append(section["architecture"])
        return blueprint(section, **options)

    def building(config):
        built.append(config)
        check(config)

    monkeypatch.setattr(architectures, "blueprint", reading)
    monkeypatch.setattr(ModelConfig, "__post_init__", building)
    base = "".join(f"  {line}\n" for line in run_text().strip().splitlines())
    file = tmp_path / "pair.yaml"
    shared = "{model: {architecture: universal, depth: {group: 1, repeats: 2}}}"
    variants = f"{{transformer: {{}}, universal: {shared}}}"
    file.write_text(f"base:\n{base}variants: {variants}\nseeds: 3\n")
    planned = expand(read_sweep(file), root=tmp_path)
    described = check_runs(planned)
    assert (len(planned), len(described)) == (6, 2)
    assert read == ["transformer", "universal"]
    assert built == [each.model_config for each in described.values()]

    run = planned[-1]
    files = RunDirectory(run.directory)
    record = RunRecord(sweep="pair", variant=run.variant, seed=run.seed, hash=run.hash)
    files.prepare(run.config, record)
    read.clear()
    built.clear()
    in_worker = build(files.read_config())
    assert read == ["universal"]
    assert built == [in_worker.model_config] == [described[run.hash].model_config]
