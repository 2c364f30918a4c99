"""SCAN: navigation commands to sequences of actions (Lake & Baroni, ICML 2018, arXiv 1711.00350).

    C -> S and S | S after S | S      [[S and T]] = [[S]] [[T]]       [[S after T]] = [[T]] [[S]]
    S -> V twice | V thrice | V       [[V twice]] = [[V]] [[V]]       [[V thrice]] = [[V]] x 3
    V -> U | U D | U opposite D | U around D | turn D | turn opposite D | turn around D
    U -> walk | look | run | jump     D -> left | right

    [[U D]] = t a    [[U opposite D]] = t t a    [[U around D]] = t a t a t a t a
    where t turns to D, and a is the action of U, nothing for ``turn``

>>> " ".join(interpret("jump left twice"))
'I_TURN_LEFT I_JUMP I_TURN_LEFT I_JUMP'
>>> " ".join(interpret("walk after turn opposite right"))
'I_TURN_RIGHT I_TURN_RIGHT I_WALK'
>>> len(commands())
20910

Experiments (``variant``); each pair of sets equals the official files, as multisets:

    simple                     random 80 / 20; official files
    length                     test has more than ``cutoff`` actions; 22 is the official experiment
    add_prim_jump              train has ``jump`` only by itself, a tenth of its rows; test
                               composes it
    add_prim_turn_left         likewise ``turn left``
    template_right, template_opposite_right, template_around_right
                               train never has the template with any verb; test has it with a verb
                               that acts; commands with it and ``turn`` are in neither
    template_jump_around_right train never has ``jump around right``
    filler_num0 ... num3       test as template_jump_around_right; train has ``around right`` with
                               0 to 3 verbs (look, then walk, then run)
    few_shot                   filler_num0 and ``num`` commands with ``jump around right``, drawn
                               ``rep`` times; official files (Loula et al. 2018, arXiv 1807.07545)
    mcd1, mcd2, mcd3           maximum compound divergence (Keysers et al., ICLR 2020,
                               arXiv 1912.09713); index lists into the official tasks.txt

All but simple, few_shot, mcd and ``resplit`` follow from the grammar and need no download.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy

from tasks.base.about import About
from tasks.base.data_files import DataDamaged, DataFile, file_table, read_bytes, read_lines
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask

COMMIT = "c4b756cbc010d75c912f16c42c8f15dc6b7e6c8f"
REPOSITORY = f"https://raw.githubusercontent.com/brendenlake/SCAN/{COMMIT}"
MCD_ARCHIVE = DataFile(
    path="scan/scan-splits.tar.gz",
    url="https://storage.googleapis.com/cfq_dataset/scan-splits.tar.gz",
    sha256="e8fff9d88699abd1b88e8eeb44d199bc9706fb21dd9887c3a928dcb11f140785",
)
TASKS_FILE = "tasks.txt"
SIMPLE_FILES = ("simple_split/tasks_train_simple.txt", "simple_split/tasks_test_simple.txt")
FEW_SHOT_FILE = "few_shot_split/tasks_train_fewshot_num{num}_rep{rep}.txt"

DIRECTIONS = {"left": "I_TURN_LEFT", "right": "I_TURN_RIGHT"}
ACTIONS = {"walk": "I_WALK", "look": "I_LOOK", "run": "I_RUN", "jump": "I_JUMP"}
REPETITIONS = {"twice": 2, "thrice": 3}
FILLERS = ("look", "walk", "run")
"""Verbs that the filler experiments add to train's ``around right``, in their order."""

Variant = Literal[
    "simple",
    "length",
    "add_prim_jump",
    "add_prim_turn_left",
    "template_around_right",
    "template_opposite_right",
    "template_right",
    "template_jump_around_right",
    "filler_num0",
    "filler_num1",
    "filler_num2",
    "filler_num3",
    "few_shot",
    "mcd1",
    "mcd2",
    "mcd3",
]


