"""Language modelling on a corpus: which text, which tokens, which windows.

Documents become one stream of tokens for each split, with a boundary before and after each, and
the stream is cut into windows, of which each shares its last token with the next:

>>> from tasks.language.packed_part import encode_documents
>>> from tasks.language.tokenizers import Bytes
>>> stream = [256, *sum(encode_documents(["ab", "c"], Bytes(), "token", ""), [])]
>>> stream
[256, 97, 98, 256, 99, 256]
>>> [stream[first : first + 3] for first in (0, 2)]                         # context_length: 2
[[256, 97, 98], [98, 256, 99]]
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tasks.base import options
from tasks.base.about import About
from tasks.base.data_files import DataDamaged, DataMissing, cache_folder
from tasks.base.storage import lock_folder
from tasks.base.text import TOKENIZER_FOLDER, TextTask, Tokenizer
from tasks.language.corpora import CORPORA, open_corpus
from tasks.language.corpus_files import Documents
from tasks.language.documents import Corpus
from tasks.language.hub import is_folder
from tasks.language.packed_part import Recipe
from tasks.language.packing import pack
from tasks.language.prepared import Prepared, read_prepared
from tasks.language.splitting import SPLITS, SplitRule
from tasks.language.tokenizer_choice import TokenizerChoice, tokenizer_sha256, unread
from tasks.language.tokenizers import load_tokenizer
from tasks.language.train_tokenizer import Learnt
from tasks.language.windows import TokenSplit

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the packed files; another one is packed anew."""

FRACTION, LARGEST_FRACTION, HELD_OUT_BYTES = 0.005, 0.1, 1 << 16
"""Share of the documents held out for each split by default, the largest share, and the bytes of
text that it should reach where the corpus is large enough."""

FEW_DOCUMENTS = 200
"""Below it, an error about a split without a window points at whole files being documents."""


