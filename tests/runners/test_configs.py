"""Every config that ships expands, opens with its contract, and has a sibling for two cores."""

import csv
import dataclasses
from pathlib import Path

import pytest

import moeut
from moeut import architectures
from moeut.interop.looped import looped_length_config
from moeut.presets import OURS
from moeut.sizing import count_parameters
from runners import sweep
from runners.config import yaml_nodes
from runners.config.grid import expand, read_sweep
from runners.config.run_file import read_run
from runners.training.cost import describe_model
from runners.training.experiment import build

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
SWEEPS = [path for path in CONFIGS if "\nvariants:" in path.read_text(encoding="utf-8")]
RUNS = [path for path in CONFIGS if path not in SWEEPS]
LANGUAGE = [path for path in CONFIGS if path.parent.name == "language"]
SIZES = ["44m", "126m", "244m", "319m", "728m", "1b"]


def name_of(path):
    """Return what a user types between ``configs/`` and ``.yaml``."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def planned_of(path, *overrides):
    return expand(read_sweep(path, overrides), data_hash=lambda task: "")


def by_variant(path, *overrides):
    """Return each variant's config, as one seed has it."""
    return {run.variant: run.config for run in planned_of(path, *overrides)}


def model_of(config):
    """Return the config of a run's model at the paper's vocabulary."""
    section = config.model
    return architectures.configure(
        section.blueprint,
        form=section.form,
        match_parameters=config.match.parameters,
        vocabulary_size=8000,
    )


