"""Corpora by name: their sources, the splits that upstream fixes, and how the paper read them.

The paper's code pins C4's commit alone and reads the others at ``main``. The commits below are ones
under which public sources list the same file names and counts: that of peS2o in several public data
pipelines, with ``data/v2`` files; that of SlimPajama in many caches, with every chunk; that of The
Stack in the documentation of huggingface_hub, as its tag v1.2, with 206 Python files. Whether
``main`` was at exactly these when the paper's models were trained is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.base.options import OptionError, nearest
from tasks.language.corpus_files import Documents, Files
from tasks.language.documents import Corpus
from tasks.language.hub import HubDataset, HubFiles
from tasks.language.stdlib import StandardLibrary


@dataclass(frozen=True)
class Choices:
    """The options of a task that concern its corpus, beside the name."""

    files: Sequence[str] = ()
    hub: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    text_field: str = "text"
    documents: Documents = "files"


@dataclass(frozen=True)
class Entry:
    """One corpus of the menu."""

    summary: str
    fixes_splits: str
    """Who decides which documents are held out."""
    by_hash: bool
    """Whether that can be the hash of a document, with the shares that the task gives."""
    takes: tuple[str, ...]
    """The `Choices` that it reads."""
    open: Callable[[Choices], Corpus]


STACK_FILES = {
    "assembly": 3,
    "c++": 214,
    "haskell": 7,
    "html": 802,
    "javascript": 499,
    "python": 206,
    "rust": 40,
    "scala": 17,
}
"""Files of each of the paper's eight languages."""

# Files of each chunk, by split. The paper reads them in one order drawn over all chunks.
SLIMPAJAMA_FILES = {
    "train": (5912, 5911, 5919, 5917, 5933, 5915, 5906, 5921, 5920, 5912),
    "validation": (6279, 6278, 6286, 6284, 6301),
    "test": (6282, 6273, 6289, 6288, 6279),
}

ORDER_SEED = 123
"""Seed of the paper's orders of files."""


def c4_files() -> list[tuple[str, str]]:
    """Return C4's English files: 1024 of train, 8 of validation."""
    return [
        (split, f"en/c4-{split}.{index:05d}-of-{number:05d}.json.gz")
        for split, number in (("train", 1024), ("validation", 8))
        for index in range(number)
    ]


def pes2o_files() -> list[tuple[str, str]]:
    """Return the files of peS2o's second version: 20 of train, 2 of validation."""
    return [
        (split, f"data/v2/{split}-{index:05d}-of-{number:05d}.json.gz")
        for split, number in (("train", 20), ("validation", 2))
        for index in range(number)
    ]


def slimpajama_files() -> list[tuple[str, str]]:
    """Return SlimPajama's files, each split in the paper's order."""
    files = []
    for split, chunks in SLIMPAJAMA_FILES.items():
        word = "train" if split == "train" else "holdout"
        paths = [
            f"{split}/chunk{chunk}/example_{word}_{index}.jsonl.zst"
            for chunk, number in enumerate(chunks, start=1)
            for index in range(number)
        ]
        order = np.random.default_rng(ORDER_SEED).permutation(len(paths))
        files += [(split, paths[position]) for position in order]
    return files