@dataclass(frozen=True, kw_only=True)
class Language(TextTask):
    """Predict the next token of a corpus, cut into windows.

    Documents become tokens, tokens one stream a split, the stream windows of ``context_length``.
    Held-out documents are chosen by a hash of their text. Packed data is kept in the cache.
    """

    name: ClassVar[str] = "language"
    about: ClassVar[About] = About(
        family="language",
        hard="every next token of a text",
        source="a corpus that you name, prepared by python -m tasks.prepare",
    )
    selection_splits: ClassVar[tuple[str, ...]] = ("validation",)
    in_distribution_split: ClassVar[str | None] = "validation"  # type: ignore[assignment]

    corpus: str = "stdlib"
    """Which text: ``stdlib`` (the running Python's standard library), ``files`` (your own), ``hub``
    (any data set of the Hugging Face hub), or ``c4``, ``pes2o``, ``slimpajama`` or ``the_stack``,
    as the MoEUT paper has them. ``python -m tasks.prepare`` packs those of the hub."""
    files: str | list[str] = field(default_factory=list, metadata=options.LOCATION)
    """With ``corpus: files``, one or more files, folders or patterns; text (.txt, .md), JSON lines
    (.jsonl, .json) and both with .gz or .zst, Parquet."""
    documents: Documents = "files"
    """With ``corpus: files``, how a text file becomes documents, each of them held out or not as a
    whole: ``files`` (one document, up to 1 MiB), ``paragraphs`` (lines between blank lines), or
    the most bytes of a piece, cut at line ends. A row of JSON lines or Parquet is always one."""
    hub: str | None = None
    """With ``corpus: hub``, the data set's name on the Hugging Face hub."""
    hub_config: str | None = None
    """With ``corpus: hub``, its configuration."""
    hub_revision: str | None = None
    """With ``corpus: hub``, its revision, a commit for data that cannot change."""
    text_field: str = "text"
    """Field with the text, in JSONL, Parquet and hub data sets."""
    tokenizer: str = "bpe"
    """``bpe`` (SentencePiece, trained on the corpus), ``bytes``, or the path of a
    ``tokenizer.model`` or ``tokenizer.json``."""
    vocabulary_size: int = 8000
    """Number of ids of ``tokenizer: bpe``, special ones included."""
    normalization: Literal["keep", "paper"] = "keep"
    """With ``tokenizer: bpe``, keep every character, or collapse newlines and runs of spaces as the
    MoEUT paper's tokenizer does."""
    tokenizer_documents: int = 100_000
    """First documents of the corpus, held-out ones left out, that ``tokenizer: bpe`` learns from;
    it stops earlier after 50 million characters."""
    boundary: Literal["token", "paper", "none"] = "token"
    """Between documents: a token of its own, the paper's literal separator text, or nothing."""
    context_length: int = 1024
    """Tokens that a model reads at once."""
    attend_across_documents: bool = True
    """Whether a token sees the documents before its own in the window, as in the paper."""
    validation_fraction: float | None = None
    """Share of the documents in ``validation``, where upstream fixes no split; null: 0.005, or in a
    corpus of files smaller than 13 MB the share that makes 64 KiB, at most a tenth."""
    test_fraction: float | None = None
    """Share of the documents in ``test``, likewise."""
    train_tokens: int | None = None
    """Pack the corpus part by part (a file of the hub, else a piece of 1 to 32 MiB) until train has
    this many tokens; null: all of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.files, str):
            object.__setattr__(self, "files", [self.files])
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            options.require(self, name, value is None or 0 < value < 1, "between 0 and 1")
        total = (self.validation_fraction or 0) + (self.test_fraction or 0)
        options.require(
            self, "test_fraction", total < 1, "below 1 together with validation_fraction"
        )
        for name in ("context_length", "tokenizer_documents"):
            options.require(self, name, getattr(self, name) >= 1, "at least 1")
        options.require(self, "vocabulary_size", self.vocabulary_size >= 2, "at least 2")
        if self.train_tokens is not None:
            options.require(self, "train_tokens", self.train_tokens >= 1, "at least 1")
        self._check_tokenizer_options()
        self._open_corpus()

    def _check_tokenizer_options(self) -> None:
        """Refuse options that have no effect with the tokenizer chosen."""
        described = options.describe(type(self))
        for name in ("vocabulary_size", "normalization", "tokenizer_documents"):
            value = getattr(self, name)
            if self.tokenizer != "bpe" and value != described[name].default:
                raise options.OptionError(
                    f"task.{name}", value, f"only with tokenizer: bpe, not {self.tokenizer}"
                )

    @classmethod
    def identity(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that count; a tokenizer's file counts by its content.

        A data set of the hub counts by its name, a folder in its place does not.

        Raises:
            OptionError: the tokenizer's file is not there.
        """
        kept = super().identity(given)
        if kept["tokenizer"] not in ("bpe", "bytes"):
            kept["tokenizer"] = tokenizer_sha256(kept["tokenizer"])
        if kept["hub"] is not None and is_folder(kept["hub"]):
            del kept["hub"]
        return kept

    # --- the interface of a task ----------------------------------------------------------

    def build_splits(self) -> dict[str, TokenSplit]:
        """Open the packed splits, packing the corpus first where it is local and not packed yet.

        Raises:
            DataMissing: a corpus of the hub is not packed; the message has the command.
            DataDamaged: a packed file is missing or changed.
            ValueError: a document cannot be read; a split has less than one window.
        """
        prepared = self.prepared()
        self._check_windows(prepared)
        boundary = self.load_tokenizer().boundary_id if self.boundary == "token" else None
        return {
            name: TokenSplit(
                prepared.folder,
                name,
                prepared.splits[name],
                prepared.dtype,
                self.context_length,
                boundary,
                num_duplicates=prepared.duplicates[name],
            )
            for name in SPLITS
        }

    def _check_windows(self, prepared: Prepared) -> None:
        """Refuse a corpus if one of its splits has no whole window."""
        for name in SPLITS:
            shards = prepared.splits[name]
            tokens = sum(shard.tokens for shard in shards)
            if tokens > self.context_length:
                continue
            documents = sum(shard.documents for shard in shards)
            every = sum(shard.documents for shard in prepared.shards())
            whole = f"of {every:,} documents in all, which are held out whole"
            if sum(shard.tokens for shard in prepared.shards()) < 3 * (self.context_length + 1):
                hint = "expected more text or a shorter context"
            elif self.corpus == "files" and self.documents == "files" and every < FEW_DOCUMENTS:
                hint = (
                    f"{whole}: a text file is one, unless task.documents is paragraphs or a number "
                    "of bytes"
                )
            else:
                hint = (
                    f"{whole}: expected more of them, another task.validation_fraction or "
                    "task.test_fraction, or a shorter context"
                )
            raise options.OptionError(
                "task.context_length",
                self.context_length,
                f"the {name} split has {tokens} tokens of {documents} documents, fewer than one "
                f"window of {self.context_length + 1}; {hint}",
            )

    def split_names(self) -> list[str]:
        """Return the names of the splits, train first."""
        return list(SPLITS)

    def load_tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the corpus is packed with.

        Raises:
            DataDamaged: its file is missing or changed.
        """
        if "_tokenizer" not in self.__dict__:
            prepared = self.prepared()
            folder = prepared.folder / TOKENIZER_FOLDER
            remedy = f"remove {prepared.folder} and prepare the data again"
            try:
                tokenizer = load_tokenizer(folder)
            except ValueError as error:
                raise DataDamaged(f"{error}; {remedy}") from None
            if tokenizer.sha256() != prepared.tokenizer_sha256:
                raise DataDamaged(
                    f"{folder / tokenizer.FILE}: changed since the data was prepared (checksum); "
                    f"{remedy}"
                )
            object.__setattr__(self, "_tokenizer", tokenizer)
        return self.__dict__["_tokenizer"]

    def num_ids(self) -> int:
        """Return the number of ids: the tokenizer's, or before packing the number it will have."""
        if self.missing() is None:
            return self.load_tokenizer().vocabulary_size
        return self._tokenizer_choice().num_ids()

    def missing(self) -> str | None:
        """Return why there is no packed corpus, with the command that makes one, or None.

        One that lies on this machine is packed, which can take a while.
        """
        try:
            self.prepared()
        except DataMissing as error:
            return str(error)
        return None

    def data_hash(self) -> str:
        """Return the SHA-256 over the tokenizer and every shard's checksums, in order."""
        prepared = self.prepared()
        content = {
            "tokenizer": self.load_tokenizer().sha256(),
            "splits": {
                split: [[s.tokens_sha256, s.offsets_sha256] for s in prepared.splits[split]]
                for split in SPLITS
            },
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def facts(self) -> dict[str, str]:
        """Return where the packed corpus lies and how it was made."""
        prepared, tokenizer = self.prepared(), self.load_tokenizer()
        corpus = CORPORA[self.corpus]
        shares = ", ".join(f"{name} {share:.3g}" for name, share in self.fractions().items())
        return {
            "folder": str(prepared.folder),
            **self._open_corpus().facts(),
            "parts": f"{prepared.num_parts:,} of {prepared.of_parts:,}",
            "divided by": corpus.fixes_splits + (f" ({shares})" if corpus.by_hash else ""),
            "tokenizer": f"{self.tokenizer}, {tokenizer.vocabulary_size:,} ids, SHA-256 "
            f"{tokenizer.sha256()}",
            **super().facts(),
        }

    # --- packing --------------------------------------------------------------------------

    def folder(self) -> Path:
        """Return the folder of the packed corpus, named by a hash of all that decides its bytes."""
        if "_folder" not in self.__dict__:
            decides = {
                "format": FORMAT,
                "corpus": self._fingerprint(),
                "tokenizer": self._tokenizer_choice().recipe(),
                "boundary": self.boundary,
                **self.fractions(),
                "train_tokens": self.train_tokens,
            }
            key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
            folder = cache_folder() / "language" / f"{self.corpus}-{key[:16]}"
            object.__setattr__(self, "_folder", folder)
        return self.__dict__["_folder"]

    def fractions(self) -> dict[str, float]:
        """Return the two fractions, by their options' names, the defaults filled in."""
        size = self._fingerprint().get("bytes")
        share = FRACTION if not size else max(FRACTION, HELD_OUT_BYTES / size)
        given = (self.validation_fraction or 0) + (self.test_fraction or 0)
        share = min(share, LARGEST_FRACTION, (1 - given) / 2)
        return {
            name: float(getattr(self, name) or share)
            for name in ("validation_fraction", "test_fraction")
        }

    def prepared(self) -> Prepared:
        """Return the packed corpus; pack it first where that needs no network.

        Raises:
            DataMissing: a corpus of the hub is not packed, or packing another one was cut short, as
                by a full disk; the message has the command.
            DataDamaged: its index is damaged.
        """
        if "_prepared" not in self.__dict__:
            try:
                prepared = read_prepared(self.folder())
                if prepared is None and self._open_corpus().uses_network:
                    raise DataMissing(
                        f"corpus {self.corpus!r} is not prepared in {self.folder()}; prepare it "
                        f"with: {self.prepare_command()}"
                    )
                object.__setattr__(self, "_prepared", prepared or self.prepare())
            except OSError as error:
                raise DataMissing(
                    f"corpus {self.corpus!r} is not prepared, which can be tried again with: "
                    f"{self.prepare_command()} ({error}; MOEUT_CACHE={cache_folder()})"
                ) from error
        return self.__dict__["_prepared"]

    def prepare(self, *, workers: int | None = None) -> Prepared:
        """Train the tokenizer and pack the corpus, or go on where that was interrupted.

        Args:
            workers: processes; None: one for each core. They do not change a byte.

        Raises:
            ValueError: the corpus is empty, a document or the tokenizer cannot be read, or a split
                has less than one window. The packed files of this call are removed, but for a
                corpus of the hub, where the network may come back.
            OSError: the disk is full or not writable; what is packed is kept.
        """
        folder = self.folder()
        with lock_folder(folder):
            prepared = read_prepared(folder)
            is_new = not folder.exists()
            corpus = self._open_corpus()
            try:
                if prepared is None:
                    prepared = self._pack(corpus, workers)
                self._check_windows(prepared)
            except ValueError:
                if is_new and not corpus.uses_network:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
        return prepared

    def _pack(self, corpus: Corpus, workers: int | None) -> Prepared:
        folder, parts = self.folder(), corpus.parts()
        fixed = frozenset(part.split for part in parts if part.split)
        rule = SplitRule(**self.fractions(), fixed=fixed)
        learnt: list[Learnt] = []
        tokenizer = self._tokenizer_choice().make(
            folder / TOKENIZER_FOLDER, parts, rule, on_learnt=learnt.append
        )
        recipe = Recipe(rule, self.boundary, corpus.separator, self.train_tokens)
        prepared = pack(folder, parts, tokenizer, recipe, workers=workers)
        documents = prepared.num_documents("train")
        for said in filter(None, (unread(one, documents) for one in learnt)):
            logger.warning(said)
        return prepared

    def prepare_command(self) -> str:
        """Return the command that packs this task's corpus."""
        words = ["python", "-m", "tasks.prepare"]
        for name, option in options.describe(type(self)).items():
            value = getattr(self, name)
            if name == "files" and len(self.files) == 1:
                value = self.files[0]
            if value != option.default and name not in (
                "context_length",
                "attend_across_documents",
            ):
                words.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
        return shlex.join(words)

    def _open_corpus(self) -> Corpus:
        return open_corpus(
            self.corpus,
            files=self.files,
            hub=self.hub,
            hub_config=self.hub_config,
            hub_revision=self.hub_revision,
            text_field=self.text_field,
            documents=self.documents,
        )

    def _tokenizer_choice(self) -> TokenizerChoice:
        return TokenizerChoice(
            self.tokenizer,
            self.vocabulary_size,
            self.normalization,
            self.tokenizer_documents,
            self.boundary,
        )

    def _fingerprint(self) -> dict[str, Any]:
        if "_identity" not in self.__dict__:
            object.__setattr__(self, "_identity", self._open_corpus().fingerprint())
        return self.__dict__["_identity"]
