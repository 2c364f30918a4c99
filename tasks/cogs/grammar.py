"""A grammar of COGS-like sentences: kinds of clause, noun phrases and words, with probabilities.

The probabilities are those of the COGS grammar as SLOG publishes it (Li et al. 2023,
https://github.com/bingzhilee/SLOG, commit 232c5bad, main-grammar.irtg; MIT licence): active 0.49,
unaccusative 0.06, passive of a theme 0.375 and of a recipient 0.075. The word at rank i of n has
the probability ``ZipfPMF(i; a = 1.4) + (1 - sum of those) / n``.

>>> grammar = Grammar(random.Random(0))
>>> grammar.draw()
Sentence(text='The purse was burned .', clauses=('unaccusative_passive',))
>>> grammar.draw(at=Slot(("SUBJECT",), ("unergative",)), word="shark", clause_depth=1)
Sentence(text='Henry expected that a shark laughed .', clauses=('embedding', 'unergative'))
"""

from __future__ import annotations

import bisect
import functools
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from tasks.cogs import lexicon
from tasks.cogs.logical_form import NAMES

T = TypeVar("T")

ZIPF_EXPONENT = 1.4
DEEPER_PHRASE = 0.1
"""Probability that the noun of a prepositional phrase has another one."""

DETERMINERS = ("a", "the")

VERBS: dict[str, tuple[str, ...]] = {
    "unergative": lexicon.UNERGATIVE,
    "unaccusative": lexicon.UNACCUSATIVE,
    "omissible": lexicon.OBJECT_OMISSIBLE,
    "transitive": lexicon.TRANSITIVE,
    "dative": lexicon.DATIVE,
    "clause_taking": lexicon.CLAUSE_TAKING,
    "infinitive_taking": lexicon.INFINITIVE_TAKING,
    "infinitive": lexicon.INFINITIVES,
}
"""Symbol of a clause -> the verbs it stands for: a participle after ``was``, an infinitive after
``to``, else in the past tense."""

NOUN_PHRASES: dict[str, dict[str, float]] = {
    "SUBJECT": {"animate": 0.5, "name": 0.5},
    "AGENT": {"animate": 0.5, "name": 0.5},
    "RECIPIENT": {"animate": 0.5, "name": 0.5},
    "RECIPIENT_SUBJECT": {"animate": 0.5, "name": 0.5},
    "THEME_SUBJECT": {"inanimate": 1.0},
    "UNACCUSATIVE_SUBJECT": {"inanimate": 0.5, "animate": 0.25, "name": 0.25},
    "THING": {"inanimate": 0.5, "inanimate PLACE": 0.5},
    "OBJECT": {
        "inanimate": 0.25,
        "inanimate PLACE": 0.25,
        "animate": 0.125,
        "animate PLACE": 0.125,
        "name": 0.25,
    },
}
"""Symbol of a clause -> what it can be; PLACE is a prepositional phrase after the noun."""

_ACTIVE, _UNACCUSATIVE, _PASSIVE, _RECIPIENT_PASSIVE = 0.49, 0.06, 0.375, 0.075
_VERB_PHRASE, _EMBEDDING = 0.10525, 0.158

CLAUSES: dict[str, tuple[float, str]] = {
    "unergative": (_ACTIVE * _VERB_PHRASE, "SUBJECT unergative"),
    "object_omitted": (_ACTIVE * _VERB_PHRASE, "SUBJECT omissible"),
    "omissible": (_ACTIVE * _VERB_PHRASE, "SUBJECT omissible OBJECT"),
    "transitive": (_ACTIVE * _VERB_PHRASE, "SUBJECT transitive OBJECT"),
    "unaccusative_transitive": (_ACTIVE * _VERB_PHRASE, "SUBJECT unaccusative OBJECT"),
    "to_dative": (_ACTIVE * _VERB_PHRASE, "SUBJECT dative THING to RECIPIENT"),
    "double_object": (_ACTIVE * _VERB_PHRASE, "SUBJECT dative RECIPIENT THING"),
    "infinitive": (_ACTIVE * _VERB_PHRASE, "SUBJECT infinitive_taking to infinitive"),
    "embedding": (_ACTIVE * _EMBEDDING, "SUBJECT clause_taking that"),
    "unaccusative": (_UNACCUSATIVE, "UNACCUSATIVE_SUBJECT unaccusative"),
    "transitive_passive": (_PASSIVE / 8, "THEME_SUBJECT was transitive"),
    "transitive_passive_by": (_PASSIVE / 8, "THEME_SUBJECT was transitive by AGENT"),
    "omissible_passive": (_PASSIVE / 8, "THEME_SUBJECT was omissible"),
    "omissible_passive_by": (_PASSIVE / 8, "THEME_SUBJECT was omissible by AGENT"),
    "unaccusative_passive": (_PASSIVE / 8, "THEME_SUBJECT was unaccusative"),
    "unaccusative_passive_by": (_PASSIVE / 8, "THEME_SUBJECT was unaccusative by AGENT"),
    "dative_passive": (_PASSIVE / 8, "THEME_SUBJECT was dative to RECIPIENT"),
    "dative_passive_by": (_PASSIVE / 8, "THEME_SUBJECT was dative to RECIPIENT by AGENT"),
    "recipient_passive": (_RECIPIENT_PASSIVE / 2, "RECIPIENT_SUBJECT was dative THING"),
    "recipient_passive_by": (_RECIPIENT_PASSIVE / 2, "RECIPIENT_SUBJECT was dative THING by AGENT"),
}
"""Kind of clause -> its probability and its symbols; ``embedding`` goes on with another clause."""

