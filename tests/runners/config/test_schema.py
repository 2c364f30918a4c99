"""A run's config: its own checks, the lines of its errors, and its identity."""

import dataclasses

import pytest

import tasks
from runners.config.run_file import from_yaml, read_run, to_yaml
from runners.config.schema import ConfigError, EvaluateConfig, RunConfig, TrainConfig, located
from runners.config.yaml_nodes import parse
from tasks.base.options import OptionError
from tasks.language.tokenizers import Bytes

RUN = """\
task: {name: toy, size: 5}
model:
  architecture: transformer
  d_model: 32
train:
  steps: 10
  learning_rate: 3e-4
"""
MOEUT = "task: {name: toy}\nmodel: {architecture: moeut}\n"


def test_rows_per_category_for_every_split_or_for_some():
    assert EvaluateConfig().rows_of("gen") is None
    assert EvaluateConfig(rows_per_category=7).rows_of("gen") == 7
    some = EvaluateConfig(rows_per_category={"gen": 7})
    assert (some.rows_of("gen"), some.rows_of("dev")) == (7, None)
    with pytest.raises(ValueError, match="must be at least 1"):
        EvaluateConfig(rows_per_category={"gen": 0})


def test_splits_on_the_way_need_an_interval():
    assert EvaluateConfig(interval=5, interval_splits=["dev"]).interval == 5
    with pytest.raises(ValueError, match=r"interval_splits=.*has no effect without interval"):
        EvaluateConfig(interval_splits=["dev"])


def test_defaults_pass_their_own_checks():
    assert TrainConfig() == TrainConfig(steps=1000)
    assert EvaluateConfig().splits == []


def test_splits_are_checked_with_their_place(toy, write):
    path = write(RUN + "evaluate:\n  splits: [gne]\nselect: best:test\n")
    config = read_run(path)
    splits = ["train", "dev", "test", "gen"]
    with pytest.raises(ConfigError) as caught:
        config.check_splits(splits, ["dev"])
    assert str(caught.value) == (
        f"{path}:9: evaluate.splits='gne': expected one of train, dev, test, gen; "
        "did you mean 'gen'?"
    )
    config = read_run(path, ["evaluate.splits=[gen]"])
    with pytest.raises(ConfigError, match="a test split must not choose the weights") as caught:
        config.check_splits(splits, ["dev"])
    assert str(caught.value).startswith(f"{path}:10: select='best:test'")
    read_run(path, ["evaluate.splits=[gen]", "select=best:dev"]).check_splits(splits, ["dev"])
    assert config.selection_split == "test"
    config = read_run(path, ["evaluate.splits=[gen]", "evaluate.rows_per_category={gne: 3}"])
    with pytest.raises(ConfigError, match=r"rows_per_category\.gne=3: no such split.*'gen'"):
        config.check_splits(splits, ["dev"])


def test_places_are_no_part_of_a_config_and_survive_a_change(toy, write):
    config = read_run(write(RUN))
    changed = dataclasses.replace(config, seed=3)
    for path, line in (("train.steps", 6), ("train.batch_size", 5)):
        assert config.error(path, 1, "no").place.endswith(f"config.yaml:{line}")
        assert changed.error(path, 1, "no").place.endswith(f"config.yaml:{line}")
    assert config == from_yaml(to_yaml(config), "elsewhere.yaml")
    assert list(config.to_dict()) == [
        "task",
        "model",
        "train",
        "evaluate",
        "match",
        "select",
        "seed",
    ]
    assert str(RunConfig(task={}, model={}).error("train.steps", 1, "no")) == "train.steps=1: no"


def test_an_option_is_found_by_its_path_whatever_the_sentence_says():
    section = parse("depth:\n  group: 3\nsize: 1\n", "f")

    def error(*data) -> str:
        return str(located(OptionError(*data), section, "model"))

    assert error("depth.group", 3, "size=1: no") == "f:2: model.depth.group=3: size=1: no"
    assert error("model.size", 1, "bad") == "f:3: model.size=1: bad"
    # What was left out stands nowhere: the nearest above it does.
    assert error("depth.repeats", None, "bad") == "f:1: model.depth.repeats=null: bad"
    assert error("dropout", True, "bad") == "f:1: model.dropout=true: bad"
    other = located(ValueError("something\nelse"), section, "model")
    assert str(other) == "f:1: model: something else"


# --- identity ---------------------------------------------------------------------------


@pytest.fixture
def base(toy, write):
    return write(MOEUT)


def digest(path, *overrides, data="d"):
    return read_run(path, list(overrides)).hash(data)


@pytest.mark.parametrize(
    "override",
    [
        "task.size=4",
        "task.noise=0.5",
        "model.d_model=64",
        "model.architecture=sigma_moe",
        "model.depth.repeats=3",
        "model.attention=dense",
        "model.position.fraction=1",
        "model.form=decoder_lm",
        "train.steps=999",
        "train.num_threads=2",
        "train.device=cpu",
        "train.deterministic=false",
        "evaluate.repeats=[2]",
        "evaluate.rows_per_category=10",
        "select=best:dev",
    ],
)
def test_what_changes_the_result_changes_the_hash(base, override):
    assert digest(base, override) != digest(base)


@pytest.mark.parametrize(
    "override",
    [
        "seed=7",
        "train.log_interval=1",
        "train.checkpoint_interval=9",
        "train.parallel=fsdp",
        "train.tensorboard=true",
        "train.wandb=true",
        "train.trackio=true",
    ],
)
def test_what_does_not_change_the_result_does_not(base, override):
    assert digest(base, override) == digest(base)


