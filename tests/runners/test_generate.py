"""The command that continues text: the same as the library, streamed, batched, and in one line on
bad input."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from runners import generate as command
from runners.generate import main
from runners.scoring.language_model import load_language_model
from tasks.language.tokenizers import Bytes

LEARNED = """
task: {name: language, corpus: files, files: [FILE], tokenizer: bytes, context_length: 16,
       validation_fraction: 0.2, test_fraction: 0.2}
model: {architecture: moeut, d_model: 16, depth: {group: 1, repeats: 2}, attention: {num_heads: 2},
        position: {kind: learned, max_length: 20},
        feed_forward: {num_experts: 4, expert_size: 8, top_k: 2}}
train: {steps: 2, batch_size: 2, checkpoint_interval: 1}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, language_run) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return language_run(tmp_path_factory.mktemp("generate"), patch)


def test_greedy_text_is_that_of_the_library(directory: Path, capsys) -> None:
    assert main([str(directory), "--prompt", "abc ", "--greedy", "--max-tokens", "9"]) == 0
    printed = capsys.readouterr()
    loaded = load_language_model(directory)
    ids = [256, *b"abc "]
    for _ in range(9):
        best = int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax())
        if best == 256:
            break
        ids.append(best)
    assert printed.out == "abc " + loaded.tokenizer.decode(ids[5:]) + "\n"
    assert "tokens/s" in printed.err


def test_a_file_of_prompts_is_a_batch(directory: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("abc\n\nd\nabc def\n")
    words = ["--greedy", "--json", "--max-tokens", "5"]
    assert main([str(directory), "--prompts", str(path), *words]) == 0
    batch = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in batch] == ["abc", "d", "abc def"]
    for row in batch:
        assert main([str(directory), "--prompt", row["prompt"], *words]) == 0
        assert json.loads(capsys.readouterr().out) == row