def _read_data_files() -> dict[str, DataFile]:
    files = {}
    for sha256, rows, path in file_table("scan_sha256.txt"):
        files[path] = DataFile(
            path=f"scan/{path}",
            url=f"{REPOSITORY}/{path}",
            sha256=sha256,
            rows=int(rows),
            by_default=path in (TASKS_FILE, *SIMPLE_FILES),
        )
    return files


DATA_FILES: dict[str, DataFile] = _read_data_files()
"""Every official file, by its path in the repository."""


# --- the language -----------------------------------------------------------------------


def interpret(command: str) -> tuple[str, ...]:
    """Return the actions that a command means.

    Raises:
        ValueError: the grammar has no such command.
    """
    words = tuple(command.split())
    actions = _sentence(words)
    if actions is None:
        raise ValueError(f"{command!r}: not a SCAN command")
    return actions


def _sentence(words: tuple[str, ...]) -> tuple[str, ...] | None:
    for conjunction in ("and", "after"):
        if conjunction in words:
            at = words.index(conjunction)
            first, second = _phrase(words[:at]), _phrase(words[at + 1 :])
            if first is None or second is None:
                return None
            return first + second if conjunction == "and" else second + first
    return _phrase(words)


def _phrase(words: tuple[str, ...]) -> tuple[str, ...] | None:
    if words and words[-1] in REPETITIONS:
        once = _verb(words[:-1])
        return None if once is None else once * REPETITIONS[words[-1]]
    return _verb(words)


def _verb(words: tuple[str, ...]) -> tuple[str, ...] | None:
    match words:
        case (verb,) if verb in ACTIONS:
            return (ACTIONS[verb],)
        case (verb, *manner, direction) if direction in DIRECTIONS:
            if verb not in ACTIONS and verb != "turn":
                return None
            turn = (DIRECTIONS[direction],)
            act = (ACTIONS[verb],) if verb in ACTIONS else ()
            match manner:
                case []:
                    return turn + act
                case ["opposite"]:
                    return turn + turn + act
                case ["around"]:
                    return (turn + act) * 4
    return None


def commands() -> list[str]:
    """Return all 20,910 commands, in the order of the grammar's rules."""
    verbs = [
        *ACTIONS,
        *(
            " ".join((verb, *manner, direction))
            for verb in (*ACTIONS, "turn")
            for manner in ((), ("opposite",), ("around",))
            for direction in DIRECTIONS
        ),
    ]
    phrases = [
        " ".join((verb, *times)) for verb in verbs for times in ((), ("twice",), ("thrice",))
    ]
    return [
        *phrases,
        *(
            f"{first} {conjunction} {second}"
            for conjunction in ("and", "after")
            for first in phrases
            for second in phrases
        ),
    ]


@functools.cache
def _example(command: str) -> Example:
    actions = interpret(command)
    return Example(tuple(command.split()), actions, difficulty=float(len(actions)))


def format_line(example: Example) -> str:
    """Return a row as a line of the official files, without its line end."""
    return f"IN: {' '.join(example.source)} OUT: {' '.join(example.target)}"


# --- the experiments --------------------------------------------------------------------

Rule = Callable[[str], Literal["train", "test"] | None]
"""Gives the set that a command is in; None: in neither."""


def _has(command: str, verbs: Iterable[str], template: str) -> bool:
    return any(f" {verb} {template} " in f" {command} " for verb in verbs)


def _template(template: str) -> Rule:
    def rule(command: str) -> Literal["train", "test"] | None:
        if _has(command, ("turn",), template):
            return None
        return "test" if _has(command, ACTIONS, template) else "train"

    return rule


def _filler(num_fillers: int) -> Rule:
    withheld = [verb for verb in (*ACTIONS, "turn") if verb not in FILLERS[:num_fillers]]

    def rule(command: str) -> Literal["train", "test"] | None:
        if not _has(command, withheld, "around right"):
            return "train"
        if _has(command, ("jump",), "around right") and not _has(
            command, ("turn",), "around right"
        ):
            return "test"
        return None

    return rule


