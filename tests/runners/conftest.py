"""Tasks of a few rows, sweep directories made up on the spot, and small real runs."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

import moeut
import tasks
from runners.reporting.run_result import ModelSummary, RunResult, Score, TaskSummary, Timings
from runners.scoring.language_model import LanguageModel
from tasks.base.task import Example, ExampleTask, Task
from tasks.language.tokenizers import Bytes


@dataclass(frozen=True, kw_only=True)
class Toy(ExampleTask):
    """Copy a letter."""

    name: ClassVar[str] = "toy"

    size: int = 3
    """Rows of each split."""
    noise: float = 0.0
    """Share of wrong rows."""
    style: Literal["plain", "fancy"] = "plain"
    """How letters look."""
    is_classification: bool = False
    """Whether the answer is a label."""

    @property
    def kind(self):
        return "classification" if self.is_classification else "sequence_to_sequence"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise tasks.OptionError("task.size", self.size, "must be at least 1")

    def build_splits(self) -> dict[str, list[Example]]:
        rows = [Example((str(n),), (str(n),)) for n in range(self.size)]
        return {"train": rows, "dev": rows, "test": rows, "gen": rows}


@pytest.fixture
def toy(monkeypatch) -> type[Task]:
    """Register the task ``toy``."""
    monkeypatch.setitem(tasks.TASKS, "toy", Toy)
    return Toy


@pytest.fixture
def write(tmp_path) -> Callable[[str], Path]:
    """Return a function that writes a config file of the given text."""

    def write_config(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_config


def score(split: str, value: float) -> Score:
    """Return the score of a split at the model's own depth."""
    return Score(
        split=split,
        repeats=4,
        metrics={"exact_match": value, "token_accuracy": (1 + value) / 2},
        rows=100,
        rows_available=100,
        ceiling=0.922,
        chance=0.0,
        majority=0.01,
        by_category={"cp_recursion": {"exact_match": 0.0, "rows": 40}},
        by_difficulty={
            "2": {"exact_match": value, "rows": 60},
            "10": {"exact_match": value / 2, "rows": 40},
        },
    )


@pytest.fixture
def make_sweep(tmp_path) -> Callable[..., Path]:
    """Return a function that lays out a finished sweep.

    It takes ``variant=[value of each seed]``; a string instead of a number is a failure's message,
    None a run that never started.
    """

    def make(
        name: str = "demo",
        *,
        headline: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
        result: Callable[[str, int, dict[str, Any]], None] | None = None,
        plan: bool = True,
        **variants: list[float | str | None],
    ) -> Path:
        directory = tmp_path / name
        runs = []
        for variant, values in variants.items():
            for seed, value in enumerate(values):
                folder = f"{variant}-0000000{len(variant) % 10}/seed{seed}"
                run = {
                    "variant": variant,
                    "parameters": parameters or {},
                    "seed": seed,
                    "hash": folder.split("/")[0][-8:],
                    "directory": folder,
                }
                runs.append(run)
                path = directory / folder
                if value is None:
                    continue
                path.mkdir(parents=True)
                if isinstance(value, str):
                    error = {"status": "failed", "step": 7, "message": value}
                    (path / "error.json").write_text(json.dumps(error))
                    continue
                data = RunResult(
                    sweep=name,
                    **{key: run[key] for key in ("variant", "parameters", "seed", "hash")},
                    select="final",
                    step=2000,
                    task=TaskSummary(
                        name="cogs",
                        difficulty_name="recursion depth",
                        kind="sequence_to_sequence",
                        headline_split="gen",
                        in_distribution_split="test",
                    ),
                    model=ModelSummary(
                        parameters=1000,
                        macs_per_token=500 if variant == "transformer" else 800,
                        num_layers=4,
                        group_size=2,
                        d_model=32,
                    ),
                    tokens_seen=12345,
                    notes=["gen: 100 of 21000 rows, 100 per category chosen by hash"],
                    scores=[score("test", 1.0), score("gen", value)],
                ).to_json()
                if result:
                    result(variant, seed, data)
                (path / "result.json").write_text(json.dumps(data))
                wall = 61.5 + seed
                times = Timings(wall_seconds=wall, evaluate_seconds=wall / 4, starts=1)
                (path / "timings.json").write_text(json.dumps(times.to_json()))
                rows = [{"step": s, "loss": 2.0 / s} for s in (1, 2, 3)]
                rows += [
                    {"step": s, "split": "test", "metrics": {"exact_match": s / 3}} for s in (1, 3)
                ]
                (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        directory.mkdir(exist_ok=True)
        if plan:
            record = {
                "name": name,
                "baseline": next(iter(variants), ""),
                "headline": headline or {},
                "variants": list(variants),
                "runs": runs,
            }
            (directory / "sweep.json").write_text(json.dumps(record))
        return directory

    return make


# --- real training, on a task that takes no time ------------------------------------------


def reversal_rows(rows: int, *, seed: int, label: bool) -> str:
    """Return TSV rows: letters to the same letters reversed, or to the last letter."""
    generator = random.Random(seed)
    lines = []
    for _ in range(rows):
        letters = generator.choices("abcde", k=generator.randint(1, 6))
        answer = letters[-1:] if label else letters[::-1]
        lines.append(f"{' '.join(letters)}\t{' '.join(answer)}\tlength {len(letters)}\n")
    return "".join(lines)


RUN = """
task: {{name: file, train: {folder}/train.tsv, dev: {folder}/dev.tsv, test: {folder}/test.tsv,
       in_distribution: dev, kind: {kind}}}
model: {{architecture: {architecture}, form: {form}, d_model: 16, dropout: 0.1,
        attention: {{num_heads: 2}}, depth: {depth}, feed_forward: {feed_forward}}}
train: {{steps: 12, batch_size: 8, accumulate: 2, checkpoint_interval: 5, log_interval: 2,
        learning_rate: 0.01, schedule: cosine, warmup_steps: 3}}
evaluate: {{interval: 4}}
"""


@pytest.fixture
def run_text(tmp_path) -> Callable[..., str]:
    """Return a function that writes a small task and returns the YAML of a run on it."""

    def text(form: str = "encoder_decoder", architecture: str = "transformer") -> str:
        label = form == "encoder_classifier"
        for index, split in enumerate(("train", "dev", "test")):
            rows = reversal_rows(30 if split == "train" else 8, seed=index, label=label)
            (tmp_path / f"{split}.tsv").write_text(rows)
        experts = "{num_experts: 4, expert_size: 8, top_k: 2, expert_dropout: 0.1}"
        has_experts = architecture in ("moeut", "sigma_moe")
        return RUN.format(
            folder=tmp_path,
            kind="classification" if label else "sequence_to_sequence",
            form=form,
            architecture=architecture,
            depth="{repeats: 2}" if architecture == "universal" else "{group: 2, repeats: 1}",
            feed_forward=experts if has_experts else "{hidden_size: 16}",
        )

    return text


@pytest.fixture
def make_run(tmp_path, run_text) -> Callable[..., Path]:
    """Return a function that lays out the directory of a run that has not begun."""

    def make(
        name: str = "run",
        *overrides: str,
        form: str = "encoder_decoder",
        architecture: str = "transformer",
    ) -> Path:
        from runners.config.run_file import read_run
        from runners.process.run_directory import RunDirectory, RunRecord
        from runners.training.experiment import data_hash

        file = tmp_path / f"{name}.yaml"
        file.write_text(run_text(form, architecture))
        config = read_run(file, overrides)
        digest = config.hash(data_hash(config.task))
        record = RunRecord(sweep="s", variant=architecture, seed=config.seed, hash=digest)
        directory = tmp_path / name
        RunDirectory(directory).prepare(config, record)
        return directory

    return make


@pytest.fixture
def train(monkeypatch) -> Callable[..., str]:
    """Return a function that runs a directory in this process; ``stop_at`` asks for a stop there.

    It returns the status: done, failed or stopped.
    """

    def run(directory: Path, *, stop_at: int | None = None, on_progress=None) -> str:
        from runners import run as module
        from runners.process import signals
        from runners.process.signals import Stopped
        from runners.training.loop import Loop

        stop = signals.Stop()
        advance = Loop.advance

        def advance_and_stop(loop: Loop) -> dict[str, float]:
            values = advance(loop)
            if loop.position.step == stop_at:
                stop.request()
            return values

        if stop_at == 0:
            stop.request()
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "advance", advance_and_stop)
            try:
                return module.run(
                    directory, stop=stop, on_progress=on_progress or (lambda message: None)
                )
            except Stopped:
                return "stopped"

    return run


