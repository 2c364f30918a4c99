"""Time what feeds a model: tokenising, packing, loading windows, and generating rows.

``--parts`` leaves some of it out.

Tokenising is one process that turns documents into ids, without reading or writing them. Packing is
the whole of it: reading, splitting, tokenising, writing and checking, with the start of the worker
processes. Loading is windows of the context length at random places of a packed file of random ids,
as int64 ready for a model: `cold` after the system was told to forget the file, `warm` when memory
holds it. Beside them stand two floors: `copy`, NumPy's copy of as many ids in a row, to int64, and
`copy bytes`, of the same stored bytes to nothing wider. All ways of loading run in turn in every
round; medians are shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runners.bench import generators
from runners.bench.command import add_json_option, check_counts, command_line, deliver
from runners.bench.timing import describe_machine
from runners.reporting.tables import Table
from tasks.base.options import nearest
from tasks.language.documents import Part
from tasks.language.packed_part import Recipe
from tasks.language.packing import pack
from tasks.language.shards import Shard, ShardWriter
from tasks.language.splitting import SplitRule
from tasks.language.stdlib import StandardLibrary
from tasks.language.tokenizers import Bytes, Tokenizer, load_tokenizer
from tasks.language.train_tokenizer import train_tokenizer
from tasks.language.windows import TokenSplit

PARTS = ("text", "loading", "rows")
"""Tokenising and packing; loading windows; generating rows."""
TOKENIZERS = ("bytes", "bpe", "bpe-paper")
RULE = SplitRule(validation_fraction=0.005, test_fraction=0.005)
U2 = np.dtype("<u2")
SHARD_MEGABYTES = 32


def make_tokenizer(name: str, texts: Sequence[str]) -> Tokenizer:
    """Return a tokenizer by name or by the path of its file; BPE has 8000 pieces.

    Raises:
        ValueError: no such name, and no such file.
    """
    if name == "bytes":
        return Bytes()
    if name in TOKENIZERS:
        normalization: Any = "paper" if name == "bpe-paper" else "keep"
        return train_tokenizer(texts, normalization=normalization)
    if not Path(name).exists():
        raise ValueError(
            f"--tokenizers {name}: expected {', '.join(TOKENIZERS)} or a tokenizer's file"
            f"{nearest(name, TOKENIZERS)}"
        )
    return load_tokenizer(Path(name))


def corpus_parts(megabytes: int) -> list[Part]:
    """Return parts of the standard library, from the first, of at least so many megabytes."""
    chosen, size = [], 0
    for part in StandardLibrary().parts():
        if size >= megabytes * 1_000_000:
            break
        chosen.append(part)
        size += sum(len(document.text.encode()) for document in part.documents())
    return chosen


def time_tokenising(tokenizer: Tokenizer, texts: Sequence[str], repeats: int) -> dict[str, float]:
    """Return megabytes and tokens a second of encoding texts in this process."""
    size = sum(len(text.encode()) for text in texts)
    samples, tokens = [], 0
    for _ in range(repeats):
        start = time.perf_counter()
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
        samples.append(time.perf_counter() - start)
    return _rates(size, tokens, statistics.median(samples))


def time_packing(
    tokenizer: Tokenizer, parts: Sequence[Part], workers: int, repeats: int
) -> dict[str, float]:
    """Return megabytes and tokens a second of packing parts into an empty folder."""
    samples, shards = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            recipe = Recipe(RULE, "token", "")
            prepared = pack(Path(folder) / "packed", parts, tokenizer, recipe, workers=workers)
            samples.append(time.perf_counter() - start)
            shards = prepared.shards()
    size, tokens = sum(s.bytes for s in shards), sum(s.tokens for s in shards)
    return _rates(size, tokens, statistics.median(samples))


def _rates(size: int, tokens: int, seconds: float) -> dict[str, float]:
    return {
        "seconds": round(seconds, 7),
        "megabytes_per_second": round(size / seconds / 1e6, 3),
        "tokens_per_second": round(tokens / seconds),
        "bytes_per_token": round(size / tokens, 3),
    }


def write_tokens(root: Path, megabytes: int) -> list[Shard]:
    """Write shards of random ids, in documents of about a thousand, and return their index."""
    generator = np.random.default_rng(0)
    shards = []
    for number, begin in enumerate(range(0, megabytes, SHARD_MEGABYTES)):
        size = min(SHARD_MEGABYTES, megabytes - begin) << 20
        ids = generator.integers(0, 8000, size // 2, dtype=np.uint16)
        with ShardWriter(root, f"train/{number:05d}", U2) as writer:
            for piece in np.array_split(ids, max(len(ids) // 1000, 1)):
                writer.add(piece, 2 * len(piece))
        assert writer.shard is not None
        shards.append(writer.shard)
    return shards


def forget(root: Path) -> None:
    """Ask the system to drop the files below a folder from memory; none may be mapped."""
    for path in root.rglob("*.*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_loading(
    megabytes: int, context_length: int, batch: int, num_batches: int, repeats: int
) -> list[dict[str, Any]]:
    """Return tokens a second of loading windows at random, and of copying as many."""
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards = write_tokens(root, megabytes)

        def opened() -> TokenSplit:
            return TokenSplit(root, "train", shards, U2, context_length, None)

        opened()  # hashes the files once
        num_windows = len(opened())
        size = num_batches * batch * (context_length + 1)
        plain = np.random.default_rng(1).integers(0, 8000, size, dtype=np.uint16)
        wide, narrow = np.zeros(size, np.int64), np.zeros(size, np.uint16)
        for round_index in range(repeats):
            # Other rows in each round: those of the last one are in the processor's cache.
            generator = np.random.default_rng(round_index + 2)
            rows = [generator.integers(0, num_windows, batch) for _ in range(num_batches)]
            forget(root)
            split = opened()
            ways: dict[str, Callable[[], object]] = {
                "windows, cold": _reader(split.windows, rows),
                "windows, warm": _reader(split.windows, rows),
                "document numbers, warm": _reader(split.documents, rows),
                "copy": lambda: np.copyto(wide, plain),
                "copy bytes": lambda: np.copyto(narrow, plain),
            }
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                samples.setdefault(name, []).append(time.perf_counter() - start)
            del split, ways
    tokens = num_batches * batch * context_length
    return [
        {
            "what": name,
            "milliseconds_per_batch": round(1e3 * statistics.median(times) / num_batches, 6),
            "tokens_per_second": round(tokens / statistics.median(times)),
        }
        for name, times in samples.items()
    ]


def _reader(
    read: Callable[[np.ndarray], np.ndarray], rows: Sequence[np.ndarray]
) -> Callable[[], None]:
    def way() -> None:
        for chosen in rows:
            read(chosen)

    return way


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time the parts asked for and return the result with what it depends on."""
    result: dict[str, Any] = {
        "benchmark": "data",
        "command": command_line(options),
        "repeats": options.repeats,
        "machine": describe_machine(torch.device("cpu")),
    }
    if "text" in options.parts:
        result |= _measure_text(options)
    if "rows" in options.parts:
        result["generating"] = generators.time_generators(options.tasks, options.repeats)
    if "loading" in options.parts:
        sizes = (options.stored, options.context, options.batch, options.batches)
        result |= {
            "context": options.context,
            "batch": options.batch,
            "stored_megabytes": options.stored,
            "loading": time_loading(*sizes, options.repeats),
        }
    return result