RULES: dict[str, Rule] = {
    "template_around_right": _template("around right"),
    "template_opposite_right": _template("opposite right"),
    "template_right": _template("right"),
    "template_jump_around_right": _filler(3),
    "filler_num0": _filler(0),
    "filler_num1": _filler(1),
    "filler_num2": _filler(2),
    "filler_num3": _filler(3),
}
TAUGHT_PRIMITIVES = {"add_prim_jump": "jump", "add_prim_turn_left": "turn left"}


def _by_rule(rule: Rule) -> tuple[list[Example], list[Example]]:
    sets: dict[str | None, list[Example]] = {"train": [], "test": [], None: []}
    for command in commands():
        sets[rule(command)].append(_example(command))
    return sets["train"], sets["test"]


def _by_length(cutoff: int) -> tuple[list[Example], list[Example]]:
    rows = [_example(command) for command in commands()]
    short = [row for row in rows if len(row.target) <= cutoff]
    return short, [row for row in rows if len(row.target) > cutoff]


def _by_primitive(primitive: str) -> tuple[list[Example], list[Example]]:
    """Return train and test; the primitive's row is repeated to a ninth of train's others."""
    others: list[Example] = []
    composed: list[Example] = []
    for command in commands():
        if command != primitive:
            known = f" {primitive} " not in f" {command} "
            (others if known else composed).append(_example(command))
    return others + [_example(primitive)] * round(len(others) / 9), composed


def read_rows(path: str) -> list[Example]:
    """Return the rows of an official file, given by its path in the repository.

    Raises:
        DataMissing, DataDamaged: as ``read_lines`` of ``tasks.base.data_files``.
    """
    file = DATA_FILES[path]
    rows = []
    for number, line in enumerate(read_lines(file), start=1):
        match = re.fullmatch(r"IN: (.+) OUT: (.+)", line)
        if match is None:
            raise DataDamaged(f"{file.path}:{number}: {line!r}: expected 'IN: … OUT: …'")
        actions = tuple(match[2].split())
        rows.append(Example(tuple(match[1].split()), actions, difficulty=float(len(actions))))
    return rows


def resplit_indices(lengths: Sequence[int], cutoff: int) -> tuple[list[int], list[int], list[int]]:
    """Return the re-split of Csordás et al. 2021 (arXiv 2108.12284): train, iid, test.

    A tenth of the commands with at most ``cutoff`` actions is set aside by numpy's legacy generator
    with seed 1234; its size is int(n * (1 - 0.9)) in floating point, which at n = 16990 is 1698.

    Args:
        lengths: number of actions of each line of tasks.txt; indices are into this list.
        cutoff: most actions of a training row.
    """
    short = [index for index, length in enumerate(lengths) if length <= cutoff]
    # The legacy generator: its stream is fixed for good, and the published split is drawn from it.
    generator = numpy.random.RandomState(1234)
    drawn = generator.choice(len(short), int(len(short) * (1 - 0.9)), replace=False)
    held_out = {short[position] for position in drawn.tolist()}
    return (
        [index for index in short if index not in held_out],
        sorted(held_out),
        [index for index, length in enumerate(lengths) if length > cutoff],
    )


def _read_mcd_indices(name: str) -> tuple[list[int], list[int]]:
    data = read_bytes(MCD_ARCHIVE)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive.getmembers():
            stream = archive.extractfile(member)
            if stream is not None and member.name.split("/")[-1] == f"{name}.json":
                content = json.load(stream)
                return content["trainIdxs"], content["testIdxs"]
    raise DataDamaged(f"{MCD_ARCHIVE.path}: no {name}.json inside")


