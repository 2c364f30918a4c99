"""lm-evaluation-harness and our own scores, on the same local files."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from runners import harness
from runners.scoring import zero_shot
from runners.scoring.likelihoods import Request, score_requests
from tasks.base.command_line import BAD_INPUT
from tasks.language.tokenizers import Bytes
from tasks.zero_shot import blimp, get, piqa

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
]

YAML = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
output_type: {kind}
validation_split: validation
doc_to_text: {text}
doc_to_target: {target}
{choices}
metric_list:
{metrics}
"""


def sentence(draw: random.Random, most: int = 6) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(2, most)))


def write(folder: Path, name: str, rows: list[dict], **fields: str) -> None:
    """Write a task of the harness, its data beside it."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = fields.pop("metrics").split()
    fields["metrics"] = "\n".join(f"  - metric: {metric}" for metric in metrics)
    (folder / f"{name}.yaml").write_text(YAML.format(name=name, file=file, **fields))


def blimp_rows(count: int) -> list[dict]:
    draw = random.Random(0)
    same = {"field": "syntax", "linguistics_term": "island_effects", "UID": "ours"}
    pairs = [(sentence(draw), sentence(draw)) for _ in range(count)]
    return [{"sentence_good": good, "sentence_bad": bad, **same} for good, bad in pairs]


def piqa_rows(count: int) -> list[dict]:
    draw = random.Random(1)
    return [
        {
            # Some with spaces at their end, and some longer than the model's context.
            "goal": sentence(draw, 12) + draw.choice(["", " "]),
            "sol1": sentence(draw),
            "sol2": sentence(draw, 3) + draw.choice(["", " "]),
            "label": draw.randint(0, 1),
        }
        for _ in range(count)
    ]


@pytest.fixture
def lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    return pytest.importorskip("lm_eval", reason="needs pip install 'moeut-suite[eval]'")


class WithoutBoundary(Bytes):
    """Bytes as a tokenizer like the paper's, which has no id between documents."""

    boundary_id = None


@pytest.mark.extras
@pytest.mark.parametrize("kind", [Bytes, WithoutBoundary])
def test_harness_and_own_scores_agree_to_the_last_example(
    lm_eval, tmp_path, tiny_language_model, kind
):
    from lm_eval.tasks import TaskManager

    language = tiny_language_model(tokenizer=kind(Bytes.CONTENT), context_length=80)
    pairs, questions = blimp_rows(25), piqa_rows(25)
    write(
        tmp_path,
        "our_pairs",
        pairs,
        kind="multiple_choice",
        text='""',
        target="0",
        choices='doc_to_choice: "{{[sentence_good, sentence_bad]}}"',
        metrics="acc",
    )
    write(
        tmp_path,
        "our_questions",
        questions,
        kind="multiple_choice",
        text='"Question: {{goal}}\\nAnswer:"',
        target="label",
        choices='doc_to_choice: "{{[sol1, sol2]}}"',
        metrics="acc acc_norm",
    )
    found = lm_eval.simple_evaluate(
        harness.harness_model(language, batch_size=7),
        tasks=["our_pairs", "our_questions"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=100,
        cache_requests=False,
    )
    own = {
        "our_pairs": (get("blimp"), [blimp.parse(row) for row in pairs]),
        "our_questions": (
            get("piqa"),
            [piqa.parse(row, str(row["label"])) for row in questions],
        ),
    }
    for name, (benchmark, asked) in own.items():
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        assert len(samples) == len(asked) == 25
        requests = [
            [zero_shot.encode(language.tokenizer, q.context, text) for text in q.continuations]
            for q in asked
        ]
        answers = score_requests(language, requests, batch_size=7)
        for sample, question, row in zip(samples, asked, answers, strict=True):
            theirs = [
                (float(value), str(greedy) == "True") for value, greedy in sample["filtered_resps"]
            ]
            # Its batches hold the requests of both tasks: equal but for rounding.
            assert [a.is_greedy for a in row] == [greedy for _, greedy in theirs]
            assert [a.log_likelihood for a in row] == pytest.approx(
                [value for value, _ in theirs], abs=1e-10
            )
            values = benchmark.values(question, row)
            for metric in ("acc", "acc_norm"):
                if metric in sample:
                    assert sample[metric] == values[metric]
        result = zero_shot.evaluate_questions(language, benchmark, asked, batch_size=7)
        for metric in ("acc", "acc_norm"):
            if f"{metric},none" in found["results"][name]:
                one = result.metrics[metric]
                assert found["results"][name][f"{metric},none"] == pytest.approx(one.value)
                error = found["results"][name][f"{metric}_stderr,none"]
                assert error == pytest.approx(one.standard_error, rel=1e-9)
    # The samples tell the two normalisations apart, so that a mistake in one would show.
    questions_found = found["results"]["our_questions"]
    assert questions_found["acc,none"] != questions_found["acc_norm,none"]
    assert any(
        zero_shot.is_truncated(request, language.context_length)
        for row in requests
        for request in row
    )


def instance(kind: str, *arguments: object, doc: int = 0):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0, metadata=("task", doc, 1))