def header_of(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_it_expands(path):
    read = read_sweep(path)
    planned = expand(read, data_hash=lambda task: "")
    assert read.config.name == name_of(path).replace("language", "lm").replace("/", "_")
    assert read.notices == ()
    assert len({run.variant for run in planned}) >= 2
    # The paper trained its larger language models once.
    assert len({run.seed for run in planned}) >= (1 if path in LANGUAGE else 2)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_it_opens_with_its_contract(path):
    header = "\n".join(header_of(path))
    for word in ("# Command ", "# Cost ", "# Expect "):
        assert word in header, word
    assert f"configs/{name_of(path)}.yaml" in header


def test_published_scales_have_small_siblings():
    names = {name_of(path) for path in SWEEPS if path not in LANGUAGE}
    assert {"cogs", "scan/length", "scan/jump", "scan/templates"} <= names
    for name in names - {"quickstart"}:
        # Of an official set of puzzles it is that of the task that generates them.
        generated = name.removesuffix("_extreme").removesuffix("_hard")
        siblings = {f"{name}_small", f"{name}/small", f"{generated}_small"}
        assert name.endswith("small") or siblings & names, name


@pytest.mark.parametrize(
    ("config", "result"),
    [
        ("quickstart", "quickstart"),
        ("cogs/small", "cogs_small"),
        ("scan/length_small", "scan_length_small"),
        ("language/stdlib_small", "lm_stdlib_small"),
        ("cogs/recogs_small", "cogs_recogs_small"),
        ("cogs/slog_small", "cogs_slog_small"),
        ("formal/flip_flop_small", "formal_flip_flop_small"),
        pytest.param("imported/gym_small", "imported_gym_small", marks=pytest.mark.extras),
        ("lengths/looped_small", "lengths_looped_small"),
        ("puzzles/sudoku_small", "puzzles_sudoku_small"),
        ("recall/multi_hop_small", "recall_multi_hop_small"),
        ("state_tracking/word_problem_small", "state_tracking_word_problem_small"),
        ("strings/functions_small", "strings_functions_small"),
        ("table_lookup/ndr_four_symbols_small", "table_lookup_ndr_four_symbols_small"),
        ("table_lookup/ndr_relative_small", "table_lookup_ndr_relative_small"),
        ("table_lookup/ndr_small", "table_lookup_ndr_small"),
        ("trees/modular_expression_small", "trees_modular_expression_small"),
    ],
)
def test_models_have_the_size_that_the_results_were_measured_at(config, result, request):
    """Parameters and multiply-accumulates are those in the committed table."""
    if config in ("cogs/small", "cogs/recogs_small", "cogs/slog_small", "scan/length_small"):
        request.getfixturevalue("data_dir")
    if config == "imported/gym_small":
        pytest.importorskip("reasoning_gym")
    with open(FOLDER.parent / "docs/results" / result / "results.csv", encoding="utf-8") as file:
        stated = {
            row["variant"]: (int(row["model_parameters"]), int(row["macs_per_token"]))
            for row in csv.DictReader(file)
        }
    found = {}
    for variant, run in by_variant(FOLDER / f"{config}.yaml").items():
        model = describe_model(build(run, needs_data=False))
        found[variant] = (model.parameters, model.macs_per_token)
    assert found == stated


def test_the_looped_transformer_has_the_options_of_the_published_code():
    run = by_variant(FOLDER / "lengths/looped.yaml")["looped"]
    assert run.train.repeats.kind == "length"
    config = build(run, needs_data=False).model_config
    published = {"d_model": 256, "layers": 1, "heads": 64, "injection": True, "horizon": 20}
    assert config == looped_length_config(published, num_tokens=config.vocabulary_size)


# --- language models ----------------------------------------------------------------------


def test_every_size_has_a_run_and_a_comparison():
    assert {f"language/{size}" for size in SIZES} <= set(map(name_of, RUNS))
    assert {f"language/{size}_compare" for size in SIZES} <= set(map(name_of, SWEEPS))


@pytest.mark.parametrize("size", SIZES)
def test_a_run_has_the_papers_hyper_parameters(size):
    config = read_run(FOLDER / f"language/{size}.yaml")
    assert model_of(config) == moeut.preset(f"moeut-{size}")
    task, train = config.task, config.train
    assert (task["name"], task["corpus"], task["context_length"]) == ("language", "c4", 1024)
    assert (task["normalization"], task["boundary"]) == ("paper", "paper")
    assert (task["tokenizer"], task["vocabulary_size"]) == ("bpe", 8000)
    assert (train.steps, train.batch_size, train.learning_rate) == (100_000, 64, 2.5e-4)
    assert (train.optimizer, train.betas, train.weight_decay) == ("adamw", (0.9, 0.999), 0.01)
    assert (train.schedule, train.final_learning_rate_ratio) == ("cosine_paper", 0.1)
    assert train.precision == "bfloat16"
    is_smallest = size == "44m"
    assert (train.warmup_steps, train.clip_norm) == ((0, 0.1) if is_smallest else (4000, 0.25))
    # One pass over the text, and as many tokens of validation as the paper's.
    windows = train.steps * train.batch_size
    assert windows * task["context_length"] <= task["train_tokens"]
    assert config.evaluate.interval == 2000
    assert config.evaluate.rows_of("validation") * task["context_length"] == 1_032_192
    assert config.select == "final"


@pytest.mark.parametrize("size", SIZES)
def test_a_comparison_is_of_the_four_presets_under_one_budget(size):
    configs = by_variant(FOLDER / f"language/{size}_compare.yaml")
    assert list(configs) == ["transformer", "universal", "sigma_moe", "moeut"]
    budget = count_parameters(moeut.preset(f"moeut-{size}"))
    for family, config in configs.items():
        assert model_of(config) == moeut.preset(f"{family}-{size}")
        assert count_parameters(model_of(config)) == pytest.approx(budget, rel=0.01)
        same = dataclasses.replace(config, model={}, seed=0)
        assert same == dataclasses.replace(read_run(FOLDER / f"language/{size}.yaml"), model={})


@pytest.mark.parametrize("size", SIZES)
def test_what_the_paper_does_not_have_is_marked(size):
    path = FOLDER / f"language/{size}_compare.yaml"
    marked = {name for name in by_variant(path) if f"{name}-{size}" in OURS}
    assert set(read_sweep(path).config.ours) == marked


def test_a_sweep_is_planned_before_its_corpus_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path))
    command = [str(FOLDER / "language/1b_compare.yaml"), f"--runs-dir={tmp_path / 'runs'}"]
    assert sweep.main([*command, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    for family in ("transformer", "universal", "sigma_moe", "moeut"):
        assert f"{count_parameters(moeut.preset(f'{family}-1b')):,}" in plan
    assert "702,658,560" in plan  # as the header of the file has it
    assert "ours, and not among the paper's: universal, sigma_moe\n" in plan
    assert "4 runs, none of which can start:\ncorpus 'c4' is not prepared" in plan
    assert sweep.main(command) == 2
    assert "corpus 'c4' is not prepared" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_dearest_model_can_be_left_out():
    configs = by_variant(FOLDER / "language/1b_compare.yaml", "exclude=[{variant: universal}]")
    assert list(configs) == ["transformer", "sigma_moe", "moeut"]


@pytest.mark.parametrize("corpus", ["pes2o", "slimpajama", "the_stack"])
def test_other_corpora_are_an_override(corpus):
    path = FOLDER / "language/44m_compare.yaml"
    read = read_sweep(path, [f"task.corpus={corpus}", f"name=lm_44m_{corpus}"])
    assert read.config.name == f"lm_44m_{corpus}"
    for run in expand(read, data_hash=lambda task: ""):
        assert run.config.task["corpus"] == corpus


ABLATIONS = {
    # feed-forward and attention experts, active experts, their size, of each variant
    "group_size": [
        ("g1", 1, 779, 20, 16, 128),
        ("g2", 2, 387, 10, 16, 128),
        ("g3", 3, 260, 6, 16, 128),
        ("g6", 6, 128, 3, 16, 128),
        ("g9", 9, 84, 2, 16, 128),
        ("g18", 18, 40, 1, 16, 128),
    ],
    "norm": [(name, 2, 387, 10, 16, 128) for name in ("peri", "pre", "post")],
    "schedule": [(name, 2, 387, 10, 16, 128) for name in ("abab", "aabb")],
    "expert_size": [
        ("size128", 2, 387, 10, 16, 128),
        ("size256", 2, 194, 10, 8, 256),
        ("size512", 2, 97, 10, 4, 512),
        ("size1024", 2, 49, 10, 2, 1024),
    ],
    "top_k": [(f"k{k}", 2, 387, 10, k, 128) for k in (8, 16, 24)],
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_at_244m(name):
    configs = by_variant(FOLDER / f"language/244m_{name}.yaml")
    models = {variant: model_of(config) for variant, config in configs.items()}
    found = [
        (
            variant,
            model.depth.group,
            model.feed_forward.num_experts,
            getattr(model.attention, "num_experts", 1),
            model.feed_forward.top_k,
            model.feed_forward.expert_size,
        )
        for variant, model in models.items()
    ]
    assert found == ABLATIONS[name]
    budget = count_parameters(moeut.preset("moeut-244m"))
    for variant, model in models.items():
        assert count_parameters(model) == pytest.approx(budget, rel=0.008), variant
        assert model.depth.num_applications == 18
    assert moeut.preset("moeut-244m") in models.values()


def test_what_else_the_ablations_change():
    norms = by_variant(FOLDER / "language/244m_norm.yaml")
    stacks = {name: model_of(config) for name, config in norms.items()}
    assert {name: stack.norm for name, stack in stacks.items()} == {n: n for n in stacks}
    # What the training code's post-norm variant has.
    assert [stack.norm_input for stack in stacks.values()] == [False, False, True]
    assert [stack.final_norm for stack in stacks.values()] == [True, True, False]
    assert model_of(norms["post"]).embedding_scale == "sqrt_d_model"
    orders = by_variant(FOLDER / "language/244m_schedule.yaml")
    assert [model_of(c).depth.order for c in orders.values()] == ["cycle", "sequence"]
    # Without sharing, MoEUT with one attention expert is σ-MoE.
    groups = by_variant(FOLDER / "language/244m_group_size.yaml")
    assert model_of(groups["g18"]) == moeut.preset("sigma_moe-244m")


def test_the_command_that_packs_is_the_one_that_the_task_gives():
    import tasks

    for path in LANGUAGE:
        config = read_run(path) if path in RUNS else planned_of(path)[0].config
        if config.task["corpus"] != "c4":
            continue
        options = {name: value for name, value in config.task.items() if name != "name"}
        header = " ".join(line.strip("# \\") for line in header_of(path))
        assert tasks.create("language", **options).prepare_command() in header


def test_language_models_are_compared_by_bits_per_byte():
    assert yaml_nodes.read(FOLDER / "language/44m_compare.yaml").value["headline"].plain() == {
        "split": "test",
        "metric": "bits_per_byte",
    }
