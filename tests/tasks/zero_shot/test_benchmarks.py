"""Each benchmark's reader, on small files in the upstream format."""

from __future__ import annotations

import doctest
import importlib
import json

import pytest

from tasks.base.data_files import DataDamaged, DataMissing
from tasks.zero_shot import ZERO_SHOT, Likelihood, arc_easy, cbt, get, hellaswag, lambada, score


def jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_examples_of_the_docstring(name):
    result = doctest.testmod(importlib.import_module(f"tasks.zero_shot.{name}"))
    assert result.failed == 0
    assert result.attempted > 1


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_missing_files_name_the_command_that_fetches_them(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path))
    with pytest.raises(DataMissing, match=f"fetch it with: python -m tasks.fetch {name}$"):
        get(name).read()


def blimp_rows(paradigm: str, count: int) -> list[dict]:
    return [
        {
            "sentence_good": f"The cat {i} sees herself.",
            "sentence_bad": f"The cat {i} sees himself.",
            "field": "morphology",
            "linguistics_term": "anaphor_agreement",
            "UID": paradigm,
            "pairID": str(i),
        }
        for i in range(count)
    ]


def test_blimp_reads_every_paradigm_and_limits_each(put):
    paradigms = [file.path.split("/")[1].removesuffix(".jsonl") for file in get("blimp").files]
    assert len(paradigms) == len(set(paradigms)) == 67
    assert all(file.rows == 1000 for file in get("blimp").files)
    some = paradigms[:3]
    put("blimp", {f"blimp/{name}.jsonl": jsonl(blimp_rows(name, 5)) for name in some})
    assert len(get("blimp").read()) == 15
    questions = get("blimp").read(limit=2)
    assert [question.groups["paradigm"] for question in questions] == [
        name for name in some for _ in range(2)
    ]
    assert questions[0].context == ""
    assert questions[0].continuations == (" The cat 0 sees herself.", " The cat 0 sees himself.")
    assert questions[0].answer == 0


def test_blimp_counts_terms_as_the_paper_does():
    parse = importlib.import_module("tasks.zero_shot.blimp").parse
    (row,) = blimp_rows("animate_subject_trans", 1)
    changed = parse(row | {"linguistics_term": "s-selection", "field": "syntax/semantics"})
    assert changed.groups["phenomenon"] == "argument_structure"
    assert changed.groups["field"] == "syntax_semantics"


def test_piqa_takes_its_answers_from_the_second_file(put):
    rows = [{"goal": f"goal {i} ", "sol1": "first", "sol2": "second "} for i in range(4)]
    put("piqa", {"piqa/valid.jsonl": jsonl(rows), "piqa/valid-labels.lst": "0\n1\n1\n0\n"})
    questions = get("piqa").read()
    assert [question.answer for question in questions] == [0, 1, 1, 0]
    assert questions[0].context == "Question: goal 0 \nAnswer:"
    assert questions[0].continuations == (" first", " second ")
    assert questions[0].lengths == (5, 7)
    assert len(get("piqa").read(limit=3)) == 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [("0\n1\n", "2 labels for 3 questions"), ("0\n1\n2\n", "valid.jsonl:3: .*not in tuple")],
)
def test_piqa_refuses_labels_that_do_not_fit(put, labels, message):
    rows = [{"goal": "g", "sol1": "a", "sol2": "b"}] * 3
    put("piqa", {"piqa/valid.jsonl": jsonl(rows), "piqa/valid-labels.lst": labels})
    with pytest.raises(DataDamaged, match=message):
        get("piqa").read()


def test_hellaswag_cleans_what_wikihow_left(put):
    row = {
        "activity_label": "Food and Entertaining",
        "ctx_a": "[header] How to boil an egg [title] Fill a pot  with water.",
        "ctx_b": "the POT",
        "endings": [" is [substeps] hot.", "b", "c", "d"],
        "label": 2,
    }
    put("hellaswag", {"hellaswag/hellaswag_val.jsonl": jsonl([row])})
    (question,) = get("hellaswag").read()
    # " [title]" → ". "; then brackets; then two spaces are one, once.
    assert question.context == (
        "Food and Entertaining: How to boil an egg. Fill a pot with water. The pot"
    )
    assert question.continuations[0] == " is hot."
    assert question.answer == 2
    assert hellaswag.clean("a [title] b") == "a. b"