@pytest.mark.extras
def test_whole_texts_are_scored_in_windows(lm_eval, tiny_language_model):
    language = tiny_language_model(context_length=10)
    text = "a text of more than ten bytes"
    model = harness.harness_model(language)
    request = Request((256,), tuple(text.encode()))
    ((expected,),) = score_requests(language, [[request]])
    found = model.loglikelihood_rolling(
        [instance("loglikelihood_rolling", text), instance("loglikelihood_rolling", "")]
    )
    assert found == [expected.log_likelihood, 0.0]
    # The harness's own windows, one by one.
    from lm_eval.utils import get_rolling_token_windows

    total = 0.0
    for seen, wanted in get_rolling_token_windows(list(text.encode()), 256, 10, 1):
        with torch.no_grad():
            logits = language.model(torch.tensor([seen])).logits[0].log_softmax(-1)
        total += float(
            logits[torch.arange(len(seen)), (seen[1:] + wanted[-1:])][-len(wanted) :].sum()
        )
    assert found[0] == pytest.approx(total, abs=1e-10)


@pytest.mark.extras
def test_generation_is_greedy_and_ends_at_a_stop_string(lm_eval, tiny_language_model):
    language = tiny_language_model(context_length=40)
    prompts = ["abc", "another prompt", "x" * 60]
    settings = {"until": [], "max_gen_toks": 8, "do_sample": False}
    model = harness.harness_model(language)
    found = model.generate_until([instance("generate_until", p, settings) for p in prompts])
    for prompt, text in zip(prompts, found, strict=True):
        tokens = [256, *prompt.encode()]  # whole, also where it is longer than the context
        written: list[int] = []
        with torch.no_grad():
            for _ in range(8):
                best = int(language.model(torch.tensor([tokens + written])).logits[0, -1].argmax())
                if best == 256:
                    break
                written.append(best)
        assert text == language.tokenizer.decode(written)
    stop = found[0][1]
    (cut,) = model.generate_until([instance("generate_until", "abc", settings | {"until": [stop]})])
    assert cut == found[0].split(stop)[0]
    assert len(cut) < len(found[0])


def read_prompts(monkeypatch, module=harness):
    """Return a list that gets the rows of ids that are continued."""
    seen: list[list[int]] = []
    real = module.continue_ids

    def spy(language, rows, settings, **options):
        seen.extend(rows)
        return real(language, rows, settings, **options)

    monkeypatch.setattr(module, "continue_ids", spy)
    return seen


