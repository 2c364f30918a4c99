"""Benchmarks of a language model: scores against ones worked out apart, and the command."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from runners import evaluate
from runners.process.signals import Stopped
from runners.scoring import zero_shot
from runners.scoring.language_model import load_language_model
from runners.scoring.likelihoods import encode, score_requests
from tasks.base.command_line import BAD_INPUT, DONE
from tasks.base.storage import sha256_of
from tasks.language.train_tokenizer import train_tokenizer
from tasks.zero_shot import get
from tasks.zero_shot.blimp import parse

WORDS = ["alpha beta", "gamma delta", "epsilon", "zeta eta theta"]


def rows(paradigm: str, count: int) -> list[dict]:
    return [
        {
            # Of one length, so that neither is likelier by being short.
            "sentence_good": f"{WORDS[i % 4]} {WORDS[(i + 1) % 4]} {WORDS[i % 3]}",
            "sentence_bad": f"{WORDS[(i + 1) % 4]} {WORDS[i % 4]} {WORDS[i % 3]}",
            "field": "syntax" if paradigm < "b" else "morphology",
            "linguistics_term": "island_effects",
            "UID": paradigm,
        }
        for i in range(count)
    ]


@pytest.fixture
def blimp_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two paradigms of seven and five pairs, as if they were the published ones."""
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    benchmark = get("blimp")
    files = []
    for file, count in zip(benchmark.files[:2], (7, 5), strict=True):
        name = Path(file.path).stem
        lines = "".join(json.dumps(row) + "\n" for row in rows(name, count))
        goal = tmp_path / "data" / file.path
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.write_text(lines)
        files.append(dataclasses.replace(file, sha256=sha256_of(lines.encode()), rows=count))
    monkeypatch.setattr(type(benchmark), "files", tuple(files))


@torch.no_grad()
def log_likelihood(language, text: str) -> float:
    """Return that of a text after the boundary, token by token."""
    tokens = [language.tokenizer.boundary_id, *language.tokenizer.encode(text)]
    logits = language.model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    return sum(float(logits[i, token]) for i, token in enumerate(tokens[1:]))


def test_blimp_counts_the_pairs_whose_right_sentence_is_likelier(tiny_language_model):
    language = tiny_language_model(context_length=64)
    table = {paradigm: rows(paradigm, count) for paradigm, count in (("a", 9), ("b", 4))}
    questions = [parse(row) for part in table.values() for row in part]
    result = zero_shot.evaluate_questions(language, get("blimp"), questions, batch_size=5)
    shares = {
        paradigm: sum(
            log_likelihood(language, " " + row["sentence_good"])
            > log_likelihood(language, " " + row["sentence_bad"])
            for row in part
        )
        / len(part)
        for paradigm, part in table.items()
    }
    assert len(set(shares.values())) == 2  # so that an average over pairs would be another
    found = {name: scores["acc"].value for name, scores in result.groups["paradigm"].items()}
    assert found == pytest.approx(shares)
    assert result.metrics["acc"].value == pytest.approx(sum(shares.values()) / 2)
    assert result.groups["field"]["morphology"]["acc"].value == pytest.approx(shares["b"])
    assert result.truncated == 0


def test_contexts_that_were_cut_are_counted(tiny_language_model):
    language = tiny_language_model(context_length=30)
    questions = [parse(row) for row in rows("a", 8)]
    result = zero_shot.evaluate_questions(language, get("blimp"), questions)
    lengths = [len(text.encode()) for question in questions for text in question.continuations]
    assert 0 < result.truncated == sum(length > 30 for length in lengths) < len(lengths)


def test_the_space_before_a_sentence_is_nothing_to_the_papers_tokenizer():
    """So scores in the harness's format are those of the paper's code, which puts none there."""
    tokenizer = train_tokenizer(
        WORDS * 5, vocabulary_size=40, normalization="paper", boundary=False
    )
    for text in WORDS:
        assert tokenizer.encode(" " + text) == tokenizer.encode(text)
    # Nor does it matter there that the paper's code tokenizes context and continuation apart.
    apart = tokenizer.encode(WORDS[0] + " ") + tokenizer.encode(WORDS[1])
    assert tokenizer.encode(WORDS[0] + " " + WORDS[1]) == apart
    # Except where nothing stands between them, as after a quotation mark in CBT.
    apart = tokenizer.encode(WORDS[0]) + tokenizer.encode(WORDS[1])
    assert tokenizer.encode(WORDS[0] + WORDS[1]) != apart


def test_a_model_that_diverged_has_no_scores(tiny_language_model):
    """NaN is not less than NaN: the first sentence of each pair, the right one, would win."""
    language = tiny_language_model(context_length=64)
    language.model.embedding.weight.data[ord("e")] = torch.nan
    questions = [parse(row) for row in rows("a", 3)]
    with pytest.raises(ValueError, match="tiny: its log-likelihoods are not numbers"):
        zero_shot.evaluate_questions(language, get("blimp"), questions)


