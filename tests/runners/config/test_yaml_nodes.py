"""YAML is read without guessing, and every complaint is one line with its place."""

import math

import pytest
import yaml

from runners.config import yaml_nodes
from runners.config.yaml_nodes import (
    ConfigError,
    dump,
    nest,
    override,
    parse,
    parse_override,
    parse_scalar,
    read,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("7", 7),
        ("-7", -7),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("012", "012"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("9" * 308, int("9" * 308)),
        ("-" + "9" * 308, "-" + "9" * 308),
        ("9" * 5000, "9" * 5000),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("+*", "+*"),
    ],
)
def test_plain_scalars(text, value):
    for found in (parse_scalar(text), parse(f"key: {text}", "f").plain()["key"]):
        assert found == value
        assert type(found) is type(value)


def test_infinite_and_not_a_number():
    assert parse_scalar("-.inf") == -math.inf
    assert math.isnan(parse_scalar(".nan"))


def test_quoted_scalars_stay_text():
    assert parse("a: '3e-4'\nb: \"true\"\nc: !!str 12\nd: |\n  7\n", "f").plain() == {
        "a": "3e-4",
        "b": "true",
        "c": "12",
        "d": "7\n",
    }


def test_every_value_knows_its_line():
    node = parse("a:\n  b: 1\n\n  # comment\n  c:\n    - x\n    - y: 2\n", "f.yaml")
    inner = node.value["a"].value
    assert inner["b"].place == "f.yaml:2"
    assert inner["c"].place == "f.yaml:5"
    assert inner["c"].value[1].value["y"].place == "f.yaml:7"


def test_keys_are_words_whatever_they_look_like():
    assert parse("on: 1\n3: 2\n012: 3\n", "f").plain() == {"on": 1, "3": 2, "012": 3}