SYMBOLS = {kind: tuple(symbols.split(" ")) for kind, (_, symbols) in CLAUSES.items()}
"""Kind of clause -> its symbols."""
INNERMOST = tuple(kind for kind in CLAUSES if kind != "embedding")


class Slot(NamedTuple):
    """A place in a clause."""

    symbols: tuple[str, ...]
    """Symbols that count, of which a clause has one."""
    clauses: tuple[str, ...]
    """Kinds of clause that count."""


def clauses_with(*symbols: str) -> tuple[str, ...]:
    """Return the kinds of innermost clause that have one of some symbols.

    >>> clauses_with("THING")
    ('to_dative', 'double_object', 'recipient_passive', 'recipient_passive_by')
    """
    return tuple(kind for kind in INNERMOST if set(symbols) & set(SYMBOLS[kind]))


class Sentence(NamedTuple):
    """A sentence drawn from the grammar."""

    text: str
    clauses: tuple[str, ...]
    """Kinds of its clauses, outermost first."""


@dataclass(frozen=True)
class Weighted(Generic[T]):
    """Values with probabilities in proportion to some weights.

    ``random.choices`` draws the same from the same generator, but sums its weights at every call.
    """

    values: tuple[T, ...]
    cumulative: tuple[float, ...]
    """Sums of the weights of the values up to each."""

    @classmethod
    def of(cls, values: Iterable[T], weights: Iterable[float]) -> Weighted[T]:
        """Return values with their weights."""
        return cls(tuple(values), tuple(itertools.accumulate(weights)))

    def draw(self, uniform: Callable[[], float]) -> T:
        """Return a value by a number from 0 to 1."""
        cumulative = self.cumulative
        place = bisect.bisect(cumulative, uniform() * cumulative[-1], 0, len(cumulative) - 1)
        return self.values[place]


def word_probabilities(count: int) -> list[float]:
    """Return the probability of each of ``count`` words by rank: Zipf, the rest spread equally.

    >>> [round(p, 3) for p in word_probabilities(4)]
    [0.432, 0.232, 0.179, 0.156]
    """
    from scipy.special import zeta  # a tenth of a second, which --help need not wait for

    scale = float(zeta(ZIPF_EXPONENT))
    zipf = [rank**-ZIPF_EXPONENT / scale for rank in range(1, count + 1)]
    rest = (1 - sum(zipf)) / count
    return [probability + rest for probability in zipf]