# --- the command ------------------------------------------------------------------------


@pytest.fixture
def checkpoint(golden_dir: Path, tmp_path: Path) -> Path:
    """A file of the paper's training code, with a tokenizer beside it."""
    path = tmp_path / "moeut_periln.ckpt"
    path.write_bytes((golden_dir / "training_code" / path.name).read_bytes())
    tokenizer = train_tokenizer(
        WORDS * 5, vocabulary_size=40, normalization="paper", boundary=False
    )
    tokenizer.save(tmp_path)
    return path


@pytest.mark.golden
def test_a_checkpoint_file_is_scored_without_any_training_data(checkpoint, blimp_files, capsys):
    assert evaluate.main([str(checkpoint), "--task", "blimp", "--json"]) == DONE
    ((report,),) = (json.loads(capsys.readouterr().out),)
    (result,) = report["results"]
    assert (result["benchmark"], result["headline"]) == ("blimp", "acc")
    paradigms = result["groups"]["paradigm"]
    assert [scores["acc"]["questions"] for scores in paradigms.values()] == [7, 5]
    mean = sum(scores["acc"]["value"] for scores in paradigms.values()) / 2
    assert result["metrics"]["acc"]["value"] == pytest.approx(mean)
    assert result["metrics"]["acc"]["standard_error"] > 0


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def all_files(blimp_files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows of every benchmark, as if they were the published ones."""
    words = " ".join(WORDS).split()
    choices = [{"text": f"{word}.", "label": label} for word, label in zip(words, "ABCD")]  # noqa: B905
    gap = "21 `` alpha XXXXX gamma . ''\tbeta\t\t" + "|".join(
        ["beta", *(f"c{i}" for i in range(9))]
    )
    block = "".join(f"{i} beta gamma .\n" for i in range(1, 21)) + gap + "\n\n"
    data = {
        "piqa": ['{"goal": "alpha", "sol1": "beta", "sol2": "gamma delta"}\n' * 3, "0\n1\n0\n"],
        "hellaswag": [
            json.dumps(
                {
                    "activity_label": "alpha",
                    "ctx_a": "beta.",
                    "ctx_b": "gamma",
                    "endings": WORDS,
                    "label": 1,
                }
            )
            + "\n"
        ],
        "arc_easy": [
            "".join(
                json.dumps(
                    {"question": {"stem": "alpha?", "choices": choices[:n]}, "answerKey": "B"}
                )
                + "\n"
                for n in (4, 3, 4)
            )
        ],
        "lambada": ['{"text": "alpha beta gamma"}\n' * 2],
        "cbt": [block] * 4,
    }
    for name, texts in data.items():
        benchmark = get(name)
        files = []
        for file, text in zip(benchmark.files, texts, strict=True):
            put(tmp_path / "data" / file.path, text)
            sha256 = None if file.sha256 is None else sha256_of(text.encode())
            count = None if file.rows is None else text.count("\n")
            files.append(dataclasses.replace(file, sha256=sha256, rows=count))
        monkeypatch.setattr(type(benchmark), "files", tuple(files))
    monkeypatch.setattr(type(get("cbt")), "questions_per_file", 1)


@pytest.mark.golden
def test_all_benchmarks_of_a_checkpoint(checkpoint, all_files, capsys):
    assert evaluate.main([str(checkpoint), "--task", "all", "--json"]) == DONE
    (report,) = json.loads(capsys.readouterr().out)
    counted = {
        result["benchmark"]: result["metrics"][result["headline"]]["questions"]
        for result in report["results"]
    }
    assert counted == {
        "blimp": 12,
        "piqa": 3,
        "hellaswag": 1,
        "arc_easy": 2,  # of three: one has three choices
        "lambada": 2,
        "cbt": 4,
    }
    assert evaluate.main([str(checkpoint), "--task", "cbt", "--task", "all"]) == DONE
    shown = capsys.readouterr().out
    assert shown.count("│ CBT ") == 3  # once, with three metrics
    assert "CBT: each category counts the same" in shown
    assert "cut, since the model was trained on 12 tokens at once" in shown


@torch.no_grad()
def papers_log_likelihood(language, context: str, continuation: str) -> tuple[float, int]:
    """As the paper's code has it: no separator, tokenized apart, the first token not scored."""
    before = language.tokenizer.encode(context) if context else []
    after = language.tokenizer.encode(continuation)
    tokens = torch.tensor([before + after])
    logits = language.model(tokens[:, :-1]).logits[0]
    losses = F.cross_entropy(logits, tokens[0, 1:], reduction="none")
    return -float(losses[max(0, len(before) - 1) :].sum()), len(after)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["blimp", "piqa", "hellaswag", "arc_easy", "lambada", "cbt"])
