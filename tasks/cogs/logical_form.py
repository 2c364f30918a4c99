"""The rule that gives each COGS sentence its logical form.

``A rose was helped by a dog .`` reads, token by token from 0, as ``rose ( x _ 1 ) AND help . theme
( x _ 3 , x _ 1 ) AND help . agent ( x _ 3 , x _ 6 ) AND dog ( x _ 6 )``:

* A common noun is the variable of its token, ``noun ( x _ i )``, in lower case; with ``the`` it is
  written ``* noun ( x _ i ) ;`` in front of everything else. A proper name is a constant.
* A verb is its lemma with one atom per role, in the order of the sentence. The subject is the
  agent, or the theme of an unaccusative verb without object; ``V NP`` is a theme, ``V NP to NP``
  theme and recipient, ``V NP NP`` recipient and theme, ``that S`` a ccomp, ``to V`` an xcomp whose
  agent is the subject. In the passive the subject is the theme, or the recipient if an object
  follows, and ``by NP`` the agent.
* A prepositional phrase belongs to the noun before it: ``noun . nmod . on ( x _ i , x _ j )``.
* Atoms stand in the order of the token they belong to, joined by ``AND``.

Single words, the primitives, have lambda terms. The rule reproduces every row of the official files
of COGS (Kim and Linzen 2020, https://github.com/najoungkim/COGS, commit 165a7b66).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

from tasks.base.options import nearest
from tasks.cogs import lexicon as lexicon

_EXPOSED = lexicon.EXPOSED
NOUNS = frozenset(
    (
        *lexicon.ANIMATE_NOUNS,
        *lexicon.INANIMATE_NOUNS,
        *(noun for place in lexicon.PLACE_NOUNS.values() for noun in place),
        *(_EXPOSED[f"{role}_common"] for role in ("subject", "object", "primitive")),
        *(_EXPOSED[f"{role}_subject"] for role in ("transitive", "unaccusative")),
    )
)
NAMES = frozenset(
    (
        *lexicon.NAMES,
        *(_EXPOSED[f"{role}_proper"] for role in ("subject", "object", "primitive")),
    )
)
UNERGATIVE = frozenset((*lexicon.UNERGATIVE, _EXPOSED["primitive_verb"]))
UNACCUSATIVE = frozenset((*lexicon.UNACCUSATIVE, _EXPOSED["unaccusative"]))
TRANSITIVE = frozenset(
    (
        *lexicon.TRANSITIVE,
        *lexicon.OBJECT_OMISSIBLE,
        *(_EXPOSED[role] for role in ("active", "passive", "object_omitted")),
    )
)
DATIVE = frozenset((*lexicon.DATIVE, _EXPOSED["to_dative"], _EXPOSED["double_object_dative"]))
_WITH_OBJECT = UNACCUSATIVE | TRANSITIVE | DATIVE
_WITH_PAST = {
    *_WITH_OBJECT,
    *UNERGATIVE,
    *lexicon.CLAUSE_TAKING,
    *lexicon.INFINITIVE_TAKING,
}
PAST = {lexicon.inflect(lemma)[0]: lemma for lemma in _WITH_PAST}
PARTICIPLES = {lexicon.inflect(lemma)[1]: lemma for lemma in _WITH_OBJECT}
INFINITIVES = frozenset((*_WITH_PAST, *lexicon.INFINITIVES))


@dataclass(frozen=True, slots=True)
class Reading:
    """A sentence understood."""

    logical_form: str
    clause_depth: int
    """Number of ``that`` clauses, each inside the one before."""
    phrase_depth: int
    """Longest chain of prepositional phrases, each inside the one before."""

    @property
    def depth(self) -> int:
        """Recursion depth of the sentence: the deeper of its clauses and its phrases."""
        return max(self.clause_depth, self.phrase_depth)


def logical_form(sentence: str) -> str:
    """Return the logical form of a sentence or of a primitive, tokens separated by blanks.

    >>> logical_form("Emma hoped that the cake on a bed rolled .").split(" ; ")[0]
    '* cake ( x _ 4 )'
    >>> logical_form("A cake rolled .")
    'cake ( x _ 1 ) AND roll . theme ( x _ 2 , x _ 1 )'
    >>> logical_form("Ava ate a cake ."), logical_form("Ava")
    ('eat . agent ( x _ 1 , Ava ) AND eat . theme ( x _ 1 , x _ 3 ) AND cake ( x _ 3 )', 'Ava')

    Raises:
        ValueError: a word is not in the lexicon, or the sentence is not one of the grammar. Which
            objects a verb takes is not checked.
    """
    return read(sentence).logical_form


def read(sentence: str) -> Reading:
    """Return the logical form of a sentence or primitive with its depth of recursion.

    >>> read("Noah said that Liam said that Ava loved a cat on a bed .").depth
    2

    Raises:
        ValueError: as :func:`logical_form`.
    """
    tokens = sentence.split(" ")
    if len(tokens) == 1:
        return Reading(primitive_form(sentence), 0, 0)
    return SentenceReader(tokens).read()


def primitive_form(word: str) -> str:
    """Return the lambda term of a noun, a name or a verb's lemma.

    >>> primitive_form("shark"), primitive_form("crawl")
    ('LAMBDA a . shark ( a )', 'LAMBDA a . LAMBDA e . crawl . agent ( e , a )')

    Raises:
        ValueError: COGS has no primitive of that kind.
    """
    if word in NAMES:
        return word
    if word in NOUNS:
        return f"LAMBDA a . {word.lower()} ( a )"
    if word in UNERGATIVE:
        return f"LAMBDA a . LAMBDA e . {word} . agent ( e , a )"
    if word in UNACCUSATIVE:
        return f"LAMBDA a . LAMBDA e . {word} . theme ( e , a )"
    if word in TRANSITIVE:
        roles = f"{word} . agent ( e , b ) AND {word} . theme ( e , a )"
        return f"LAMBDA a . LAMBDA b . LAMBDA e . {roles}"
    known = NAMES | NOUNS | UNERGATIVE | UNACCUSATIVE | TRANSITIVE
    raise ValueError(
        f"primitive {word!r}: expected a noun, a name, or the lemma of a transitive or "
        f"intransitive verb of COGS{nearest(word, known)}"
    )


class SentenceReader:
    """One pass over a sentence, left to right; no construction needs more than one token ahead."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.ahead = [*tokens, ""]  # what comes next, nothing at the end
        self.position = 0
        self.definites: list[str] = []
        self.atoms: list[list[str]] = [[] for _ in tokens]  # by the token they belong to
        self.clause_depth = 0
        self.phrase_depth = 0

    def read(self) -> Reading:
        self.clause()
        self.take({"."}, "a full stop")
        if self.position < len(self.tokens):
            raise self.error("nothing after the full stop", ())
        form = " AND ".join(itertools.chain.from_iterable(self.atoms))
        return Reading("".join(self.definites) + form, self.clause_depth, self.phrase_depth)

    def clause(self) -> int:
        """Read subject, verb and the rest of the clause; return the verb's position."""
        subject = self.noun_phrase()
        return self.passive(subject) if self.skip("was") else self.active(subject)

    def active(self, subject: str) -> int:
        verb, token = self.take(PAST, "a verb in the past tense")
        lemma = PAST[token]
        followed = self.peek() in ("that", "to") or self.at_noun_phrase()
        self.role(
            verb, lemma, "agent" if followed or lemma not in UNACCUSATIVE else "theme", subject
        )
        if self.skip("that"):
            self.clause_depth += 1
            self.role(verb, lemma, "ccomp", f"x _ {self.clause()}")
        elif self.skip("to"):
            infinitive, inner = self.take(INFINITIVES, "an infinitive")
            self.role(verb, lemma, "xcomp", f"x _ {infinitive}")
            self.role(infinitive, inner, "agent", subject)
        elif followed:
            first = self.noun_phrase()
            if self.at_noun_phrase():
                self.role(verb, lemma, "recipient", first)
                self.role(verb, lemma, "theme", self.noun_phrase())
            else:
                self.role(verb, lemma, "theme", first)
                if self.skip("to"):
                    self.role(verb, lemma, "recipient", self.noun_phrase())
        return verb

    def passive(self, subject: str) -> int:
        verb, token = self.take(PARTICIPLES, "a participle")
        lemma = PARTICIPLES[token]
        if self.at_noun_phrase():
            self.role(verb, lemma, "recipient", subject)
            self.role(verb, lemma, "theme", self.noun_phrase())
        else:
            self.role(verb, lemma, "theme", subject)
            if self.skip("to"):
                self.role(verb, lemma, "recipient", self.noun_phrase())
        if self.skip("by"):
            self.role(verb, lemma, "agent", self.noun_phrase())
        return verb

    def noun_phrase(self, depth: int = 0) -> str:
        """Read a name, or a noun with all that hangs on it; return its term."""
        if not self.at_determiner():
            return self.name(*self.take(NAMES, "a name, or 'a' or 'the' with a noun"))
        definite = self.tokens[self.position].lower() == "the"
        self.position += 1
        index, token = self.take(NOUNS, "a noun")
        noun = token.lower()  # only "TV" differs
        self.noun(index, noun, definite=definite)
        if definite:
            self.definites.append(f"* {noun} ( x _ {index} ) ; ")
        else:
            self.atoms[index].append(f"{noun} ( x _ {index} )")
        preposition = self.ahead[self.position]
        if preposition in lexicon.PLACE_NOUNS:
            self.position += 1
            self.phrase_depth = max(self.phrase_depth, depth + 1)
            place = self.noun_phrase(depth + 1)
            self.role(index, noun, f"nmod . {preposition}", place)
        return f"x _ {index}"

    def role(self, head: int, lemma: str, role: str, term: str) -> None:
        self.atoms[head].append(f"{lemma} . {role} ( x _ {head} , {term} )")
        self.relate(head, lemma, role, term)

    # --- what a reader that wants more than the form replaces ---------------------------

    def name(self, index: int, word: str) -> str:
        """Return the term of a name."""
        return word

    def noun(self, index: int, word: str, *, definite: bool) -> None:
        """Take note of a noun."""

    def relate(self, head: int, lemma: str, role: str, term: str) -> None:
        """Take note of an atom that joins a verb or noun with another."""

    def at_determiner(self) -> bool:
        place = self.position
        return self.ahead[place] in (("a", "the") if place else ("A", "The"))

    def at_noun_phrase(self) -> bool:
        return self.at_determiner() or self.ahead[self.position] in NAMES

    def peek(self) -> str:
        return self.ahead[self.position]

    def skip(self, token: str) -> bool:
        if self.ahead[self.position] != token:
            return False
        self.position += 1
        return True

    def take(self, allowed: Collection[str], expected: str) -> tuple[int, str]:
        place = self.position
        token = self.ahead[place]
        if token not in allowed:
            raise self.error(expected, allowed)
        self.position = place + 1
        return place, token

    def error(self, expected: str, allowed: Collection[str]) -> ValueError:
        return ValueError(
            f"sentence {' '.join(self.tokens)!r}: token {self.position}, {self.peek()!r}: "
            f"expected {expected}{nearest(self.peek(), allowed)}"
        )
