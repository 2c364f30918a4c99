"""The logical form without variables, made of COGS' form with them.

What an atom says of a head stands in brackets behind it, in the order of the form; a definite noun
keeps its star wherever it stands:

>>> form = "* cake ( x _ 3 ) ; eat . agent ( x _ 1 , Ava ) AND eat . theme ( x _ 1 , x _ 3 )"
>>> variable_free(form)
'eat ( agent = Ava , theme = * cake )'

A noun inside its own relative clause is written by its word alone:

>>> form = "dog ( x _ 1 ) AND dog . nmod ( x _ 1 , x _ 3 ) AND run . agent ( x _ 3 , x _ 1 )"
>>> variable_free(form)
'dog ( nmod = run ( agent = dog ) )'

So it does not say whether two nouns of one word are one. The rule gives every row of ReCOGS'
variable_free (frankaging/ReCOGS 1b6eca8f) and, but for single words, of SLOG's varfree_LF
(bingzhilee/SLOG 1c55df85) from the other form of the row.
"""

from __future__ import annotations


def variable_free(form: str) -> str:
    """Return a form of COGS or SLOG without its variables; single words stay as they are."""
    if "x _ " not in form:
        return form
    definite, _, atoms = form.rpartition(" ; ")
    words: dict[str, str] = {}  # variable -> its word
    says: dict[str, list[tuple[str, str]]] = {}  # head -> roles and arguments, in their order
    arguments: set[str] = set()
    for noun in definite.split(" ; ") if definite else ():
        name, (variable,) = _atom(noun)
        words[variable] = name
    for text in atoms.split(" AND ") if atoms else ():
        name, (head, *argument) = _atom(text)
        word, _, role = name.partition(" . ")
        words.setdefault(head, word)
        if argument:
            says.setdefault(head, []).append((role, argument[0]))
            arguments.add(argument[0])

    def written(term: str, around: tuple[str, ...] = ()) -> str:
        word = words.get(term, term)
        if term in around or term not in says:
            return word
        inner = (f"{role} = {written(what, (*around, term))}" for role, what in says[term])
        return f"{word} ( {' , '.join(inner)} )"

    # A noun by itself with a relative clause is an argument in there, as all others are.
    heads = [term for term in words if term not in arguments] or [min(says, key=int)]
    return written(heads[0])


def _atom(text: str) -> tuple[str, list[str]]:
    """Return the name of an atom and its terms, of variables their numbers alone."""
    name, _, inside = text.removesuffix(" ;").partition(" ( ")
    return name, [term.removeprefix("x _ ") for term in inside.removesuffix(" )").split(" , ")]
