"""SLOG: COGS with more structures, and more that only the test combines (arXiv 2310.15040).

Train has COGS' sentences, and relative clauses, questions, and phrases and clauses nested up to 2
or 4 deep; ``gen`` has 1,000 sentences of each of 17 kinds: other depths, phrases and clauses in
other places, other words asked for. The logical form is COGS' own (``form: cogs``) or one without
variables. The first is scored by ``reformatted_match``, as published:

>>> from tasks.base.reformatted_match import normal_form
>>> normal_form("cat ( x _ 4 ) AND miss . agent ( x _ 2 , x _ 4 )")
'cat ( 1 ) AND miss . agent ( 2 , 1 )'

Seven verbs stand twice among the single words of train, with two meanings, so that seven rows of
train contradict others. 2,237 of the 17,000 forms of gen have a number that no form of train has:
the ceiling is 86.8 %.

The authors publish gen encrypted, so that language models do not train on it. It is read in memory,
and nothing of it is written to disk.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tasks.base.about import About
from tasks.base.data_files import DataDamaged, DataFile, locate, read_bytes
from tasks.base.metrics import Answers, is_reformatted
from tasks.base.scoring import table_by
from tasks.base.storage import sha256_of
from tasks.base.task import Example, ExampleTask
from tasks.cogs.official import read_columns

COMMIT = "1c55df85006d58b842520c79dcb8e1b43df2836f"
REPOSITORY = f"https://raw.githubusercontent.com/bingzhilee/SLOG/{COMMIT}/data"
FOLDERS = {"cogs": "cogs_LF", "variable_free": "varfree_LF"}
PASSWORD = b"SLOG"
"""Of the archive, as the authors' description gives it."""


def _file(name: str, sha256: str, rows: int | None) -> DataFile:
    return DataFile(path=f"slog/{name}", url=f"{REPOSITORY}/{name}", sha256=sha256, rows=rows)


DATA_FILES: dict[str, DataFile] = {
    name: _file(name, sha256, rows)
    for name, sha256, rows in (
        (
            "cogs_LF/train.tsv",
            "4cd17fc70cad89bd93304bb46bf5feae10c429680783b35c0bf57bd4d4d50c04",
            32_755,
        ),
        (
            "cogs_LF/dev.tsv",
            "177128c3f64be56732a102db119139bbec33a771c485a525ea0f9f4e45926a5c",
            4_046,
        ),
        (
            "cogs_LF/test.tsv",
            "b880e0b534f0b050ec43a8d7ede3e3113311561451806f6b72063f4561d3872f",
            4_046,
        ),
        (
            "varfree_LF/train.tsv",
            "0afc442d1cfca446a3c356c58e979df631d19f863b62edd2c4d6cc70a34e0778",
            32_755,
        ),
        (
            "varfree_LF/dev.tsv",
            "8677b6b92f9649e74f9e99c2affc9a8a0c4810a612dd32fcd1b45448ca3647f9",
            4_046,
        ),
        (
            "varfree_LF/test.tsv",
            "2f2942a345507ef6af5885ccde48f08bf32a1dd2ba0e19da371d4bbd40b90644",
            4_046,
        ),
        (
            "generalization_sets.zip",
            "99a13618b033b9f5721107f4c163d035d92a2fee340b217a5a1f6abc63842647",
            None,
        ),
    )
}
"""Official files by their path in the repository's folder of data."""
MEMBERS = {
    "cogs": (
        "generalization_sets/gen_cogsLF.tsv",
        "a3d32108c01f6eeb0200f19e803a0bf5314dd5f7faca33c217c7fd51e38658f2",
    ),
    "variable_free": (
        "generalization_sets/gen_varfreeLF.tsv",
        "c63910778941cebf0de8034c6c11e4be49e6dc547caac336787e8e985eb8341d",
    ),
}
"""Form -> its file in the archive, and the SHA-256 of that."""


def example(sentence: str, form: str, category: str) -> Example:
    """Return a row as an example; its difficulty counts the phrases and clauses of its form."""
    target = tuple(form.split(" "))
    count = 0 if category == "primitive" else target.count("nmod") + target.count("ccomp")
    return Example(tuple(sentence.split(" ")), target, category, count)


def read_gen(form: str) -> list[Example]:
    """Return the rows of gen, decrypted in memory.

    Raises:
        DataMissing: the archive is not there.
        DataDamaged: it, or what it holds, is not the published one.
    """
    file = DATA_FILES["generalization_sets.zip"]
    member, sha256 = MEMBERS[form]
    with zipfile.ZipFile(io.BytesIO(read_bytes(file))) as archive:
        data = archive.read(member, pwd=PASSWORD)
    if sha256_of(data) != sha256:
        raise DataDamaged(f"{locate(file)}: {member}: damaged, expected SHA-256 {sha256}")
    rows = []
    for line in data.decode("utf-8").removesuffix("\n").split("\n"):
        sentence, written, category = line.split("\t")
        rows.append(example(sentence, written, category))
    return rows


@dataclass(frozen=True, kw_only=True)
class Slog(ExampleTask):
    """SLOG: new depths, places and questions, from the official files."""

    name: ClassVar[str] = "slog"
    about: ClassVar[About] = About(
        family="semantic parsing",
        hard="phrases and clauses in places, and at depths, that train has not",
        source="arXiv 2310.15040; bingzhilee/SLOG 1c55df85",
        published=(
            "gen, exact / reformatted match: Transformer .242 ± .010 / .271 ± .020, T5 .234 / "
            ".406, LLaMa .276 / .401, AM-Parser .708 ± .043 (Table 5)",
            "Transformer by kind: PP_3 .987, CP_3 .552, Q_subj_active .971; center_embed, "
            "PP_modif_subj and RC_modif_subj 0 (reformatted)",
        ),
        fetch="python -m tasks.fetch slog",
    )
    difficulty_name: ClassVar[str] = "phrases and clauses"
    in_distribution_split = "test"
    selection_splits: ClassVar[tuple[str, ...]] = ("dev",)

    form: Literal["cogs", "variable_free"] = "cogs"
    """Which logical form: COGS', or the one without variables."""

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """The published match and its stricter sister, of forms with variables."""
        names = ("reformatted_match", "strict_reformatted_match")
        return names if self.form == "cogs" else ()

    def build_splits(self) -> dict[str, list[Example]]:
        """Read train, dev and test, and gen out of its archive.

        Raises:
            DataMissing, DataDamaged: a file is not there, or not the published one.
        """
        folder = FOLDERS[self.form]
        splits = {
            split: [example(*row) for row in read_columns(DATA_FILES[f"{folder}/{split}.tsv"])]
            for split in ("train", "dev", "test")
        }
        return splits | {"gen": read_gen(self.form)}

    def answer_tables(self, answers: Answers) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the reformatted match of each category."""
        if not self.own_metrics:
            return {}
        pairs = zip(answers.examples, answers.predictions, strict=True)
        correct = [is_reformatted(*pair) for pair in pairs]
        table = table_by(answers.examples, correct, lambda row: row.category, "reformatted_match")
        return {"reformatted_match by category": table}
