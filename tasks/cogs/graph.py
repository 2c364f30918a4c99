"""A sentence of COGS as a graph, and the logical forms of COGS and ReCOGS that it is written as.

ReCOGS (Wu, Manning and Potts 2023, arXiv 2303.13716) says in another form what COGS says: names are
nouns, a verb is an atom of its own, and nouns come first. With the positional index a variable is
the place of its word, from 0:

>>> graph = read_graph("Emma ate the cake on a bed .")
>>> cogs_form(graph)
'* cake ( x _ 3 ) ; eat . agent ( x _ 1 , Emma ) AND eat . theme ( x _ 1 , x _ 3 ) AND cake . nmod \
. on ( x _ 3 , x _ 6 ) AND bed ( x _ 6 )'
>>> positional_form(graph)
'Emma ( 0 ) ; * cake ( 3 ) ; bed ( 6 ) ; eat ( 1 ) AND agent ( 1 , 0 ) AND theme ( 1 , 3 ) AND \
nmod . on ( 3 , 6 )'
>>> positional_primitive("crawl"), positional_primitive("Paula")
('LAMBDA a . LAMBDA e . crawl ( e ) AND agent ( e , a )', 'LAMBDA a . Paula ( a )')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tasks.cogs.logical_form import NAMES, SentenceReader, primitive_form


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun or a name in a sentence."""

    index: int
    """Place of its word, from 0."""
    word: str
    kind: str
    """``definite``, ``indefinite`` or ``name``."""


@dataclass(frozen=True, slots=True)
class Relation:
    """What joins two words."""

    head: int
    """Place of the verb, or of the noun that a phrase hangs on."""
    lemma: str
    """Of the head."""
    role: str
    """``agent``, ``theme`` and so on, or ``nmod . on``."""
    argument: int
    """Place of the other word."""


@dataclass(frozen=True, slots=True)
class Graph:
    """What a sentence says."""

    nouns: tuple[Noun, ...]
    """In the order of the sentence."""
    relations: tuple[Relation, ...]
    """By head, then by argument, which is the order of both published forms."""

    def moved(self, places: Mapping[int, int] | Callable[[int], int]) -> Graph:
        """Return the graph of the same words in other places."""
        to = places if callable(places) else places.__getitem__
        nouns = [replace(noun, index=to(noun.index)) for noun in self.nouns]
        relations = [replace(r, head=to(r.head), argument=to(r.argument)) for r in self.relations]
        return ordered(nouns, relations)


def ordered(nouns: list[Noun], relations: list[Relation]) -> Graph:
    """Return a graph with its parts in their order."""
    return Graph(
        tuple(sorted(nouns, key=lambda noun: noun.index)),
        tuple(sorted(relations, key=lambda relation: (relation.head, relation.argument))),
    )


class _GraphReader(SentenceReader):
    """Notes nouns and relations while a sentence is read, and gives names a place, too."""

    def __init__(self, tokens: list[str]) -> None:
        super().__init__(tokens)
        self.nouns: list[Noun] = []
        self.relations: list[Relation] = []

    def name(self, index: int, word: str) -> str:
        self.nouns.append(Noun(index, word, "name"))
        return f"x _ {index}"

    def noun(self, index: int, word: str, *, definite: bool) -> None:
        self.nouns.append(Noun(index, word, "definite" if definite else "indefinite"))

    def relate(self, head: int, lemma: str, role: str, term: str) -> None:
        self.relations.append(Relation(head, lemma, role, int(term.rpartition(" ")[2])))


def read_graph(sentence: str) -> Graph:
    """Return the graph of a sentence of COGS' grammar.

    Raises:
        ValueError: as ``tasks.cogs.logical_form.read``.
    """
    reader = _GraphReader(sentence.split(" "))
    reader.read()
    return ordered(reader.nouns, reader.relations)


def positional_form(graph: Graph) -> str:
    """Return ReCOGS' logical form with the positional index."""
    mark = {"definite": "* ", "indefinite": "", "name": ""}
    nouns = [f"{mark[noun.kind]}{noun.word} ( {noun.index} )" for noun in graph.nouns]
    atoms, seen = [], set()
    for relation in graph.relations:
        if not relation.role.startswith("nmod") and relation.head not in seen:
            seen.add(relation.head)
            atoms.append(f"{relation.lemma} ( {relation.head} )")
        atoms.append(f"{relation.role} ( {relation.head} , {relation.argument} )")
    return " ; ".join([*nouns, " AND ".join(atoms)])


def cogs_form(graph: Graph) -> str:
    """Return COGS' logical form."""
    names = {noun.index: noun.word for noun in graph.nouns if noun.kind == "name"}
    definite = [f"* {n.word} ( x _ {n.index} ) ; " for n in graph.nouns if n.kind == "definite"]
    atoms = [
        (n.index, 0, f"{n.word} ( x _ {n.index} )") for n in graph.nouns if n.kind == "indefinite"
    ]
    for order, r in enumerate(graph.relations, start=1):
        argument = names.get(r.argument, f"x _ {r.argument}")
        atoms.append((r.head, order, f"{r.lemma} . {r.role} ( x _ {r.head} , {argument} )"))
    return "".join(definite) + " AND ".join(atom for _, _, atom in sorted(atoms))


def positional_primitive(word: str) -> str:
    """Return ReCOGS' form of a single word; its variables are letters.

    Raises:
        ValueError: COGS has no such primitive.
    """
    form = primitive_form(word)
    if word in NAMES:
        return f"LAMBDA a . {word} ( a )"
    verb = f"{word} . "
    if verb not in form:
        return form
    head, _, roles = form.partition(verb)
    return f"{head}{word} ( e ) AND {re.sub(re.escape(verb), '', roles)}"
