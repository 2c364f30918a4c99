"""Sentences of COGS changed as ReCOGS changes its training rows, with the graphs that follow.

A sentence is a :class:`Row`: its tokens, its graph and its category. An object with a phrase moves
to the front, hesitations stand between the words, or three sentences are run together:

>>> from tasks.cogs.graph import positional_form
>>> row = read_row("Noah ate a cake on the bed .", "in_distribution")
>>> front = preposed(row)
>>> " ".join(front.tokens), front.category
('A cake on the bed Noah ate .', 'preposing_1')
>>> positional_form(front.graph).split(" ; ")[-1]
'nmod . on ( 1 , 4 ) AND eat ( 6 ) AND theme ( 6 , 1 ) AND agent ( 6 , 5 )'
>>> " ".join(sprinkled(row, {1: 2, 4: 1}).tokens)
'Noah ate um um a cake on um the bed .'
>>> short = read_row("The boy ran .", "in_distribution")
>>> " ".join(concatenated([short, row, short], "concat").tokens)
'The boy ran Noah ate a cake on the bed the boy ran .'
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.cogs.graph import Graph, Noun, Relation, ordered, read_graph

WINDOW, JOINED = 6, 3
"""Rows, sorted by length, that a concatenation is drawn from, and how many it joins."""


@dataclass(frozen=True, slots=True)
class Row:
    """A sentence, what it says, and its category."""

    tokens: tuple[str, ...]
    graph: Graph | None
    """None of a single word, which no change touches."""
    category: str


def read_row(sentence: str, category: str) -> Row:
    """Return a row of COGS.

    Raises:
        ValueError: the sentence is not of COGS' grammar.
    """
    tokens = tuple(sentence.split(" "))
    return Row(tokens, read_graph(sentence) if len(tokens) > 1 else None, category)


def preposed(row: Row) -> Row | None:
    """Return a row with an object in front, even out of a clause; None where none has a phrase.

    The number in the category is that of the phrases.
    """
    if row.graph is None:
        return None
    inside = {r.head: r.argument for r in row.graph.relations if r.role.startswith("nmod")}
    objects = [
        r.argument
        for r in row.graph.relations
        if r.role == "theme" and r.argument > r.head and r.argument in inside
    ]
    if not objects:
        return None
    first, last, phrases = objects[0] - 1, objects[0], 0
    while last in inside:
        last, phrases = inside[last], phrases + 1
    order = [*range(first, last + 1), *range(first), *range(last + 1, len(row.tokens))]
    places = {old: new for new, old in enumerate(order)}
    tokens = [_lowered(row.tokens[old]) for old in order]
    tokens[0] = tokens[0].capitalize()
    return Row(tuple(tokens), row.graph.moved(places), f"preposing_{phrases}")


def sprinkled(row: Row, hesitations: Mapping[int, int]) -> Row:
    """Return a row with hesitations.

    Args:
        row: what is said.
        hesitations: place of a word -> how often "um" follows it.
    """
    tokens: list[str] = []
    places = {}
    for place, token in enumerate(row.tokens):
        places[place] = len(tokens)
        tokens += [token, *["um"] * hesitations.get(place, 0)]
    graph = row.graph and row.graph.moved(places)
    return Row(tuple(tokens), graph, f"{row.category}+sprinkle")


def concatenated(rows: Sequence[Row], category: str) -> Row:
    """Return rows run together: one full stop at the end, one logical form.

    Raises:
        ValueError: one is a single word, which has no graph.
    """
    tokens: list[str] = []
    nouns: list[Noun] = []
    relations: list[Relation] = []
    for row in rows:
        if row.graph is None:
            raise ValueError(f"{' '.join(row.tokens)!r}: a single word, expected a sentence")
        start = len(tokens)
        tokens += row.tokens[:-1] if not start else map(_lowered, row.tokens[:-1])
        moved = row.graph.moved(lambda place, start=start: place + start)  # type: ignore[misc]
        nouns += moved.nouns
        relations += moved.relations
    return Row((*tokens, "."), ordered(nouns, relations), category)


def _lowered(token: str) -> str:
    return token.lower() if token in ("A", "The") else token


# --- whole training sets ----------------------------------------------------------------


def varied(
    rows: Sequence[Row], generator: random.Random, *, sprinkles: bool, share: float = 0.05
) -> list[Row]:
    """Return the rows, a share of those that can be preposed, and, apart, a share sprinkled.

    Half the words of a sprinkled row, neither the first nor the last, get 1 to 3 hesitations.
    """
    changed = list(rows)
    fronts = {place: front for place, row in enumerate(rows) if (front := preposed(row))}
    for place in generator.sample(sorted(fronts), round(share * len(fronts))):
        changed[place] = fronts[place]
    if sprinkles:
        for place in generator.sample(range(len(rows)), round(share * len(rows))):
            inner = range(1, len(changed[place].tokens) - 2)
            chosen = {word: generator.randint(1, 3) for word in inner if generator.random() < 0.5}
            changed[place] = sprinkled(changed[place], chosen)
    return changed


def concatenations(
    rows: Sequence[Row], count: int, generator: random.Random, category: str
) -> list[Row]:
    """Return concatenations of three rows of like length each, the longest first.

    Rows are sorted by length; the first six give the first concatenation, and so on.

    Raises:
        ValueError: there are fewer than ``6 * count`` sentences.
    """
    sentences = sorted(
        (row for row in rows if row.graph is not None), key=lambda row: -len(row.tokens)
    )
    if len(sentences) < WINDOW * count:
        raise ValueError(f"{count} concatenations: expected at most {len(sentences) // WINDOW}")
    joined = []
    for number in range(count):
        window = sentences[WINDOW * number : WINDOW * (number + 1)]
        joined.append(concatenated(generator.sample(window, JOINED), category))
    return joined
