"""Tokenizers: exact round trips, the boundary, determinism, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.language.corpora import open_corpus
from tasks.language.tokenizer_choice import unread
from tasks.language.tokenizers import (
    BOUNDARY_PIECE,
    Bytes,
    SentencePiece,
    TokenizerJson,
    load_tokenizer,
)
from tasks.language.train_tokenizer import MAX_LINE_BYTES, Learnt, cut_line, train_tokenizer

LIBRARY = [document.text for document in open_corpus("stdlib").parts()[0].documents()]

HARD_TEXTS = [
    "", " ", "\n", "\n\n\n", "a\n\n  b\t\tc   ", "\r\n x \u00a0 y\u3000",
    "def f():\n    return  1\n", "▁x ▁▁", "\0a\0", "é漢字🙂\u2028\ufeff\ufffd", "e\u0301 ﬁ ① Ａ",
    f" {BOUNDARY_PIECE} <0x41> <unk> </s> <|endoftext|>", "1234567890", "\U0010ffff",
]  # fmt: skip


def tokenizer_json(**changes):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    if changes.get("special"):
        model.add_special_tokens([changes["special"]])
    if changes.get("truncate"):
        model.enable_truncation(3)
        model.enable_padding(length=5)
    return TokenizerJson(model.to_str().encode())


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer(LIBRARY, vocabulary_size=2000)


@pytest.fixture(scope="module")
def paper():
    return train_tokenizer(LIBRARY, vocabulary_size=600, normalization="paper", boundary=False)


@pytest.fixture(scope="module")
def tokenizers(bpe):
    return [Bytes(), bpe, tokenizer_json(special="<|endoftext|>")]


texts = st.one_of(
    st.text(),
    st.text(alphabet=" \n\t▁aé1<>🙂\0", max_size=30),
    st.sampled_from(LIBRARY).map(lambda text: text[100:700]),
)


def with_hard_texts(test):
    for text in HARD_TEXTS:
        test = example(text=text)(test)
    return test


@with_hard_texts
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_every_text_comes_back_exactly(tokenizers, text):
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.boundary_id not in ids
        assert all(0 <= number < tokenizer.vocabulary_size for number in ids)
        assert tokenizer.decode([tokenizer.boundary_id, *ids, tokenizer.boundary_id]) == text


def test_a_batch_is_its_texts_one_by_one(tokenizers):
    for tokenizer in tokenizers:
        assert tokenizer.encode_batch(HARD_TEXTS) == [tokenizer.encode(t) for t in HARD_TEXTS]


def test_bpe_has_the_size_asked_for_and_spells_digits_singly(bpe):
    assert (bpe.vocabulary_size, bpe.boundary_id) == (2000, 1)
    assert len(bpe.encode("2024")) == len(bpe.encode("2")) + 3
    assert len(bpe.encode("\n\n\n")) == 3
    # Runs of spaces are merged: indentation is one piece, not sixteen.
    assert len(bpe.encode("\n" + 8 * " " + "return")) <= 4
    text = "".join(LIBRARY)
    assert 2.5 < len(text) / len(bpe.encode(text)) < 4.5


def test_training_gives_the_same_bytes_again(bpe):
    assert train_tokenizer(iter(LIBRARY), vocabulary_size=2000).sha256() == bpe.sha256()
    assert train_tokenizer(LIBRARY[:-1], vocabulary_size=2000).sha256() != bpe.sha256()


def test_training_reads_no_further_than_asked():
    read = []

    def documents():
        for text in LIBRARY:
            read.append(text)
            yield text

    tokenizer = train_tokenizer(documents(), vocabulary_size=600, max_characters=200_000)
    assert sum(map(len, read[:-1])) < 200_000 <= sum(map(len, read))
    assert tokenizer.sha256() == train_tokenizer(read, vocabulary_size=600).sha256()


def test_paper_normalisation_collapses_blanks_and_has_no_boundary(paper):
    assert paper.boundary_id is None
    assert paper.decode(paper.encode("a\n\n  b\t c ")) == "a b c"
    # The separator is ordinary text to it: several pieces.
    assert len(paper.encode("<STORY_SEP>")) > 3
    with_boundary = train_tokenizer(
        LIBRARY, vocabulary_size=600, normalization="paper", boundary=True
    )
    assert with_boundary.vocabulary_size == paper.vocabulary_size == 600
    assert with_boundary.boundary_id == 3
    assert with_boundary.decode([3, *with_boundary.encode("a b"), 3]) == "a b"


def test_paper_equals_sentencepiece_with_the_options_of_the_papers_code(paper):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LIBRARY), model_writer=model, vocab_size=600, split_digits=True,
        model_type="bpe", minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for text in LIBRARY[:5]:
        assert paper.encode(text) == theirs.encode(text)


def test_a_tokenizer_json_keeps_its_end_token_as_boundary():
    named, bare = tokenizer_json(special="<|endoftext|>"), tokenizer_json()
    assert (named.vocabulary_size, named.boundary_id) == (257, 256)
    assert (bare.vocabulary_size, bare.boundary_id) == (257, 256)
    assert bare.decode([256, *bare.encode("a b"), 256]) == "a b"
    other = tokenizer_json(special="<mask>")
    assert (other.vocabulary_size, other.boundary_id) == (258, 257)


def test_a_tokenizer_json_neither_cuts_nor_pads():
    text = "longer than three tokens"
    assert tokenizer_json(truncate=True).encode(text) == tokenizer_json().encode(text)


def test_save_load_and_pickle_give_the_same_tokenizer(tokenizers, paper, tmp_path):
    for number, tokenizer in enumerate([*tokenizers, paper]):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = tokenizer.save(folder)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == tokenizer.sha256()
        for other in (
            load_tokenizer(path),
            load_tokenizer(folder),
            pickle.loads(pickle.dumps(tokenizer)),
        ):
            assert type(other) is type(tokenizer)
            assert other.sha256() == tokenizer.sha256()
            assert other.vocabulary_size == tokenizer.vocabulary_size
            assert other.boundary_id == tokenizer.boundary_id
            assert other.encode("a\n  bé 12") == tokenizer.encode("a\n  bé 12")


@pytest.mark.parametrize("kept", [0, 1, 50, 0.3, 0.7, -1])
def test_a_cut_file_is_refused(tokenizers, tmp_path, kept):
    for tokenizer in tokenizers:
        end = int(kept * len(tokenizer.data)) if isinstance(kept, float) else kept
        path = tmp_path / tokenizer.FILE
        path.write_bytes(tokenizer.data[:end])
        with pytest.raises(ValueError, match=f"{tokenizer.FILE}: not (a|the)") as error:
            load_tokenizer(path)
        assert "\n" not in str(error.value)


def test_half_a_vocabulary_is_not_taken_for_a_whole_one(paper):
    """Cut between two pieces, which SentencePiece itself loads without a word."""
    from sentencepiece import SentencePieceProcessor

    end = 0
    for _ in range(300):
        end += 2 + paper.data[end + 1]  # key, length below 128, piece
    assert SentencePieceProcessor(model_proto=paper.data[:end]).get_piece_size() == 300
    with pytest.raises(ValueError, match="not a whole SentencePiece model"):
        SentencePiece(paper.data[:end])


def test_other_files_are_refused_with_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"expected one tokenizer file .* found none"):
        load_tokenizer(tmp_path)
    Bytes().save(tmp_path)
    with pytest.raises(ValueError, match=r"no such file; did you mean 'tokenizer\.bytes'"):
        load_tokenizer(tmp_path / "tokeniser.bytes")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ValueError, match=r"found tokenizer\.bytes and tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"vocab\.txt: unknown kind of tokenizer"):
        load_tokenizer(tmp_path / "vocab.txt")


def test_too_little_text_is_refused_in_one_line():
    with pytest.raises(ValueError, match="0 documents with 0 characters: the corpus is empty"):
        train_tokenizer([])
    with pytest.raises(ValueError, match=r"task\.vocabulary_size=8000: no BPE tok") as error:
        train_tokenizer(["too little text"])
    assert re.search(
        r"1 documents with 15 .*: Vocabulary size too high .* <= \d+", str(error.value)
    )
    assert "\n" not in str(error.value)


def bytes_a_token(tokenizer, text):
    return len(text.encode()) / len(tokenizer.encode(text))


def test_one_long_line_is_learnt_from_like_many_short_ones(caplog):
    """A corpus as one line has long words of its own; only cutting it lets them be learnt."""
    draw = random.Random(2)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(3, 8))) for _ in range(60)]
    text = " ".join(draw.choices(words, k=40_000))
    assert len(text) > 3 * MAX_LINE_BYTES
    with caplog.at_level("INFO"):
        long = train_tokenizer([text], vocabulary_size=500)
    assert "1 lines over 65,536 bytes cut" in caplog.text
    short = train_tokenizer([text.replace(" ", "\n ")], vocabulary_size=500)
    assert bytes_a_token(long, text) == pytest.approx(bytes_a_token(short, text), rel=0.02)
    assert bytes_a_token(long, text) > 2.5


def test_long_lines_beside_short_ones_are_not_passed_over():
    draw = random.Random(3)
    low, up = (
        ["".join(draw.choices(letters, k=6)) for _ in range(60)] for letters in ("abcdef", "UVWXYZ")
    )
    long = " ".join(draw.choices(low, k=30_000))
    short = "\n".join(" ".join(draw.choices(up, k=10)) for _ in range(200))
    tokenizer = train_tokenizer([short, long], vocabulary_size=600)
    assert bytes_a_token(tokenizer, long) > 3


def test_lines_with_sentencepieces_own_sign_are_learnt_from():
    """It drops a sentence that holds U+2585, as a line with a drawn bar does."""
    text = "\n".join(["progress ▅▅▅ of the download"] * 200)
    tokenizer = train_tokenizer([text], vocabulary_size=290)
    assert bytes_a_token(tokenizer, "progress of the download") > 2.5
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(st.sampled_from("a é日🙂"), max_size=60), st.integers(4, 12))
def test_a_line_is_cut_without_loss(line, limit):
    pieces = list(cut_line(line, limit))
    assert "".join(pieces) == line
    assert all(0 < len(piece.encode()) <= limit for piece in pieces)


def test_documents_that_the_papers_setting_drops_are_counted(caplog):
    kept = [f"a short text of number {i}" for i in range(30)]
    long = ["zebra quagga " * 400, "▅ zebra"]
    assert len(long[0]) > 4192
    tokenizer = train_tokenizer(
        kept + long, vocabulary_size=60, normalization="paper", boundary=False
    )
    share = 100 * sum(map(len, long)) / sum(map(len, kept + long))
    assert f"has not learnt from 2 of 32 documents, {share:.1f} % of the chara" in caplog.text
    alone = train_tokenizer(kept, vocabulary_size=60, normalization="paper", boundary=False)
    assert tokenizer.sha256() == alone.sha256()
    with pytest.raises(ValueError, match=r"with 5,207 characters: no text to learn from"):
        train_tokenizer(long, vocabulary_size=60, normalization="paper")


def test_what_the_limit_of_characters_leaves_unread_is_counted():
    texts = [f"a short text of number {i}" for i in range(30)]
    learnt = []
    for limit in (100, None):
        train_tokenizer(texts, vocabulary_size=285, max_characters=limit, on_learnt=learnt.append)
    assert learnt == [Learnt(5, sum(map(len, texts[:5])), 100), Learnt(30, sum(map(len, texts)))]
    assert unread(learnt[0], 30) == (
        "the tokenizer has learnt from the first 5 of 30 documents of train, 120 characters: "
        "the limit of 100 characters left 25 unread"
    )
    assert unread(learnt[1], 30) is None


def test_text_without_a_line_is_refused_with_a_reason():
    with pytest.raises(ValueError, match=r"with 5 characters: no text to learn from$"):
        train_tokenizer(["\n\0▅\n\n"], vocabulary_size=300)


def damaged(change) -> bytes:
    content = json.loads(tokenizer_json().data)
    change(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "EOF while parsing"),
        (b"[" * 100_000, "line 1 column 1"),
        (b'{"model": ' * 100_000, "line 1 column"),
        (lambda c: c["model"]["vocab"].update(x=10**400), "number out of range"),
        (lambda c: c["model"]["vocab"].update(x=4294967295), r"largest id is 4,294,967,295"),
        (
            lambda c: c.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "Precompiled",  # a panic of Rust
        ),
    ],
)
def test_a_tokenizer_that_the_library_refuses_is_one_line(tmp_path, capfd, data, message):
    content = damaged(data) if callable(data) else data
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S*tokenizer\.json: .*(?:{message})") as error:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_text_that_the_library_cannot_encode_is_one_line():
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    tokenizer = TokenizerJson(damaged(lambda c: c.update(model=words)))
    with pytest.raises(ValueError, match=r"^tokenizer\.json cannot encode 'b c' \(WordLevel error"):
        tokenizer.encode("b c")


@pytest.mark.parametrize("problem", [ValueError("a.txt: not UTF-8"), KeyboardInterrupt()])
def test_what_the_corpus_raises_passes_through_training(problem):
    def documents():
        yield "fine"
        raise problem

    with pytest.raises(type(problem)) as error:
        train_tokenizer(documents())
    assert error.value is problem


@pytest.mark.parametrize(
    ("module", "make"),
    [("sentencepiece", lambda: train_tokenizer(LIBRARY)), ("tokenizers", tokenizer_json)],
)
def test_a_package_that_is_not_installed_is_named(monkeypatch, module, make):
    if module == "tokenizers":
        data = tokenizer_json().data
        make = lambda: TokenizerJson(data)  # noqa: E731
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"needs '{module}': pip install 'moeut-suite\[lm\]'"):
        make()