LANGUAGE_RUN = """
task: {name: language, corpus: files, files: [FILE], tokenizer: bytes, context_length: 16,
       validation_fraction: 0.2, test_fraction: 0.2}
model: {architecture: moeut, d_model: 16, depth: {group: 1, repeats: 2}, attention: {num_heads: 2},
        feed_forward: {num_experts: 4, expert_size: 8, top_k: 2}}
train: {steps: 2, batch_size: 2, checkpoint_interval: 1}
"""


def make_language_run(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: str = LANGUAGE_RUN,
    *,
    overrides: tuple[str, ...] = (),
) -> Path:
    """A finished run on made-up text."""
    monkeypatch.setenv("MOEUT_CACHE", str(folder / "cache"))
    text = folder / "text.jsonl"
    text.write_text("".join(f'{{"text": "{"abc def " * (3 + n % 5)}{n}"}}\n' for n in range(60)))
    path = folder / "lm.yaml"
    path.write_text(config.replace("FILE", str(text)))
    from runners.config.run_file import read_run
    from runners.process import signals
    from runners.process.run_directory import RunDirectory
    from runners.run import run
    from runners.train import plan_single

    read = read_run(path, overrides)
    directory, record = plan_single(read, name="lm", root=folder / "runs")
    RunDirectory(directory).prepare(read, record)
    assert run(directory, stop=signals.Stop()) == "done"
    return directory


@pytest.fixture(scope="session")
def language_run():
    """What makes a finished run of a tiny language model in a folder."""
    return make_language_run


TINY = {
    "moeut": {
        "attention": {"num_heads": 2, "num_experts": 3},
        "feed_forward": {"num_experts": 6, "expert_size": 8, "top_k": 2},
    },
    "transformer": {"attention": {"num_heads": 2}, "feed_forward": {"hidden_size": 32}},
}


def _tiny_language_model(architecture="moeut", *, tokenizer=None, context_length=24, **options):
    """Return a random float64 language model with 4 applied layers, over bytes."""
    tokenizer = tokenizer or Bytes(Bytes.CONTENT)
    torch.manual_seed(1)
    config = moeut.architecture(
        architecture,
        form="decoder_lm",
        vocabulary_size=tokenizer.vocabulary_size,
        d_model=16,
        **TINY[architecture],
        **options,
    )
    return LanguageModel(
        model=moeut.build(config).double().eval(),
        tokenizer=tokenizer,
        context_length=context_length,
        device=torch.device("cpu"),
        precision="float32",
        name="tiny",
        separator="",
    )


@pytest.fixture(scope="session")
def tiny_language_model():
    return _tiny_language_model
