"""Whether two logical forms say the same: ReCOGS' semantic exact match (arXiv 2303.13716).

A form is a set of atoms, separated by ``AND`` or ``;``; its variables are the numbers. Two forms
match if the variables of one can be renamed so that its atoms are those of the other.

>>> semantic_match("cat ( 1 ) ; run ( 2 ) AND agent ( 2 , 1 )", "agent(7,0) AND cat(0) ; run(7)")
True
>>> semantic_match("cat ( 1 ) ; run ( 2 ) AND agent ( 2 , 1 )", "cat(1) ; run(2) ; agent(1,2)")
False

As published (frankaging/ReCOGS 1b6eca8f), a variable may only take the name of one that occurs with
the same predicates, each as often, and two variables may take one name. So a repeated atom is
wrong, and a whole second copy of the form is right:

>>> semantic_match("cat ( 1 )", "cat(1) AND cat(1)"), semantic_match("cat ( 1 )", "cat(1) ; cat(2)")
(False, True)
>>> semantic_match("cat ( 1 )", "cat(1) ; cat(2)", one_to_one=True)
False

The published code tries all renamings. Here names that leave an atom without counterpart are struck
out first, again after each choice, so that any form of the data is answered in milliseconds.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_WORK = 1_000_000
"""Comparisons of two atoms after which a form counts as wrong; right forms of the data need far
fewer."""

_ATOM = re.compile(r"([^()\d,]+)\((\d+)(?:,(\d+))?\)")

Atom = tuple[str, tuple[str, ...]]
"""Predicate and its one or two variables."""
Names = dict[str, set[str]]
"""Variable of the output -> variables of the target that it may stand for."""


@dataclass(frozen=True)
class Form:
    """A logical form, read."""

    literals: frozenset[str]
    """Atoms without variables, such as those of single words."""
    atoms: frozenset[Atom]
    signatures: dict[str, tuple[str, ...]]
    """Variable -> the predicates of its atoms, sorted; a repeated atom counts again."""


def read_form(text: str) -> Form | None:
    """Return a logical form, read; None where a number stands outside an atom's brackets."""
    literals, atoms = set(), set()
    predicates: dict[str, list[str]] = collections.defaultdict(list)
    for part in re.split("AND|;", text.replace(" ", "")):
        found = _ATOM.fullmatch(part)
        if found is None:
            if re.search(r"\d", part):
                return None
            literals.add(part)
            continue
        name, *given = found.groups()
        variables = tuple(variable for variable in given if variable is not None)
        atoms.add((name, variables))
        for variable in variables:
            predicates[variable].append(name.rpartition(".")[2])
    signatures = {variable: tuple(sorted(names)) for variable, names in predicates.items()}
    return Form(frozenset(literals), frozenset(atoms), signatures)


def semantic_match(gold: str, prediction: str, *, one_to_one: bool = False) -> bool:
    """Return whether a renaming of variables turns the prediction into the gold form.

    Args:
        gold: logical form, with or without blanks.
        prediction: what was written.
        one_to_one: give each variable a name of its own, which the published code does not ask for.
    """
    target, output = read_form(gold), read_form(prediction)
    if target is None or output is None or target.literals != output.literals:
        return False
    fewer = len(output.signatures) - len(target.signatures)
    if fewer < 0 or (one_to_one and fewer > 0):
        return False
    by_signature: dict[tuple[str, ...], set[str]] = collections.defaultdict(set)
    for variable, signature in target.signatures.items():
        by_signature[signature].add(variable)
    names = {v: set(by_signature[signature]) for v, signature in output.signatures.items()}
    return _Search(target, output, is_bijective=fewer == 0).run(names)


class _Search:
    """Looks for a renaming: strikes names out, then chooses one for the variable with fewest."""

    def __init__(self, target: Form, output: Form, *, is_bijective: bool) -> None:
        self.target, self.output = target, output
        self.is_bijective = is_bijective
        self.work = 0
        self.pairs: dict[str, set[tuple[str, ...]]] = collections.defaultdict(set)
        for name, variables in target.atoms:
            self.pairs[f"{name}/{len(variables)}"].add(variables)
        self.atoms_of: dict[str, list[Atom]] = collections.defaultdict(list)
        for atom in output.atoms:
            for variable in set(atom[1]):
                self.atoms_of[variable].append(atom)

    def run(self, names: Names) -> bool:
        if not self.narrow(names, list(names)):
            return False
        open_ones = [variable for variable in names if len(names[variable]) > 1]
        if not open_ones:
            return self.is_renaming(names)
        variable = min(open_ones, key=lambda one: (len(names[one]), one))
        for name in sorted(names[variable]):
            if self.work > MAX_WORK:
                return False
            chosen = {one: set(those) for one, those in names.items()}
            chosen[variable] = {name}
            if self.run(chosen):
                return True
        return False

    def narrow(self, names: Names, waiting: Sequence[str]) -> bool:
        """Strike out names that some atom rules out; return whether every variable has one left."""
        queue = collections.deque(waiting)
        while queue:
            variable = queue.popleft()
            if not names[variable]:
                return False
            changed = self.settle(names, variable)
            for name, variables in self.atoms_of[variable]:
                pairs = self.pairs[f"{name}/{len(variables)}"]
                self.work += len(pairs)
                fitting = [
                    pair
                    for pair in pairs
                    if all(own in names[v] for own, v in zip(pair, variables, strict=True))
                ]
                for place, one in enumerate(variables):
                    kept = {pair[place] for pair in fitting}
                    if not names[one] <= kept:
                        names[one] &= kept
                        changed.append(one)
            if not all(names[one] for one in changed):
                return False
            queue.extend(dict.fromkeys(changed))
        return self.covers(names)

    def settle(self, names: Names, variable: str) -> list[str]:
        """Take the one name that a variable has left from all others, where none is shared."""
        if not self.is_bijective or len(names[variable]) > 1:
            return []
        (name,) = names[variable]
        others = [one for one in names if one != variable and name in names[one]]
        for one in others:
            names[one] = names[one] - {name}
        return others

    def covers(self, names: Names) -> bool:
        """Return whether every variable of the target can still be some variable's name."""
        return set().union(*names.values()) == set(self.target.signatures)

    def is_renaming(self, names: Names) -> bool:
        """Return whether the one name of each variable turns the output into the target."""
        only = {variable: next(iter(those)) for variable, those in names.items()}
        renamed = {(name, tuple(only[v] for v in vs)) for name, vs in self.output.atoms}
        return renamed == self.target.atoms
