"""Deliberate mistakes in functions of ``moeut``, and what the tests of the suite say of them."""

from __future__ import annotations
import __future__ as future

import ast
import gc
import importlib
import inspect
import json
import os
import textwrap
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[2]
WITHOUT = (
    *("cacheprovider", "xdist", "timeout", "faulthandler", "terminalreporter"),
    *("unraisableexception", "threadexception"),  # which collect garbage, twice
)
"""Plugins of pytest that a session inside a test does not need."""

# PyTorch imports hundreds of modules when this is first called: once here, not in each copy.
one = torch.ones((), requires_grad=True)
torch.autograd.grad(one * one, one, torch.ones(()))


class Mutation(NamedTuple):
    """One mistake."""

    mistake: str
    """What the mutant does, in one clause."""

    at: str
    """``module:function`` or ``module:Class.method``."""

    old: str
    """Source text, without the indentation of the function, that occurs once in it."""

    new: str
    """What takes its place."""

    check: str
    """Node of the test that has to fail, below ``tests/``: ``file.py::test_name[parameters]``."""

    others: tuple[tuple[str, str, str], ...] = ()
    """More places (at, old, new), where one text does not make the mistake."""

    @property
    def edits(self) -> list[tuple[str, str, str]]:
        """All places."""
        return [(self.at, self.old, self.new), *self.others]


class Outcome(NamedTuple):
    """What became of a test."""

    result: str
    """``passed``, ``skipped``, or the name of the exception."""

    about: str
    """Its first words."""

    in_source: bool
    """Whether ``moeut`` itself raised it."""

    @property
    def is_noticed(self) -> bool:
        """Whether the test says that numbers are wrong, and not that the mutant breaks."""
        words = ("AssertionError", "Failed", "GradcheckError")
        return self.result in words and not self.in_source


def find(at: str) -> FunctionType:
    """Return the function at ``module:path``, without its decorators."""
    name, _, path = at.partition(":")
    found: Any = importlib.import_module(name)
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    function = inspect.unwrap(found)
    assert isinstance(function, FunctionType), f"{at}: a mutant is made of a Python function"
    return function


def mutant_of(at: str, old: str, new: str) -> CodeType:
    """Return the code of the function with ``new`` in the place of ``old``.

    Raises:
        AssertionError: ``old`` is not there, or more than once.
    """
    function = find(at)
    source = textwrap.dedent(inspect.getsource(function))
    count = source.count(old)
    assert count == 1, f"{at}: {old!r} occurs {count} times, not once"
    (body,) = ast.parse(source.replace(old, new)).body
    assert isinstance(body, ast.FunctionDef)
    body.decorator_list = []
    # What the function takes from around it, such as the class that super() is of.
    free = function.__code__.co_freevars
    (around,) = ast.parse(f"def around({', '.join(free)}): pass").body
    assert isinstance(around, ast.FunctionDef)
    around.body = [body, ast.Return(ast.Name(body.name, ast.Load()))]
    module = ast.fix_missing_locations(ast.Module([around], []))
    flags, names = future.annotations.compiler_flag, dict(function.__globals__)
    exec(compile(module, f"<mutant of {at}>", "exec", flags), names)
    code: CodeType = names["around"](*free).__code__
    assert code.co_freevars == free, f"{at}: the mutant takes other names from around it"
    return code


def outcomes(check: str, mutation: Mutation | None = None) -> list[Outcome]:
    """Return what becomes of the tests of ``check``, up to the first that fails, with the mistake.

    They run in a copy of this process, so that nothing of the mutant's stays.
    """
    edits = [] if mutation is None else mutation.edits
    mutants = [(find(at), mutant_of(at, old, new)) for at, old, new in edits]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            os.close(reading)
            gc.disable()  # to collect what the copies share would copy it
            for function, code in mutants:
                # Its code and not the function: who has imported it by name has the mutant, too.
                function.__code__ = code
            with os.fdopen(writing, "w") as pipe:
                json.dump(_run(check), pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    assert text, f"{check}: the copy of this process died"
    return [Outcome(*each) for each in json.loads(text)]


class Notes:
    """A plugin of pytest that keeps what became of the tests of a session."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        """Keep the outcome of each test, once."""
        report = yield
        if report.failed:
            error = call.excinfo
            place = Path(str(error.traceback[-1].path))
            in_source = place.is_relative_to(ROOT / "moeut") or "<mutant" in str(place)
            self.outcomes.append(Outcome(error.typename, str(error.value)[:200], in_source))
        elif report.when == "call" or report.skipped:
            self.outcomes.append(Outcome(report.outcome, "", False))
        return report


def _run(check: str) -> list[Outcome]:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.environ.pop("PYTEST_ADDOPTS", None)
    notes = Notes()
    without = [f"-pno:{name}" for name in WITHOUT]
    node = str(ROOT / "tests" / check)
    pytest.main([node, "-x", f"--rootdir={ROOT}", *without], plugins=[notes])
    return notes.outcomes