def test_log_likelihoods_are_those_of_the_papers_code(checkpoint, all_files, name):
    loaded = load_language_model(checkpoint)
    language = dataclasses.replace(loaded, model=loaded.model.double(), context_length=10_000)
    questions = get(name).read()
    requests = [
        [encode(language.tokenizer, question.context, text) for text in question.continuations]
        for question in questions
    ]
    found = score_requests(language, requests)
    for question, answers in zip(questions, found, strict=True):
        for text, answer in zip(question.continuations, answers, strict=True):
            expected, count = papers_log_likelihood(language, question.context, text)
            assert answer.log_likelihood == pytest.approx(expected, abs=1e-9)
            # What has no context is not normalised.
            assert answer.num_tokens == (count if question.context else count - 1)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("table", "BLiMP by paradigm"),
        ("markdown", "## BLiMP by paradigm"),
        ("latex", r"\caption{BLiMP by paradigm.}"),
    ],
)
def test_tables_are_printed(checkpoint, blimp_files, capsys, style, expected):
    words = [str(checkpoint), "--task", "blimp", "--limit", "3", "--format", style]
    assert evaluate.main(words) == DONE
    shown = capsys.readouterr().out
    assert expected in shown
    assert "chance" in shown
    assert "adjunct island" in shown
    assert "only the first 3 questions of each file" in shown
    assert shown.count("Zero-shot, moeut") == 1


@pytest.mark.golden
def test_depth_may_be_another(checkpoint, blimp_files, capsys):
    words = [str(checkpoint), "--task", "blimp", "--repeats", "2,3", "--json", "--batch-size", "4"]
    assert evaluate.main(words) == DONE
    reports = json.loads(capsys.readouterr().out)
    assert [report["num_repeats"] for report in reports] == [2, 3]


def test_a_run_is_scored(tmp_path, monkeypatch, language_run, blimp_files, capsys):
    data = tmp_path / "data"
    directory = language_run(tmp_path, monkeypatch)
    monkeypatch.setenv("MOEUT_DATA", str(data))
    before = sorted(directory.rglob("*"))
    assert evaluate.main([str(directory), "--task", "blimp", "--json"]) == DONE
    (report,) = json.loads(capsys.readouterr().out)
    # Sentences of more bytes than the 16 of a window are scored too.
    assert report["results"][0]["truncated"] > 0
    assert sorted(directory.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "blimb"], "--task blimb: expected one of blimp, piqa, hellaswag, arc_easy"),
        (["--task", "piqa"], "piqa/valid.jsonl: not found in .* with: python -m tasks.fetch piqa"),
        (["--task", "blimp", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--task", "blimp", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--task", "blimp", "--split", "dev"], "--split: only without --task"),
        (["--limit", "3"], "--limit: only with --task"),
        (["--task", "blimp"], "expected a run's directory"),
        (["--task", "all"], "piqa/valid.jsonl: not found in"),
    ],
)
def test_bad_input_is_one_line(tmp_path, blimp_files, capsys, words, message):
    assert evaluate.main([str(tmp_path / "nothing"), *words]) == BAD_INPUT
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
    assert re.search(message, shown.err)


class Hostile:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_checkpoint_file_with_code_ends_with_status_2(tmp_path, blimp_files, capfd, is_zip):
    path, target = tmp_path / "hostile.ckpt", tmp_path / "executed"
    torch.save({"model": Hostile(target)}, path, _use_new_zipfile_serialization=is_zip)
    assert evaluate.main([str(path), "--task", "blimp"]) == BAD_INPUT
    shown = capfd.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith(f"{path}: ")
    assert not target.exists()


def test_a_checkpoint_file_has_no_splits(tmp_path, capsys):
    path = tmp_path / "model.ckpt"
    path.touch()
    assert evaluate.main([str(path)]) == BAD_INPUT
    assert "model.ckpt: a file, which has no splits of its own" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_bad_input(monkeypatch, blimp_files, tmp_path):
    def broken(*arguments, **options):
        raise BrokenPipeError

    monkeypatch.setattr(zero_shot, "evaluate_path", broken)
    with pytest.raises(BrokenPipeError):
        evaluate.main([str(tmp_path), "--task", "blimp"])


def test_a_run_of_another_kind_is_refused(make_run, blimp_files, capsys):
    directory = make_run()
    assert evaluate.main([str(directory), "--task", "blimp"]) == BAD_INPUT
    assert "a run of task 'file'; expected a language model's" in capsys.readouterr().err


def test_a_signal_stops_between_batches(tiny_language_model, blimp_files, monkeypatch):
    language = tiny_language_model(context_length=64)
    monkeypatch.setattr(zero_shot, "load_language_model", lambda path, tokenizer: language)
    asked = []

    def check() -> None:
        asked.append(None)
        if len(asked) == 2:
            raise Stopped("now")

    with pytest.raises(Stopped):
        zero_shot.evaluate_path(Path("x"), ["blimp"], batch_size=4, check=check)
    assert len(asked) == 2
