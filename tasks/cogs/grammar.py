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

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.cogs import lexicon
from tasks.cogs.logical_form import NAMES

ZIPF_EXPONENT = 1.4
DEEPER_PHRASE = 0.1
"""Probability that the noun of a prepositional phrase has another one."""

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
    return tuple(kind for kind in INNERMOST if set(symbols) & set(CLAUSES[kind][1].split(" ")))


class Sentence(NamedTuple):
    """A sentence drawn from the grammar."""

    text: str
    clauses: tuple[str, ...]
    """Kinds of its clauses, outermost first."""


@dataclass(frozen=True)
class _Words:
    words: tuple[str, ...]
    cumulative: list[float]

    def draw(self, random_: random.Random) -> str:
        return random_.choices(self.words, cum_weights=self.cumulative)[0]


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

    @staticmethod
    def _words(words: Sequence[str], size: int | None) -> _Words:
        kept = tuple(words[:size])
        return _Words(kept, list(itertools.accumulate(word_probabilities(len(kept)))))

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
        tokens: list[str] = []
        clauses: list[str] = []
        kinds = at.clauses if at else INNERMOST
        while len(clauses) < clause_depth if clause_depth is not None else self._embeds():
            clauses.append("embedding")
            tokens += self._clause("embedding", (), None, None)
        clauses.append(self.random.choices(kinds, [CLAUSES[kind][0] for kind in kinds])[0])
        tokens += self._clause(clauses[-1], at.symbols if at else (), word, phrase_depth)
        if tokens[0] in ("a", "the"):
            tokens[0] = tokens[0].capitalize()
        return Sentence(" ".join([*tokens, "."]), tuple(clauses))

    def _embeds(self) -> bool:
        return self.random.random() < CLAUSES["embedding"][0]

    def _clause(
        self, kind: str, special: tuple[str, ...], word: str | None, phrase_depth: int | None
    ) -> list[str]:
        tokens: list[str] = []
        for symbol in CLAUSES[kind][1].split(" "):
            wanted = word if symbol in special else None
            if symbol in NOUN_PHRASES:
                depth = phrase_depth if symbol in special else None
                tokens += self._noun_phrase(NOUN_PHRASES[symbol], wanted, depth)
            elif symbol in VERBS:
                lemma = wanted or self.verbs[symbol].draw(self.random)
                past, participle = lexicon.inflect(lemma)
                forms = {"was": participle, "to": lemma}
                tokens.append(forms.get(tokens[-1], past))
            else:
                tokens.append(symbol)
        return tokens

    def _noun_phrase(
        self, variants: dict[str, float], word: str | None, phrase_depth: int | None
    ) -> list[str]:
        if word in NAMES:
            return [word]
        if word is not None or phrase_depth is not None:
            variants = {name: p for name, p in variants.items() if name != "name"}
        noun, *place = self.random.choices(list(variants), list(variants.values()))[0].split(" ")
        if noun == "name":
            return [self.nouns[noun].draw(self.random)]
        tokens = [self._determiner(), word or self.nouns[noun].draw(self.random)]
        if phrase_depth is not None or place:
            tokens += self._place(phrase_depth)
        return tokens

    def _determiner(self) -> str:
        return self.random.choice(("a", "the"))

    def _place(self, depth: int | None) -> list[str]:
        """Draw nested prepositional phrases, ``depth`` of them or as many as the grammar says."""
        tokens: list[str] = []
        count = 0
        while (
            count < depth
            if depth is not None
            else count == 0 or self.random.random() < DEEPER_PHRASE
        ):
            preposition = self.random.choice(tuple(self.places))
            noun = self.places[preposition].draw(self.random)
            tokens += [preposition, self._determiner(), noun]
            count += 1
        return tokens
