"""PCFG SET: string functions in new combinations, from the official files (arXiv 1908.08351).

    iid                       train and test are drawn alike
    systematicity             train has none of four pairs of adjacent functions, every row of test
                              has one: "swap repeat", "append remove_second", and so on
    productivity              train has up to 8 functions, test 9 to 35
    substitutivity_primitive, substitutivity_equal
                              four functions have a second name, in train alone or as often as the
                              first; each row of test stands beside its twin
    localism                  the test of iid, and each of its functions by itself, its arguments
                              given
    overgeneralisation        train has ``ratio`` rows in which two adjacent functions mean others;
                              test asks for exactly these rows

>>> from tasks.pcfg.rules import apply
>>> " ".join(apply("repeat remove_second A B , C".split()))
'A B A B'

Each test has a training set of its own: that of iid holds most rows of the tests of systematicity
and productivity.

The published authors score substitutivity by consistency, the share of pairs with equal answers,
right or wrong; overgeneralisation by the share of the rule's answers, and of the exception's, as
training goes on; localism by whether the answer equals that of the functions applied one by one to
the model's own answers, for which it is asked again at the end of a run, depth by depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.base.about import About
from tasks.base.data_files import DataDamaged, DataFile, files_of_git, locate, read_lines
from tasks.base.metrics import Answers, is_exact
from tasks.base.options import require
from tasks.base.task import Example, ExampleTask
from tasks.pcfg.localism import Group, read_groups, replay
from tasks.pcfg.rules import apply, functions

COMMIT = "4f75bdd78889150dd78e90bbb7ddec840204c159"
REPOSITORY = (
    f"https://raw.githubusercontent.com/i-machine-think/am-i-compositional/{COMMIT}/data/pcfgset"
)
Table = dict[str, dict[str, float]]
Tokens = tuple[str, ...]
Ask = Callable[[Sequence[Tokens]], Sequence[Tokens]]
"""Gives a model's answers to sources."""
DATA_FILES: dict[str, DataFile] = files_of_git(
    "pcfg_set_files.txt",
    "pcfg_set",
    REPOSITORY,
    lambda name: name.startswith(("pcfgset/t", "pcfgset/d", "system", "product")),
)
"""Official files by their path in the repository's folder of data."""
FOLDERS = {
    "iid": "pcfgset",
    "systematicity": "systematicity",
    "productivity": "productivity",
    "substitutivity_primitive": "substitutivity/primitive",
    "substitutivity_equal": "substitutivity/equally_distributed",
    "localism": "pcfgset",
}


def read_rows(
    name: str,
    *,
    kind: str = "",
    meaning: Callable[[tuple[str, ...]], tuple[str, ...]] | None = None,
) -> list[Example]:
    """Return the rows of a pair of official files, difficulty the number of functions.

    Args:
        name: path without ``.src`` and ``.tgt``.
        kind: category of every row; empty: the outermost function.
        meaning: gives a second target from a source, kept as ``other`` in the metadata.

    Raises:
        DataMissing, DataDamaged: one is not there, or not the published one.
    """
    sources = read_lines(DATA_FILES[f"{name}.src"])
    outputs = read_lines(DATA_FILES[f"{name}.tgt"])
    if len(sources) != len(outputs):
        raise DataDamaged(
            f"{locate(DATA_FILES[f'{name}.src'])}: {len(sources)} lines, its targets {len(outputs)}"
        )
    rows = []
    for number, (source, target) in enumerate(zip(sources, outputs, strict=True)):
        tokens = tuple(source.split())
        metadata = {"number": number} | ({"other": meaning(tokens)} if meaning else {})
        rows.append(
            Example(
                source=tokens,
                target=tuple(target.split()),
                category=kind or tokens[0],
                difficulty=functions(tokens),
                metadata=metadata,
            )
        )
    return rows