def test_anchors_are_copies():
    assert parse("a: &x {k: 1}\nb: *x\n", "f").plain() == {"a": {"k": 1}, "b": {"k": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3: a: key given twice; first at f:1"),
        ("x:\n  a: 1\n  a: 1\n", "f:3: x.a: key given twice; first at f:2"),
        ("a: 1\n\tb: 2\n", "f:2: not YAML: a tab; YAML is indented with spaces"),
        ("a: [1, 2\n", "f:2: not YAML: "),
        ("a: 1\n b: 2\n", "f:2: not YAML: "),
        ("a: *nowhere\n", "f:1: not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "f:2: not YAML: "),
        ("a: !!python/object:os.system {}\n", "f:1: a: tag "),
        ("a: !!float 3\n", "f:1: a: tag "),
        ("? [a, b]\n: 1\n", "f:1: a key must be a word"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "f:3: c.<<: merge keys are not supported; write"),
        ("a: &x [*x]\n", "f:1: a[0]: an alias to a value that contains it"),
        ("a: b\x07c\n", "f:1: control character"),
    ],
)
def test_bad_documents(text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_billion_laughs_end_soon():
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="more than"):
        parse("\n".join(lines), "f")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", ":1: empty file; expected a mapping"),
        (b"# only a comment\n", ":1: empty file"),
        (b"a: 1\n\x00\x01", ":2: zero byte: a binary file"),
        (b"\x89PNG\r\n\x1a\n\x00", "a binary file"),
        (b"a: 1\nb: caf\xe9\n", ":2: byte 0xe9 is not UTF-8"),
        (b"- a\n- b\n", ":1: ['a', 'b']: expected a mapping"),
        (b"word\n", ":1: 'word': expected a mapping"),
    ],
)
def test_bad_files(tmp_path, raw, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_missing_file_names_its_nearest_neighbour(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"no such file; did you mean 'quickstart.yaml'\?"):
        read(tmp_path / "quikstart.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        read(tmp_path)


def test_text_beyond_ascii_is_kept(tmp_path):
    path = tmp_path / "ünïcode.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + "name: σ-MoE größer 深さ\r\nb: 2\r\n".encode())
    assert read(path).plain() == {"name": "σ-MoE größer 深さ", "b": 2}


def test_overrides_follow_the_rules_of_a_file():
    assert parse_override("train.lr=3e-4")[1].plain() == 3e-4
    assert parse_override("a=[1, 'x']")[1].plain() == [1, "x"]
    assert parse_override("a={b: on}")[1].plain() == {"b": "on"}
    assert parse_override("a=")[1].plain() is None
    assert parse_override("a=b=c") == ("a", parse_override("x=b=c")[1])
    assert parse_override("a=012")[1].plain() == "012"
    assert parse_override("a=1")[1].place == "command line"


@pytest.mark.parametrize("text", ["train.steps", "=3", "a..b=1", ".a=1", "a=[1"])
def test_bad_overrides(text):
    with pytest.raises(ConfigError, match=r"^command line: "):
        parse_override(text)


def test_what_is_written_reads_back_equal():
    data = {
        "float": 3e-4,
        "tiny": 1e-08,
        "text": ["3e-4", "012", "yes", "null", "", "1_000", "on", "true", "a: b", "# x", "-"],
        "none": None,
        "flag": True,
        "nested": {"empty": {}, "list": [], "greek": "σ", "long": "word " * 60},
        "inf": math.inf,
    }
    assert parse(dump(data), "f").plain() == data
    assert dump({"a": (1, 2)}) == dump({"a": [1, 2]})


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
@pytest.mark.parametrize(
    "text",
    [
        *"😀\x85\u2028\ufeff\x07\t",
        "",
        "3e-4",
        "a: b",
        " # ",
        "é " * 80,
        "line\n" * 40,
        "\\U",
        "'' :",
    ],
)
def test_libyaml_writes_the_same_bytes(text, monkeypatch):
    data = {"key": text, text: [text, {"in": {text: None}}]}
    fast = dump(data)
    monkeypatch.setattr(yaml_nodes, "_FastDumper", yaml_nodes._Dumper)
    assert fast == dump(data)


# --- dotted keys, merging ---------------------------------------------------------------


def over(base: str, *changes: str):
    node = nest(parse(base, "base"))
    for change in changes:
        node = override(node, *parse_override(change))
    return node.plain()


def test_mappings_merge_key_by_key():
    base = "a: {b: 1, c: {d: 2}}\ne: [1, 2]\n"
    assert over(base, "a.c.f=3", "e=[3]") == {"a": {"b": 1, "c": {"d": 2, "f": 3}}, "e": [3]}
    assert over(base, "a={b: null}") == {"a": {"b": None, "c": {"d": 2}}, "e": [1, 2]}
    assert nest(parse("a.b: 1\na.c: 2\n", "f")).plain() == {"a": {"b": 1, "c": 2}}
    with pytest.raises(ConfigError, match=r"^f:2: a\.b: key given twice; first at f:1$"):
        nest(parse("a.b: 1\na: {b: 2}\n", "f"))


@pytest.mark.parametrize(
    ("block", "change", "expected"),
    [
        ("{kind: x, k: 1}", "model.block.l=2", {"kind": "x", "k": 1, "l": 2}),
        ("{kind: x, k: 1}", "model.block={kind: x, l: 2}", {"kind": "x", "k": 1, "l": 2}),
        # Another kind has other options.
        ("{kind: x, k: 1}", "model.block={kind: y, l: 2}", {"kind": "y", "l": 2}),
        ("{kind: x, k: 1}", "model.block.kind=y", {"kind": "y"}),
        ("{kind: x, k: 1}", "model.block=y", "y"),
        # A kind that nobody has named yet may be the very one.
        ("{k: 1}", "model.block.kind=y", {"kind": "y", "k": 1}),
        ("x", "model.block.k=1", {"kind": "x", "k": 1}),
        ("x", "model.block={kind: y, k: 1}", {"kind": "y", "k": 1}),
    ],
)
def test_a_block_of_a_model_keeps_the_options_of_its_own_kind(block, change, expected):
    assert over(f"model: {{block: {block}}}\n", change) == {"model": {"block": expected}}


def test_kinds_are_of_models_alone():
    base = "task: {block: {kind: x, k: 1}, word: x}\n"
    merged = over(base, "task.block.kind=y", "task.word={k: 1}")
    assert merged == {"task": {"block": {"kind": "y", "k": 1}, "word": {"k": 1}}}


def test_the_nearest_node_above_is_found():
    root = parse("a:\n  b:\n    c: 1\n", "f")
    assert [root.find(path).place for path in ("a.b.c", "a.b.x", "a.b.c.x", "y")] == [
        "f:3",
        "f:2",
        "f:3",
        root.place,
    ]
