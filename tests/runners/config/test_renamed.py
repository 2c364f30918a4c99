"""A config in the flat form is refused, and told what to write."""

from pathlib import Path

import pytest

from moeut.blocks.attention import ATTENTION
from moeut.blocks.feed_forward import FEED_FORWARD
from moeut.blocks.positions import POSITION
from moeut.design import Blueprint
from moeut.options import type_hints
from moeut.recurrence.schedule import Depth
from runners.config.match import MatchConfig
from runners.config.renamed import RENAMED
from runners.config.run_file import hints, read_run
from runners.config.schema import ConfigError

DOCUMENT = Path(__file__).parents[3] / "docs/configuration.md"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("num_heads: 4", ":4: model.num_heads=4: renamed; write attention.num_heads"),
        ("top_k: 2", ":4: model.top_k=2: renamed; write feed_forward.top_k"),
        ("num_layers: 2", ":4: model.num_layers=2: renamed; write depth.group; of universal and"),
        ("schedule: cycle", ":4: model.schedule='cycle': renamed; write depth.order"),
    ],
)
def test_the_error_names_the_new_key(toy, write, line, expected):
    path = write(f"task: {{name: toy}}\nmodel:\n  architecture: moeut\n  {line}\n")
    with pytest.raises(ConfigError) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}{expected}")


def test_every_new_key_is_there_and_no_old_one():
    kinds = {"attention": ATTENTION, "feed_forward": FEED_FORWARD, "position": POSITION}
    known = {f"{block}.{key}" for block in ("depth", "encoder_depth") for key in type_hints(Depth)}
    for block, classes in kinds.items():
        known |= {f"{block}.{key}" for cls in classes.values() for key in type_hints(cls)}
    known |= {f"match.{key}" for key in hints(MatchConfig)}
    for old, new in RENAMED.items():
        assert new.replace(";", "").replace(",", "").split()[0] in known, old
        assert old not in type_hints(Blueprint)


def test_the_documentation_has_the_same_table():
    rows = {}
    section = DOCUMENT.read_text(encoding="utf-8").partition("\n## Keys that were renamed\n")[2]
    for line in section.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 2:
            rows[cells[0]] = cells[1].replace("`", "")
    assert rows == RENAMED