# --- the task ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scan(ExampleTask):
    """Navigation commands to action sequences: the official SCAN experiments."""

    name: ClassVar[str] = "scan"
    about: ClassVar[About] = About(
        family="semantic parsing",
        hard="commands that are longer, or composed otherwise, than any of train",
        source="arXiv 1711.00350; brendenlake/SCAN c4b756cb",
        published=("cut-off 26: 1.00 with relative positions, .00 without (arXiv 2108.12284)",),
        fetch="python -m tasks.fetch scan (some variants)",
    )
    difficulty_name: ClassVar[str] = "actions"

    variant: Variant = "length"
    """Which experiment; the module's docstring says what each holds out."""
    cutoff: int = 22
    """Length only: most actions of a training row, 1 to 40; 22 is the official experiment."""
    resplit: bool = False
    """Length only: set a tenth of train aside as split iid, as Csordás et al. 2021 do; needs the
    official tasks.txt, whose order decides the draw."""
    held_out: int | float = 0
    """Distinct training commands moved into split iid, chosen by hash: how many, or below 1 their
    share; 0 keeps the official training set whole. The taught primitive of add_prim and the shots
    of few_shot always stay."""
    num: Literal[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] = 1
    """Few_shot only: commands with ``jump around right`` in train."""
    rep: Literal[1, 2, 3, 4, 5] = 1
    """Few_shot only: which of the five official draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "cutoff", 1 <= self.cutoff <= 40, "between 1 and 40 (the longest has 48)")
        require(self, "held_out", self.held_out >= 0, "a number of rows, or a share below 1")
        for name, default, variant in (
            ("cutoff", 22, "length"),
            ("resplit", False, "length"),
            ("num", 1, "few_shot"),
            ("rep", 1, "few_shot"),
        ):
            if getattr(self, name) != default:
                require(self, name, self.variant == variant, f"left out unless variant={variant}")
        if self.held_out:
            require(self, "held_out", self.variant != "simple", "0: the test of simple is iid")
            require(self, "held_out", not self.resplit, "0 with resplit=true, which has split iid")

    @property
    def in_distribution_split(self) -> str | None:  # type: ignore[override]
        """The random test of ``simple``, split iid where there is one, or None."""
        if self.variant == "simple":
            return "test"
        return "iid" if self.resplit or self.held_out else None

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, iid (where there is one) and test.

        Raises:
            DataMissing, DataDamaged: of the experiments that read official files.
            OptionError: ``held_out`` leaves no training command.
        """
        if self.resplit:
            rows = read_rows(TASKS_FILE)
            parts = resplit_indices([len(row.target) for row in rows], self.cutoff)
            return {
                name: [rows[index] for index in part]
                for name, part in zip(("train", "iid", "test"), parts, strict=True)
            }
        train, test = self._official_sets()
        if not self.held_out:
            return {"train": train, "test": test}
        train, iid = self._hold_out(train)
        return {"train": train, "iid": iid, "test": test}

    def _official_sets(self) -> tuple[list[Example], list[Example]]:
        if self.variant == "simple":
            train, test = (read_rows(path) for path in SIMPLE_FILES)
            return train, test
        if self.variant == "length":
            return _by_length(self.cutoff)
        if self.variant in TAUGHT_PRIMITIVES:
            return _by_primitive(TAUGHT_PRIMITIVES[self.variant])
        if self.variant == "few_shot":
            train = read_rows(FEW_SHOT_FILE.format(num=self.num, rep=self.rep))
            return train, _by_rule(RULES["template_jump_around_right"])[1]
        if self.variant.startswith("mcd"):
            rows = read_rows(TASKS_FILE)
            train, test = (
                [rows[index] for index in part] for part in _read_mcd_indices(self.variant)
            )
            return train, test
        return _by_rule(RULES[self.variant])

    def _hold_out(self, train: list[Example]) -> tuple[list[Example], list[Example]]:
        staying = TAUGHT_PRIMITIVES.get(self.variant)
        candidates = {
            command
            for command in (" ".join(row.source) for row in train)
            if command != staying
            and not (self.variant == "few_shot" and _has(command, ("jump",), "around right"))
        }
        count = self.held_out
        if count < 1:
            count = round(count * len(candidates))
        require(
            self,
            "held_out",
            count == int(count) and 1 <= count < len(candidates),
            f"a whole number below {len(candidates)}, the distinct training commands, or a share",
        )
        ordered = sorted(candidates, key=lambda text: hashlib.sha256(text.encode()).digest())
        moved = set(ordered[: int(count)])
        return (
            [row for row in train if " ".join(row.source) not in moved],
            [row for row in train if " ".join(row.source) in moved],
        )