def stack_files() -> list[tuple[str, str]]:
    """Return The Stack's files in the paper's order: languages in turn, a tenth of each held out.

    Each language's files are permuted, by one generator for all in the order of their names; the
    first tenth, at least one file, is for validation.
    """
    generator = np.random.default_rng(ORDER_SEED)
    held_out: dict[str, list[str]] = {}
    kept: dict[str, list[str]] = {}
    for language, number in sorted(STACK_FILES.items()):
        paths = [
            f"data/{language}/train-{index:05d}-of-{number:05d}.parquet"
            for index in generator.permutation(number)
        ]
        border = max(number // 10, 1)
        held_out[language], kept[language] = paths[:border], paths[border:]
    return [
        (split, paths[turn])
        for split, by_language in (("train", kept), ("validation", held_out))
        for turn in range(max(map(len, by_language.values())))
        for paths in by_language.values()
        if turn < len(paths)
    ]


CORPORA: dict[str, Entry] = {
    "stdlib": Entry(
        summary="source files of the running Python's standard library, on every machine",
        fixes_splits="a hash of each document",
        by_hash=True,
        takes=(),
        open=lambda choices: StandardLibrary(),
    ),
    "files": Entry(
        summary="your own files: plain text, JSON lines (.gz, .zst), Parquet; folders and globs",
        fixes_splits="a hash of each document",
        by_hash=True,
        takes=("files", "text_field", "documents"),
        open=lambda choices: Files(choices.files, choices.text_field, choices.documents),
    ),
    "hub": Entry(
        summary="any data set that the datasets library streams, from the hub or from a folder",
        fixes_splits="upstream where it has several splits, else a hash of each document",
        by_hash=True,
        takes=("hub", "hub_config", "hub_revision", "text_field"),
        open=lambda choices: HubDataset(
            choices.hub, choices.hub_config, choices.hub_revision, choices.text_field
        ),
    ),
    "c4": Entry(
        summary="C4 en, web pages (https://huggingface.co/datasets/allenai/c4)",
        fixes_splits="upstream: train, validation",
        by_hash=False,
        takes=(),
        open=lambda choices: HubFiles(
            "c4",
            "allenai/c4",
            "1ddc917116b730e1859edef32896ec5c16be51d0",
            c4_files(),
            paper_tokenizer_parts=10,
        ),
    ),
    "pes2o": Entry(
        summary="peS2o v2, scientific papers (https://huggingface.co/datasets/allenai/peS2o)",
        fixes_splits="upstream: train, validation",
        by_hash=False,
        takes=(),
        open=lambda choices: HubFiles(
            "pes2o",
            "allenai/peS2o",
            "636a503e44a3ca1b58e01fb61eab0825cd574de0",
            pes2o_files(),
            paper_tokenizer_parts=1,
        ),
    ),
    "slimpajama": Entry(
        summary="SlimPajama (https://huggingface.co/datasets/cerebras/SlimPajama-627B)",
        fixes_splits="upstream: train, validation, test",
        by_hash=False,
        takes=(),
        open=lambda choices: HubFiles(
            "slimpajama",
            "cerebras/SlimPajama-627B",
            "2d0accdd58c5d5511943ca1f5ff0e3eb5e293543",
            slimpajama_files(),
            paper_tokenizer_parts=200,
        ),
    ),
    "the_stack": Entry(
        summary="The Stack, eight languages (https://huggingface.co/datasets/bigcode/the-stack)",
        fixes_splits="the paper: a tenth of each language's files",
        by_hash=False,
        takes=(),
        open=lambda choices: HubFiles(
            "the_stack",
            "bigcode/the-stack",
            "9ca8fa6acdbc8ce920a0cb58adcdafc495818ae7",
            stack_files(),
            text_field="content",
            separator="",  # the paper's code reads these files by another way, which adds none
            is_gated=True,
            paper_tokenizer_parts=20,
        ),
    ),
}


def open_corpus(
    name: str,
    *,
    files: Sequence[str] = (),
    hub: str | None = None,
    hub_config: str | None = None,
    hub_revision: str | None = None,
    text_field: str = "text",
    documents: Documents = "files",
) -> Corpus:
    """Return the corpus of a name; nothing is read yet.

    Raises:
        OptionError: no corpus has that name, or an option is given that it does not take.
    """
    if name not in CORPORA:
        expected = f"expected one of {', '.join(CORPORA)}{nearest(name, CORPORA)}"
        raise OptionError("task.corpus", name, expected)
    entry = CORPORA[name]
    choices = Choices(tuple(files), hub, hub_config, hub_revision, text_field, documents)
    for option, default in vars(Choices()).items():
        value = getattr(choices, option)
        if value != default and option not in entry.takes:
            takers = ", ".join(key for key, other in CORPORA.items() if option in other.takes)
            expected = f"corpus {name!r} does not take it, only {takers} does"
            raise OptionError(f"task.{option}", value, expected)
    return entry.open(choices)