def test_arc_easy_has_questions_with_other_numbers_of_choices(put):
    def row(labels: str, key: str) -> dict:
        options = [{"text": f"choice {label}", "label": label} for label in labels]
        return {"question": {"stem": "Which?", "choices": options}, "answerKey": key}

    rows = [row("ABCD", "D"), row("1234", "1"), row("ABC", "B")]
    put("arc_easy", {"arc_easy/ARC-Easy-Test.jsonl": jsonl(rows)})
    questions = get("arc_easy").read()
    assert [question.answer for question in questions] == [3, 0, 1]
    assert arc_easy.TEST.rows == 2376
    # The paper's score leaves the last one out, the harness's do not.
    right = [[Likelihood(-float(i != q.answer), 1, False) for i in range(4)] for q in questions]
    answers = [row[: len(q.continuations)] for row, q in zip(right, questions, strict=True)]
    answers[0].reverse()  # and so wrong
    result = score(get("arc_easy"), questions, answers)
    counted = {name: (one.value, one.questions) for name, one in result.metrics.items()}
    assert counted["acc"] == (pytest.approx(2 / 3), 3)
    assert counted["acc_token"] == (0.5, 2)
    expected = {"acc": (1 / 4 + 1 / 4 + 1 / 3) / 3, "acc_token": 1 / 4}
    assert {name: result.chance[name] for name in expected} == pytest.approx(expected)
    assert list(score(get("arc_easy"), questions[2:], answers[2:]).metrics) == ["acc", "acc_norm"]


def test_arc_easy_of_another_number_of_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEUT_DATA", str(tmp_path))
    (tmp_path / "arc_easy").mkdir()
    (tmp_path / "arc_easy/ARC-Easy-Test.jsonl").write_text("{}\n")
    with pytest.raises(DataDamaged, match=r"ARC-Easy-Test\.jsonl: 1 lines, expected 2376"):
        get("arc_easy").read()


def test_lambada_cuts_at_the_last_space(put):
    texts = ["He said\n“no ,” said Ann", "one  two"]
    content = jsonl({"text": text} for text in texts)
    put("lambada", {"lambada/lambada_test.jsonl": content})
    first, second = get("lambada").read()
    assert (first.context, first.continuations) == ("He said\n“no ,” said", (" Ann",))
    assert (second.context, second.continuations) == ("one ", (" two",))
    assert lambada.TEST.rows == 5153


def cbt_block(i: int, answer: str = "dog", candidates: str = "") -> str:
    words = candidates or "|".join(["cat", "dog", *(f"word{k}" for k in range(8))])
    lines = [f"{n} Sentence {n} of {i} , it is n't long ." for n in range(1, 21)]
    lines.append(f"21 `` Then the XXXXX barked , '' he said .\t{answer}\t\t{words}")
    return "\n".join(lines) + "\n\n"


@pytest.fixture
def cbt_files(put, monkeypatch):
    def write(blocks: list[str]) -> None:
        monkeypatch.setattr(cbt.ChildrensBookTest, "questions_per_file", len(blocks))
        put("cbt", {file.path: "".join(blocks) for file in get("cbt").files})

    return write


def test_cbt_continues_with_the_rest_of_the_sentence(cbt_files):
    cbt_files([cbt_block(i) for i in range(3)])
    questions = get("cbt").read()
    assert len(questions) == 12
    question = questions[0]
    assert question.context.startswith("Sentence 1 of 0, it isn't long. Sentence 2 of 0, it")
    assert question.context.endswith("it isn't long. \"Then the ")
    assert question.continuations[:2] == ('cat barked," he said.', 'dog barked," he said.')
    assert (question.answer, len(question.continuations)) == (1, 10)
    assert [q.groups["category"] for q in get("cbt").read(limit=1)] == [
        "named entities",
        "common nouns",
        "verbs",
        "prepositions",
    ]


def test_cbt_leaves_out_questions_without_ten_candidates(cbt_files):
    cbt_files([cbt_block(0), cbt_block(1, candidates="cat|dog|cow"), cbt_block(2, answer="hen")])
    assert len(get("cbt").read()) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 One .\nno number\n\n", ":23: 'no number': expected a number"),
        ("1 One .\n2 Two .\n\n", ":23: 'Two .': expected a sentence with XXXXX"),
    ],
)
def test_cbt_names_the_line_that_is_no_question(cbt_files, text, message):
    cbt_files([cbt_block(0), text])
    with pytest.raises(DataDamaged, match=message):
        get("cbt").read()


def test_cbt_with_questions_missing_is_refused(put):
    put("cbt", {file.path: cbt_block(0) for file in get("cbt").files})
    with pytest.raises(DataDamaged, match="1 questions, expected 2500"):
        get("cbt").read()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', "lambada_test.jsonl:1: 'int' object"),
        ('{"txt": "a b"}', "lambada_test.jsonl:1: no field 'text'; has txt"),
        ("nonsense", "lambada_test.jsonl:1: not JSON"),
        ("[1]", "lambada_test.jsonl:1: expected a JSON object"),
    ],
)
def test_damaged_rows_are_one_line(put, line, message):
    put("lambada", {"lambada/lambada_test.jsonl": line + "\n"})
    with pytest.raises(DataDamaged, match=message) as error:
        get("lambada").read()
    assert "\n" not in str(error.value)
