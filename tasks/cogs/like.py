"""A task in the manner of COGS, generated: never to be reported as COGS.

The grammar (``tasks.cogs.grammar``), the words (``tasks.cogs.lexicon``) and the rule that gives a
sentence its logical form (``tasks.cogs.logical_form``) are those of COGS; the sentences are not,
since the official sample was drawn at random. It needs no download, and it can be made small.

Training shows sentences, single words with their meaning (primitives), and exposures: words that
stand in one role only. ``gen`` asks for the same 21 generalisations as COGS:

>>> task = CogsLike(train_rows=300, dev_rows=10, test_rows=10, gen_rows=5, lexicon_size=5)
>>> [(name, len(rows)) for name, rows in task.splits().items()]
[('train', 338), ('dev', 10), ('test', 10), ('gen', 105)]
>>> [row] = [row for row in task.split("train") if row.category == "exposure_passive"]
>>> " ".join(row.source), " ".join(row.target)[:35]
('The cake was squeezed by Liam .', '* cake ( x _ 1 ) ; squeeze . theme ')

Besides the draws, two things differ from the official sample: no word of dev, test or gen is
missing from train, and in obj_pp_to_subj_pp every prepositional phrase that the grammar does not
draw for an object belongs to the subject. As in COGS, positions beyond those of training have
output tokens that training never shows; the ceiling printed beside a score says how many rows that
costs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tasks.base.about import About
from tasks.base.generated import check_range
from tasks.base.options import OptionError, require
from tasks.base.task import Example, ExampleTask
from tasks.cogs.grammar import DEEPER_PHRASE, INNERMOST, Grammar, Slot, clauses_with
from tasks.cogs.lexicon import EXPOSED
from tasks.cogs.logical_form import SentenceReader, primitive_form
from tasks.cogs.official import STRUCTURAL, example, generalisation_tables

_WITH_OBJECT = ("transitive", "omissible", "unaccusative_transitive")
_DATIVE = ("to_dative", "double_object")
_PASSIVES = ("transitive_passive", "transitive_passive_by")
_SUBJECT = Slot(("SUBJECT",), clauses_with("SUBJECT"))
_OBJECT = Slot(("OBJECT", "THING"), (*_WITH_OBJECT, *_DATIVE))

EXPOSURES: dict[str, Slot] = {
    "subject_common": _SUBJECT,
    "subject_proper": _SUBJECT,
    "object_common": _OBJECT,
    "object_proper": _OBJECT,
    "transitive_subject": Slot(("SUBJECT",), ("transitive", "omissible")),
    "unaccusative_subject": Slot(("UNACCUSATIVE_SUBJECT",), ("unaccusative",)),
    "active": Slot(("transitive",), ("transitive",)),
    "passive": Slot(("transitive",), _PASSIVES),
    "object_omitted": Slot(("omissible",), ("object_omitted",)),
    "unaccusative": Slot(("unaccusative",), ("unaccusative",)),
    "to_dative": Slot(("dative",), ("to_dative",)),
    "double_object_dative": Slot(("dative",), ("double_object",)),
}
"""Word of ``EXPOSED`` -> the one role in which train shows it in sentences."""

PRIMITIVES = ("primitive_common", "primitive_proper", "primitive_verb")
"""Words of ``EXPOSED`` that train shows only by themselves, with their meaning."""

GENERALISATIONS: dict[str, tuple[str, Slot]] = {
    "subj_to_obj_common": ("subject_common", _OBJECT),
    "subj_to_obj_proper": ("subject_proper", _OBJECT),
    "obj_to_subj_common": ("object_common", _SUBJECT),
    "obj_to_subj_proper": ("object_proper", _SUBJECT),
    "prim_to_subj_common": ("primitive_common", _SUBJECT),
    "prim_to_subj_proper": ("primitive_proper", _SUBJECT),
    "prim_to_obj_common": ("primitive_common", _OBJECT),
    "prim_to_obj_proper": ("primitive_proper", _OBJECT),
    "prim_to_inf_arg": ("primitive_verb", Slot(("infinitive",), ("infinitive",))),
    "active_to_passive": ("active", Slot(("transitive",), _PASSIVES)),
    "passive_to_active": ("passive", Slot(("transitive",), ("transitive",))),
    "obj_omitted_transitive_to_transitive": (
        "object_omitted",
        Slot(("omissible",), ("omissible",)),
    ),
    "unacc_to_transitive": ("unaccusative", Slot(("unaccusative",), ("unaccusative_transitive",))),
    "do_dative_to_pp_dative": ("double_object_dative", Slot(("dative",), ("to_dative",))),
    "pp_dative_to_do_dative": ("to_dative", Slot(("dative",), ("double_object",))),
    "only_seen_as_transitive_subj_as_unacc_subj": (
        "transitive_subject",
        Slot(("UNACCUSATIVE_SUBJECT",), ("unaccusative",)),
    ),
    "only_seen_as_unacc_subj_as_obj_omitted_transitive_subj": (
        "unaccusative_subject",
        Slot(("SUBJECT",), ("object_omitted",)),
    ),
    "only_seen_as_unacc_subj_as_unerg_subj": (
        "unaccusative_subject",
        Slot(("SUBJECT",), ("unergative",)),
    ),
}
"""Lexical category of gen -> word of ``EXPOSED``, and the role it has there."""

_SUBJECTS = ("SUBJECT", "THEME_SUBJECT", "UNACCUSATIVE_SUBJECT", "RECIPIENT_SUBJECT")
MODIFIED_SUBJECT = Slot(_SUBJECTS, INNERMOST)
"""Where obj_pp_to_subj_pp has its prepositional phrase."""
MODIFIED_OBJECT = Slot(("OBJECT", "THING"), clauses_with("OBJECT", "THING"))
"""Where pp_recursion nests its prepositional phrases."""

_PRIMITIVE_SHARE = 5  # one noun or name in five, as in COGS; of the verbs all
_TRIES_PER_ROW = 5_000


@dataclass(frozen=True, kw_only=True)
class CogsLike(ExampleTask):
    """Sentences drawn from COGS's grammar with COGS's logical forms; not COGS."""

    name: ClassVar[str] = "cogs_like"
    about: ClassVar[About] = About(
        family="semantic parsing",
        hard="as cogs, whose grammar it is drawn from",
        source="grammar of COGS; rows are generated here",
    )
    difficulty_name: ClassVar[str] = "recursion depth"
    in_distribution_split = "test"
    selection_splits: ClassVar[tuple[str, ...]] = ("dev",)

    train_rows: int = 24_000
    """Training sentences, besides the primitives and the exposures."""
    dev_rows: int = 3_000
    """Rows of dev, drawn as train."""
    test_rows: int = 3_000
    """Rows of test, drawn as train."""
    gen_rows: int = 1_000
    """Rows of gen in each of the 21 categories."""
    exposure_rows: int = 1
    """Training sentences in which each of the 12 exposed words stands in its one role."""
    lexicon_size: int | None = None
    """Words kept of each class, the most frequent first; null: all, 100 nouns and 20 verbs."""
    train_depth: int = 2
    """Most nested clauses, and most nested prepositional phrases, outside the recursion rows."""
    gen_depths: tuple[int, int] = (3, 12)
    """First and last depth of cp_recursion and pp_recursion, equally often."""
    seed: int = 0
    """Seed of the generated rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for rows in ("train_rows", "dev_rows", "test_rows", "gen_rows", "exposure_rows"):
            require(self, rows, getattr(self, rows) >= 1, "at least 1")
        if self.lexicon_size is not None:
            require(self, "lexicon_size", 2 <= self.lexicon_size <= 100, "2 to 100, or null")
        require(self, "train_depth", self.train_depth >= 1, "at least 1")
        check_range(self, "gen_depths", minimum=self.train_depth + 1)

    def build_splits(self) -> dict[str, list[Example]]:
        """Generate every split; no sentence is in two of them, or twice.

        Raises:
            OptionError: more rows are asked for than a small lexicon gives.
        """
        rows = _Rows(self)
        train = [
            *rows.exposures(),
            *rows.primitives(),
            *rows.in_distribution("train", self.train_rows),
        ]
        rows.known = {token for row in train for token in row.source}
        return {
            "train": train,
            "dev": rows.in_distribution("dev", self.dev_rows),
            "test": rows.in_distribution("test", self.test_rows),
            "gen": [
                row
                for category in (*GENERALISATIONS, *STRUCTURAL)
                for row in rows.generalisation(category)
            ],
        }

    def tables(
        self, examples: Sequence[Example], correct: Sequence[bool]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return the tables of :func:`tasks.cogs.official.generalisation_tables`."""
        return generalisation_tables(examples, correct)


class _Rows:
    """Draws rows that are new, no deeper than allowed, and of words that train has."""

    def __init__(self, task: CogsLike) -> None:
        self.task = task
        self.seen: set[tuple[str, ...]] = set()
        self.known: set[str] | None = None
        """Source tokens of train; None while train itself is drawn."""

    def grammar(self, name: str) -> Grammar:
        """Return a grammar with random choices of its own."""
        choices = random.Random(f"cogs_like {self.task.seed} {name}")
        return Grammar(choices, lexicon_size=self.task.lexicon_size)

    def in_distribution(self, split: str, count: int) -> list[Example]:
        grammar = self.grammar(split)
        return [self.new("in_distribution", grammar) for _ in range(count)]

    def exposures(self) -> list[Example]:
        grammar = self.grammar("exposures")
        return [
            self.new(f"exposure_{key}", grammar, at=slot, word=EXPOSED[key])
            for key, slot in EXPOSURES.items()
            for _ in range(self.task.exposure_rows)
        ]

    def primitives(self) -> list[Example]:
        grammar = self.grammar("primitives")
        words = [EXPOSED[key] for key in PRIMITIVES]
        for kind in ("unergative", "unaccusative", "omissible", "transitive"):
            words += grammar.verbs[kind].values
        nouns = grammar.nouns["animate"].values + grammar.nouns["inanimate"].values
        for group in (nouns, grammar.nouns["name"].values):
            words += grammar.random.sample(group, len(group) // _PRIMITIVE_SHARE)
        return [example(word, primitive_form(word), "primitive") for word in words]

    def generalisation(self, category: str) -> list[Example]:
        grammar = self.grammar(category)
        first, last = self.task.gen_depths
        rows = []
        for number in range(self.task.gen_rows):
            depth = first + number % (last - first + 1)
            request: dict[str, Any]
            if category == "cp_recursion":
                request = {"clause_depth": depth}
            elif category == "pp_recursion":
                request = {"at": MODIFIED_OBJECT, "phrase_depth": depth}
            elif category == "obj_pp_to_subj_pp":
                deeper = grammar.random.random() < DEEPER_PHRASE
                request = {"at": MODIFIED_SUBJECT, "phrase_depth": 1 + deeper}
            else:
                key, slot = GENERALISATIONS[category]
                request = {"at": slot, "word": EXPOSED[key]}
            rows.append(self.new(category, grammar, **request))
        return rows

    def new(self, category: str, grammar: Grammar, **request: Any) -> Example:
        """Draw until a sentence is new, has words of train only, and is not too deep."""
        clause_limit = request.get("clause_depth", self.task.train_depth)
        phrase_limit = request.get("phrase_depth", self.task.train_depth)
        seen, known = self.seen, self.known
        for _ in range(_TRIES_PER_ROW):
            tokens, _ = grammar.draw_tokens(**request)
            sentence = tuple(tokens)
            if sentence in seen or not (known is None or known.issuperset(tokens)):
                continue
            reading = SentenceReader(tokens).read()
            if reading.clause_depth <= clause_limit and reading.phrase_depth <= phrase_limit:
                seen.add(sentence)
                form = tuple(reading.logical_form.split(" "))
                return Example(sentence, form, category, reading.depth)
        raise OptionError(
            "task.lexicon_size",
            self.task.lexicon_size,
            f"no new sentence of train's words for {category} in {_TRIES_PER_ROW} draws; ask for "
            "fewer rows, for more training rows, or keep more words",
        )