def group_rows(groups: Iterable[Group]) -> list[Example]:
    """Return the steps of unrolled rows with their arguments given, and the rows whole."""
    rows = []
    for number, group in enumerate(groups):
        values: list[tuple[str, ...]] = []
        for step in group.steps:
            source = step.filled(values)
            values.append(apply(source))
            rows.append(Example(source, values[-1], "step", functions(source), {"number": number}))
        about = {"number": number, "group": group}
        rows.append(Example(group.whole, group.target, "whole", functions(group.whole), about))
    return rows


@dataclass(frozen=True, kw_only=True)
class PcfgSet(ExampleTask):
    """PCFG SET: functions of strings in new combinations, from the official files."""

    name: ClassVar[str] = "pcfg_set"
    about: ClassVar[About] = About(
        family="functions of strings",
        hard="functions in new pairs, more of them, under second names, or with exceptions",
        source="arXiv 1908.08351; i-machine-think/am-i-compositional 4f75bdd7",
        published=(
            "Transformer .917 ± .011 iid, .719 ± .005 systematicity, .500 ± .025 productivity; "
            "ConvS2S .847, .560, .308; LSTM .793, .526, .301 (scored from the repository's "
            "predictions, 3 runs)",
            "productivity .85 with relative positions (arXiv 2108.12284, abstract)",
        ),
        fetch="python -m tasks.fetch pcfg_set (pcfg_set/localism and so on for the others)",
    )
    difficulty_name: ClassVar[str] = "functions"
    selection_splits: ClassVar[tuple[str, ...]] = ("dev",)

    test: Literal[
        "iid",
        "systematicity",
        "productivity",
        "substitutivity_primitive",
        "substitutivity_equal",
        "localism",
        "overgeneralisation",
    ] = "systematicity"
    """Which test, with its own training set; the module's docstring describes each."""
    ratio: Literal["0.0001", "0.0005", "0.001", "0.005"] = "0.001"
    """Overgeneralisation only: exceptions in train, as a share of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio != "0.001":
            fits = self.test == "overgeneralisation"
            require(self, "ratio", fits, "left out unless test=overgeneralisation")

    @property
    def in_distribution_split(self) -> str | None:  # type: ignore[override]
        """The test of iid; the other tests have none but ``dev``, which is drawn as iid's train."""
        return "test" if self.test == "iid" else None

    def build_splits(self) -> dict[str, list[Example]]:
        """Return train, dev and test.

        Raises:
            DataMissing, DataDamaged: a file is not there, or not the published one.
        """
        if self.test == "overgeneralisation":
            train = read_rows(f"overgeneralisation/train_pcfg_ratio={self.ratio}")
        else:
            train = read_rows(f"{FOLDERS[self.test]}/train")
        return {"train": train, "dev": read_rows("pcfgset/dev"), "test": self.read_test()}

    def read_test(self) -> list[Example]:
        """Return the rows of the test alone.

        Raises:
            DataMissing, DataDamaged: a file is not there, or not the published one.
        """
        if self.test == "overgeneralisation":
            return read_rows(
                f"overgeneralisation/test_pcfg_ratio={self.ratio}_exception", meaning=apply
            )
        folder = FOLDERS[self.test]
        if self.test == "localism":
            file = DATA_FILES["localism/unrolled_test.tsv"]
            return group_rows(read_groups(read_lines(file), str(locate(file))))
        if self.test.startswith("substitutivity"):
            first = read_rows(f"{folder}/test", kind="first name")
            twins = read_rows(f"{folder}/test_twin", kind="second name")
            return [row for pair in zip(first, twins, strict=True) for row in pair]
        return read_rows(f"{folder}/test")

    def answer_tables(self, answers: Answers) -> dict[str, Table]:
        """Return consistency, steps, or rule and exception, as the test asks.

        Pairs and groups of which not every row was scored are left out.
        """
        if "other" in answers.examples[0].metadata:
            return {"rule and exception": rule_and_exception(answers)}
        categories = {row.category for row in answers.examples}
        if categories == {"first name", "second name"}:
            return {"consistency": consistency(answers)}
        if self.test == "localism" and categories == {"step", "whole"}:
            return {"localism": steps_and_whole(answers)}
        return {}

    def asked_tables(self, answers: Answers, ask: Ask) -> dict[str, Table]:
        """Return the published score of localism, of every row that was scored whole."""
        return {"localism, one by one": one_by_one(answers, ask)} if self.test == "localism" else {}