def _measure_text(options: argparse.Namespace) -> dict[str, Any]:
    parts = corpus_parts(options.megabytes)
    texts = [document.text for part in parts for document in part.documents()]
    tokenizers = {name: make_tokenizer(name, texts) for name in options.tokenizers}
    return {
        "corpus": {
            "name": "stdlib",
            "parts": len(parts),
            "documents": len(texts),
            "bytes": sum(len(text.encode()) for text in texts),
        },
        "tokenising": [
            {"tokenizer": name, **time_tokenising(tokenizer, texts, options.repeats)}
            for name, tokenizer in tokenizers.items()
        ],
        "packing": [
            {
                "tokenizer": name,
                "workers": workers,
                **time_packing(tokenizer, parts, workers, options.repeats),
            }
            for name, tokenizer in tokenizers.items()
            for workers in options.workers
        ],
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """Return a table of tokenising and packing, one of loading, and one of generated rows."""
    found = []
    if "tokenising" in result:
        found.append(_text_table(result))
    if "loading" in result:
        found.append(_loading_table(result))
    if result.get("generating"):
        found.append(generators.table(result["generating"]))
    return found


def _text_table(result: dict[str, Any]) -> Table:
    rows = [
        [
            *(what, row["tokenizer"], str(row.get("workers", ""))),
            f"{row['megabytes_per_second']:.2f}",
            f"{row['tokens_per_second']:,}",
            f"{row['bytes_per_token']:.3f}",
        ]
        for what in ("tokenising", "packing")
        for row in result[what]
    ]
    return Table(
        name="text",
        title="text to tokens, medians",
        columns=["what", "tokenizer", "workers", "MB/s", "tokens/s", "bytes/token"],
        rows=rows,
        num_names=3,
    )


def _loading_table(result: dict[str, Any]) -> Table:
    rows = [
        [row["what"], f"{row['milliseconds_per_batch']:.3f}", f"{row['tokens_per_second']:,}"]
        for row in result["loading"]
    ]
    return Table(
        name="loading",
        title=f"loading batches of {result['batch']} x {result['context']} tokens, at random "
        f"from {result['stored_megabytes']} MiB, medians",
        columns=["what", "ms a batch", "tokens/s"],
        rows=rows,
    )


def _heading(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']} at the end"


def run(options: argparse.Namespace) -> int:
    """Measure, print and, where asked, write the result.

    Raises:
        ValueError: an option has a value that does not fit.
    """
    check_counts(options, "megabytes", "stored", "context", "batch", "batches", "repeats")
    if min(options.workers) < 1:
        raise ValueError(f"--workers {min(options.workers)}: expected at least 1")
    windows = (options.stored << 20) // 2 - 1
    if windows < options.context:
        raise ValueError(f"--context {options.context}: --stored {options.stored} has no window")
    for name in options.tokenizers:
        if name not in TOKENIZERS:
            make_tokenizer(name, [])
    generators.check_names(options.tasks)
    result = measure(options)
    deliver(result, options, _heading(result), tables(result))
    return 0


def add_parser(subparsers: argparse._SubParsersAction, name: str) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        name,
        help="tokenising, packing and loading text, and generating rows",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is timed"
    )
    parser.add_argument(
        "--tokenizers",
        nargs="+",
        default=["bytes", "bpe", "bpe-paper"],
        help=f"some of {', '.join(TOKENIZERS)}, or tokenizer files",
    )
    parser.add_argument(
        "--workers", nargs="+", type=int, default=[1, 2], help="processes that pack"
    )
    parser.add_argument(
        "--tasks",
        nargs="*",
        default=generators.generated_tasks(),
        help="generated tasks whose rows are made",
    )
    parser.add_argument("--megabytes", type=int, default=8, help="text, of the standard library")
    parser.add_argument("--stored", type=int, default=256, help="MiB of ids that are loaded from")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--batch", type=int, default=64, help="windows of a batch")
    parser.add_argument("--batches", type=int, default=32, help="batches that are timed together")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds; medians are shown")
    add_json_option(parser)
    parser.set_defaults(run=run)