class Grammar:
    """Draws sentences.

    Args:
        random_: where the choices come from.
        lexicon_size: how many words each class keeps, the most frequent first; None keeps all.
    """

    def __init__(self, random_: random.Random, *, lexicon_size: int | None = None) -> None:
        self.random = random_
        self._uniform, self._bits = random_.random, random_.getrandbits
        self.nouns = {
            "animate": self._words(lexicon.ANIMATE_NOUNS, lexicon_size),
            "inanimate": self._words(lexicon.INANIMATE_NOUNS, lexicon_size),
            "name": self._words(lexicon.NAMES, lexicon_size),
        }
        self.verbs = {kind: self._words(words, lexicon_size) for kind, words in VERBS.items()}
        self.places = {
            preposition: self._words(words, lexicon_size)
            for preposition, words in lexicon.PLACE_NOUNS.items()
        }
        self._prepositions = tuple(self.places)

    @staticmethod
    def _words(words: Sequence[str], size: int | None) -> Weighted[str]:
        kept = words[:size]
        return Weighted.of(kept, word_probabilities(len(kept)))

    def draw(
        self,
        *,
        at: Slot | None = None,
        word: str | None = None,
        phrase_depth: int | None = None,
        clause_depth: int | None = None,
    ) -> Sentence:
        """Draw one sentence.

        Args:
            at: a place that the innermost clause must have; the next two arguments are about it.
            word: the noun, name or lemma that stands there; None: any.
            phrase_depth: number of nested prepositional phrases of the noun there, 1 or more, so
                that it is no name; None: as the grammar draws it.
            clause_depth: number of nested ``that`` clauses; None: as the grammar draws it.
        """
        tokens, clauses = self.draw_tokens(at, word, phrase_depth, clause_depth)
        return Sentence(" ".join(tokens), tuple(clauses))

    def draw_tokens(
        self,
        at: Slot | None = None,
        word: str | None = None,
        phrase_depth: int | None = None,
        clause_depth: int | None = None,
    ) -> tuple[list[str], list[str]]:
        """Draw a sentence as ``draw`` does; return its tokens and the kinds of its clauses."""
        tokens: list[str] = []
        clauses: list[str] = []
        while len(clauses) < clause_depth if clause_depth is not None else self._embeds():
            clauses.append("embedding")
            self._clause(tokens, "embedding", (), None, None)
        kind = _clause_kinds(at.clauses if at else INNERMOST).draw(self._uniform)
        clauses.append(kind)
        self._clause(tokens, kind, at.symbols if at else (), word, phrase_depth)
        if tokens[0] in DETERMINERS:
            tokens[0] = tokens[0].capitalize()
        tokens.append(".")
        return tokens, clauses

    def _embeds(self) -> bool:
        return self._uniform() < CLAUSES["embedding"][0]

    def _clause(
        self,
        tokens: list[str],
        kind: str,
        special: tuple[str, ...],
        word: str | None,
        phrase_depth: int | None,
    ) -> None:
        """Append a clause, ``word`` and ``phrase_depth`` where it has a ``special`` symbol."""
        for symbol in SYMBOLS[kind]:
            is_special = symbol in special
            if symbol in NOUN_PHRASES:
                if is_special:
                    self._noun_phrase(tokens, symbol, word, phrase_depth)
                else:
                    self._noun_phrase(tokens, symbol)
            elif symbol in self.verbs:
                wanted = word if is_special else None
                lemma = wanted or self.verbs[symbol].draw(self._uniform)
                before = tokens[-1]
                past, participle = lexicon.inflect(lemma)
                tokens.append({"was": participle, "to": lemma}.get(before, past))
            else:
                tokens.append(symbol)

    def _noun_phrase(
        self,
        tokens: list[str],
        symbol: str,
        word: str | None = None,
        phrase_depth: int | None = None,
    ) -> None:
        """Append a name, or a noun with what hangs on it."""
        if word in NAMES:
            tokens.append(word)
            return
        is_noun = word is not None or phrase_depth is not None
        noun, has_place = _PHRASES[symbol, is_noun].draw(self._uniform)
        if noun == "name":
            tokens.append(self.nouns[noun].draw(self._uniform))
            return
        tokens.append(self._determiner())
        tokens.append(word or self.nouns[noun].draw(self._uniform))
        if phrase_depth is not None or has_place:
            self._places(tokens, phrase_depth)

    def _determiner(self) -> str:
        """Return what ``random.choice`` does of two, in fewer calls."""
        number = self._bits(2)
        while number > 1:
            number = self._bits(2)
        return DETERMINERS[number]

    def _places(self, tokens: list[str], depth: int | None) -> None:
        """Append nested prepositional phrases, ``depth`` of them or as many as the grammar says."""
        count = 0
        while count < depth if depth is not None else count == 0 or self._uniform() < DEEPER_PHRASE:
            preposition = self.random.choice(self._prepositions)
            noun = self.places[preposition].draw(self._uniform)  # drawn before its determiner
            tokens += [preposition, self._determiner(), noun]
            count += 1


@functools.cache
def _clause_kinds(kinds: tuple[str, ...]) -> Weighted[str]:
    return Weighted.of(kinds, [CLAUSES[kind][0] for kind in kinds])


def _phrases() -> dict[tuple[str, bool], Weighted[tuple[str, bool]]]:
    """Return for each symbol, with names or without, nouns and whether a place follows."""
    found = {}
    for symbol, variants in NOUN_PHRASES.items():
        for is_noun in (False, True):
            kept = [name for name in variants if not (is_noun and name == "name")]
            values = [(name.removesuffix(" PLACE"), name.endswith(" PLACE")) for name in kept]
            found[symbol, is_noun] = Weighted.of(values, [variants[name] for name in kept])
    return found


_PHRASES = _phrases()