def rule_and_exception(answers: Answers) -> Table:
    """Return the share of answers that follow the rules, and of those that follow the exception."""
    followed = {"rule": 0, "exception": 0}
    for row, prediction in zip(answers.examples, answers.predictions, strict=True):
        if prediction.finished:
            followed["rule"] += prediction.tokens == row.metadata["other"]
            followed["exception"] += prediction.tokens == row.target
    count = len(answers.examples)
    return {name: {"share": right / count, "rows": count} for name, right in followed.items()}


def consistency(answers: Answers) -> Table:
    """Return how many pairs have equal answers, of all, and of those with a right first answer."""
    pairs: dict[int, list[tuple[tuple[str, ...], bool]]] = {}
    for row, prediction in zip(answers.examples, answers.predictions, strict=True):
        entry = (prediction.tokens, is_exact(row, prediction))
        pairs.setdefault(row.metadata["number"], []).append(entry)
    whole = [pair for pair in pairs.values() if len(pair) == 2]
    right = [pair for pair in whole if pair[0][1]]
    wrong = [pair for pair in whole if not pair[0][1]]
    return {
        name: {"share": sum(a[0] == b[0] for a, b in chosen) / len(chosen), "rows": len(chosen)}
        for name, chosen in (("all pairs", whole), ("first right", right), ("first wrong", wrong))
        if chosen
    }


def steps_and_whole(answers: Answers) -> Table:
    """Return how many groups have all steps right, the whole right, and both.

    A group with both is consistent for certain: its steps, fed with the model's answers, end in the
    target.
    """
    groups: dict[int, dict[str, list[bool]]] = {}
    for row, prediction in zip(answers.examples, answers.predictions, strict=True):
        entry = groups.setdefault(row.metadata["number"], {"step": [], "whole": []})
        entry[row.category].append(is_exact(row, prediction))
    whole = [group for group in groups.values() if group["whole"]]
    counts = {
        "all steps right": [all(group["step"]) for group in whole],
        "whole right": [group["whole"][0] for group in whole],
        "both": [all(group["step"]) and group["whole"][0] for group in whole],
    }
    return {name: {"share": sum(r) / len(r), "rows": len(r)} for name, r in counts.items() if r}


def one_by_one(answers: Answers, ask: Ask) -> Table:
    """Return how many whole sources are answered as their functions one by one are.

    The shares are of all of them, of those with a right answer, and of the others; and how often
    the functions one by one end in the target.
    """
    known = {
        row.source: prediction.tokens
        for row, prediction in zip(answers.examples, answers.predictions, strict=True)
    }

    def answer(sources: Sequence[Tokens]) -> list[Tokens]:
        new = [source for source in dict.fromkeys(sources) if source not in known]
        if new:
            known.update(zip(new, ask(new), strict=True))
        return [known[source] for source in sources]

    whole = [row for row in answers.examples if row.category == "whole"]
    ends = replay([row.metadata["group"] for row in whole], answer)
    equal = [
        (known[row.source] == end, known[row.source] == row.target, end == row.target)
        for row, end in zip(whole, ends, strict=True)
    ]
    counts = {
        "same answer": [same for same, _, _ in equal],
        "same answer, it is right": [same for same, right, _ in equal if right],
        "same answer, it is wrong": [same for same, right, _ in equal if not right],
        "right one by one": [right for _, _, right in equal],
    }
    return {name: {"share": sum(c) / len(c), "rows": len(c)} for name, c in counts.items() if c}