def test_prompts_are_typed(directory: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc\n\nd\\n\\te\n")))
    assert main([str(directory), "--greedy", "--json", "--max-tokens", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["abc", "d\n\te"]


def test_the_same_prompt_in_two_batches_is_continued_in_two_ways(
    directory: Path, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("abc\n" * 4)

    def texts() -> list[str]:
        words = ["--prompts", str(path), "--batch-size", "2", "--max-tokens", "30", "--json"]
        assert main([str(directory), *words]) == 0
        return [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]

    first = texts()
    assert len(set(first)) == 4
    assert texts() == first


def test_what_is_longer_than_a_window_is_said(directory: Path, capsys) -> None:
    """A window has 16 tokens, and one that is predicted; the boundary stands before a prompt."""
    for count, is_said in ((13, False), (14, True)):
        words = ["--prompt", "abc", "--greedy", "--max-tokens", str(count), "--json"]
        assert main([str(directory), *words]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["num_tokens"] == count  # it is written all the same
        assert ("windows of 16" in printed.err) == is_said


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, language_run) -> Path:
    """A model of 20 positions, one of which the boundary takes."""
    with pytest.MonkeyPatch.context() as patch:
        return language_run(tmp_path_factory.mktemp("learned"), patch, LEARNED)


def test_where_positions_end_fewer_tokens_follow_and_it_is_said(
    learned: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("abc\n" + "x" * 19 + "\nabcdefg\n")
    monkeypatch.setattr(
        "moeut.sampling._choose", lambda logits, *rest: logits[:, :1].argmax(1) + 97
    )
    for word in ("--greedy", "--no-cache"):
        assert main([str(learned), "--prompts", str(path), "--json", word]) == 0
        printed = capsys.readouterr()
        rows = [json.loads(line) for line in printed.out.splitlines()]
        # The last token written is not read: 21 - 1 - the prompt's.
        assert [(row["prompt"], row["num_tokens"]) for row in rows] == [
            ("abc", 17),
            ("x" * 19, 1),
            ("abcdefg", 13),
        ]
        assert [row["text"] for row in rows] == ["a" * 17, "a", "a" * 13]
        assert "3 of 3 prompts: fewer than 128 tokens can follow (the fewest: 1)" in printed.err
        assert "positions end at 20" in printed.err
    assert main([str(learned), "--prompt", "abc", "--max-tokens", "17"]) == 0
    assert "fewer" not in capsys.readouterr().err


def test_a_prompt_without_room_is_refused_before_anything_is_computed(
    learned: Path, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("abc\n" + "x" * 20 + "\n")
    assert main([str(learned), "--prompts", str(path), "--batch-size", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "21 tokens; the model's learned positions end at 20" in printed.err
    assert printed.err.count("\n") == 1


def test_ids_that_the_tokenizer_lacks_are_not_written(
    directory: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(directory), "--prompt", "abc", "--json", "--max-tokens", "40"]
    words += ["--temperature", "100"]

    def largest() -> int:
        seen = []
        decode = Bytes.decode
        monkeypatch.setattr(
            Bytes, "decode", lambda self, ids: (seen.extend(ids), decode(self, ids))[1]
        )
        assert main(words) == 0
        monkeypatch.setattr(Bytes, "decode", decode)
        return max(number for number in seen if number < 256)

    assert largest() >= 128
    load = command.load_language_model

    def load_with_fewer_ids(*arguments, **options):
        loaded = load(*arguments, **options)  # which refuses another tokenizer than the run's
        monkeypatch.setattr(Bytes, "vocabulary_size", 128)
        return loaded

    monkeypatch.setattr(command, "load_language_model", load_with_fewer_ids)
    assert largest() < 128


def test_tokens_leave_by_a_rule(directory: Path, capsys) -> None:
    words = [str(directory), "--prompt", "the", "--greedy", "--max-tokens", "4", "--repeats"]
    assert main([*words, "1"]) == 0
    once = capsys.readouterr().out
    for rule, used in (("cosine=9", 1), ("cosine=0", 4)):
        assert main([*words, "4", "--exit", rule]) == 0
        said = capsys.readouterr()
        assert f"repeats used: {used}.00 for a token" in said.err
        assert (said.out == once) == (used == 1)


def test_weights_are_rounded_where_asked(directory: Path, capsys, monkeypatch) -> None:
    seen = []

    def continue_prompts(loaded, *arguments, **options):
        seen.append(loaded.model.embedding.weight.clone())
        return real(loaded, *arguments, **options)

    real = command.continue_prompts
    monkeypatch.setattr(command, "continue_prompts", continue_prompts)
    for weights in ("float32", "bfloat16"):
        words = ["--prompt", "the", "--max-tokens", "2", "--weights", weights]
        assert main([str(directory), *words]) == 0
    assert torch.equal(seen[1], seen[0].bfloat16().float())
    assert not torch.equal(seen[1], seen[0])


def test_the_seed_and_the_depth_are_taken(directory: Path, capsys) -> None:
    def text(*words: str) -> str:
        command = [str(directory), "--prompt", "abc", "--json", "--max-tokens", "30", *words]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out)["text"]

    assert text("--seed", "1") == text("--seed", "1") == text("--seed", "1", "--no-cache")
    assert text("--seed", "1") != text("--seed", "2")
    deeper = text("--repeats", "5", "--seed", "1")
    assert deeper == text("--repeats", "5", "--seed", "1", "--no-cache")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "temperature=-1"),
        (["--top-p", "2"], "top_p=2"),
        (["--max-tokens", "0"], "max_tokens=0"),
        (["--prompts", "missing.txt"], "missing.txt: no such file"),
        (["--tokenizer", "missing.model"], "missing.model: no such file"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "9223372036854775808"], "--seed 9223372036854775808"),
        (["--repeats", "0"], "num_repeats=0"),
    ],
)
def test_bad_input_is_one_line(directory: Path, capsys, words, message) -> None:
    prompt = [] if "--prompts" in words else ["--prompt", "a"]
    assert main([str(directory), *prompt, *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\n", ":1: byte 0xff is not UTF-8"),
        (b"\n", "holds no prompt"),
        (b'{"text": "a"}\n', ":1: expected"),
    ],
)
def test_bad_prompt_files(directory: Path, tmp_path: Path, capsys, content, message) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    assert main([str(directory), "--prompts", str(path)]) == 2
    assert message in capsys.readouterr().err