@pytest.mark.extras
@pytest.mark.parametrize("limit", [None, 30])
def test_a_prompt_stays_whole_however_many_tokens_are_asked_for(
    lm_eval, tiny_language_model, monkeypatch, caplog, limit
):
    """The default of 256 tokens is more than the context holds."""
    position = {} if limit is None else {"position": {"kind": "learned", "max_length": limit}}
    language = tiny_language_model("transformer", context_length=24, **position)
    monkeypatch.setattr(type(language.tokenizer), "boundary_id", None)  # nothing ends a text
    seen = read_prompts(monkeypatch)
    prompts = ["the cat sat on a mat", "x" * 30, "a"]
    found = harness.harness_model(language).generate_until(
        [instance("generate_until", prompt, {"until": []}) for prompt in prompts]
    )
    assert seen == [list(prompt.encode()) for prompt in prompts]
    with torch.no_grad():
        for prompt, text in zip(prompts, found, strict=True):
            written: list[int] = []
            # The last token written is not read.
            for _ in range(256 if limit is None else limit + 1 - len(prompt)):
                ids = torch.tensor([list(prompt.encode()) + written])
                written.append(int(language.model(ids).logits[0, -1, :256].argmax()))
                if limit is None and len(written) == 12:
                    break
            decoded = language.tokenizer.decode(written)
            assert text == decoded if limit else text.startswith(decoded[:4])
    said = [record.message for record in caplog.records]
    assert any("1 of 3 prompts are longer than the windows of 24 tokens" in line for line in said)
    assert any("3 of 3 prompts: fewer than 256 tokens" in line for line in said) == bool(limit)


@pytest.mark.extras
def test_a_prompt_without_room_is_refused_before_anything_is_generated(
    lm_eval, tiny_language_model, monkeypatch
):
    position = {"kind": "learned", "max_length": 30}
    language = tiny_language_model("transformer", position=position)
    seen = read_prompts(monkeypatch)
    requests = [instance("generate_until", text, {"until": []}) for text in ("a", "x" * 30)]
    with pytest.raises(ValueError, match="31 tokens; the model's learned positions end at 30"):
        harness.harness_model(language).generate_until(requests)
    assert seen == []


@pytest.mark.extras
@pytest.mark.parametrize("key", harness.MAX_TOKENS_KEYS)
def test_every_name_of_the_number_of_tokens_counts(lm_eval, tiny_language_model, monkeypatch, key):
    language = tiny_language_model()
    monkeypatch.setattr(type(language.tokenizer), "boundary_id", None)  # nothing ends a text
    monkeypatch.setattr(type(language.tokenizer), "decode", lambda self, ids: "." * len(ids))
    model = harness.harness_model(language)
    requests = [instance("generate_until", "abc", {"until": [], key: n}) for n in (1, 30)]
    assert [len(text) for text in model.generate_until(requests)] == [1, 30]


@pytest.mark.extras
def test_wildcards_name_tasks_and_unreadable_data_is_one_line(
    lm_eval, tmp_path, tiny_language_model, monkeypatch, capsys
):
    monkeypatch.setattr(harness, "load_language_model", lambda *a, **o: tiny_language_model())
    for name in ("ours_one", "ours_two"):
        write(
            tmp_path,
            name,
            blimp_rows(2),
            kind="multiple_choice",
            text='""',
            target="0",
            choices='doc_to_choice: "{{[sentence_good, sentence_bad]}}"',
            metrics="acc",
        )
    words = ["run", "--include-path", str(tmp_path), "--json"]
    assert harness.main([*words, "--tasks", "ours_*"]) == 0
    assert set(json.loads(capsys.readouterr().out)["results"]) == {"ours_one", "ours_two"}
    assert harness.main([*words, "--tasks", "theirs_*"]) == BAD_INPUT
    assert "--tasks theirs_*: not among the harness's tasks" in capsys.readouterr().err
    for spoil in (lambda file: file.write_text("no json\n"), lambda file: file.unlink()):
        spoil(tmp_path / "ours_two.jsonl")
        assert harness.main([*words, "--tasks", "ours_two"]) == BAD_INPUT
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert "--tasks ours_two" in error.strip().splitlines()[-1]
        assert "ours_two.yaml" in error.strip().splitlines()[-1]


def test_without_the_harness_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert harness.main([str(tmp_path), "--tasks", "blimp"]) == BAD_INPUT
    assert "pip install 'moeut-suite[eval]'" in capsys.readouterr().err


@pytest.mark.extras
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "blimp"], "expected a run's directory"),
        (["--tasks", "blimp", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--tasks", "x", "--include-path", "/nowhere"], "--include-path /nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line(lm_eval, tmp_path, capsys, words, message):
    assert harness.main([str(tmp_path / "nothing"), *words]) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