def test_other_data_is_another_run(base):
    assert digest(base, data="e") != digest(base)


@pytest.mark.parametrize(
    "override",
    [
        "model.dropout=0",
        "model.depth={group: 2, repeats: 2, order: cycle, prelude: 0}",
        "model.attention.head_size=32",  # d_model / num_heads
        "model.attention.dropout=0.0",
        "model.final_norm=true",
        "model.position=rotary",
        "model.position={kind: rotary, fraction: 0.5}",
        "model.feed_forward={kind: sigma_moe, top_k: 4}",
        "match.parameters=null",
        "model.encoder_depth={group: 2}",
        "model.form=encoder_decoder",
    ],
)
def test_what_is_left_out_and_what_is_spelled_out_are_one_run(base, override):
    assert digest(base, override) == digest(base)


def test_the_name_of_an_architecture_is_none_of_its_options(base):
    spelled = "model={architecture: universal, depth: {group: 4, repeats: 1}}"
    assert digest(base, spelled) == digest(base, "model={architecture: transformer}")


def test_defaults_and_order_do_not_matter(base, write):
    other = write(
        "model: {feed_forward.top_k: 4, architecture: moeut}\ntask: {size: 3, name: toy}\n",
        "b.yaml",
    )
    assert digest(other) == digest(base)
    assert digest(base, "train.learning_rate=1e-3") == digest(base)


def test_it_is_short_and_stable(base):
    value = digest(base)
    assert len(value) == 8
    assert int(value, 16) >= 0
    config = read_run(base)
    assert dataclasses.replace(config, seed=3).hash("d") == value
    assert set(config.identity("d")) == {
        "task",
        "model",
        "train",
        "evaluate",
        "match",
        "select",
        "data_hash",
    }


# --- where data lies --------------------------------------------------------------------

MODEL = "model: {architecture: moeut}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with rows, text and a tokenizer, each there twice under other names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "copy").mkdir()
    text = "".join(f"paragraph {n} of the text\n\n" for n in range(300))
    for place in ("", "copy/re-"):
        (tmp_path / f"{place}pairs.tsv").write_text("a b\tb a\nc\td\n")
        (tmp_path / f"{place}text.txt").write_text(text)
    (tmp_path / "linked").symlink_to("copy")
    for name in ("words", "copy/words"):
        (tmp_path / name).mkdir()
        Bytes().save(tmp_path / name)
    return tmp_path


def whole_digest(path, *overrides):
    """Return the hash of a run with that of its data."""
    config = read_run(path, list(overrides))
    options = dict(config.task)
    return config.hash(tasks.create(options.pop("name"), **options).data_hash())


def test_rows_count_by_their_content_and_not_by_their_place(folder, write):
    path = write("task: {name: file, train: pairs.tsv, other: {hard: pairs.tsv}}\n" + MODEL)
    spellings = ["./pairs.tsv", str(folder / "pairs.tsv"), "copy/../pairs.tsv"]
    for name in (*spellings, "copy/re-pairs.tsv", "linked/re-pairs.tsv"):
        for key in ("train", "other.hard"):
            assert whole_digest(path, f"task.{key}={name}") == whole_digest(path)
    assert whole_digest(path, "task.test=pairs.tsv") != whole_digest(path)
    assert whole_digest(path, "task.tokenize=characters") != whole_digest(path)
    before = whole_digest(path)
    (folder / "pairs.tsv").write_text("a b\tb a\nc\te\n")
    assert whole_digest(path) != before


def test_text_and_tokenizers_count_by_their_content_and_not_by_their_place(folder, write):
    task = "corpus: files, files: text.txt, documents: paragraphs, tokenizer: words"
    path = write(f"task: {{name: language, {task}, context_length: 8}}\n{MODEL}")
    before = whole_digest(path)
    for files in (
        "./text.txt",
        f"[{folder}/text.txt]",
        "copy/*.txt",
        "linked/",
        "[text.txt, linked/../text.txt]",
    ):
        assert whole_digest(path, f"task.files={files}") == before
    assert whole_digest(path, "task.files=[text.txt, copy]") != before
    for words in ("./words", "words/tokenizer.bytes", "linked/words", str(folder / "copy/words")):
        assert whole_digest(path, f"task.tokenizer={words}") == before
    assert whole_digest(path, "task.context_length=9") != before
    assert len(list((folder / "cache" / "language").glob("*/prepared.json"))) == 2


def test_another_tokenizer_is_another_run_before_there_is_data(folder, write):
    path = write("task: {name: language, corpus: c4, tokenizer: words, boundary: none}\n" + MODEL)
    other = folder / "other.json"
    other.write_text("{}")
    assert digest(path, "task.tokenizer=copy/words") == digest(path)
    assert digest(path, "task.tokenizer=bpe") != digest(path)
    assert digest(path, f"task.tokenizer={other}") != digest(path)
    with pytest.raises(ValueError, match=r"task.tokenizer='no.json': no.json: no such file"):
        digest(path, "task.tokenizer=no.json")


def test_a_folder_in_the_place_of_a_data_set_is_no_part_and_a_data_set_is(folder, write):
    path = write("task: {name: language, corpus: hub, hub: copy}\n" + MODEL)
    assert digest(path, f"task.hub={folder / 'words'}") == digest(path)
    named = ["task.hub_revision=abc", "task.hub=some/data"]
    assert digest(path, *named) != digest(path, named[0], "task.hub=other/data")
