"""Names of grid values and settings: short, and never shared."""

from runners.config.labels import compact, setting_labels, short_keys


def test_grid_values():
    assert [compact(v) for v in (True, None, 1e-4, "x", [1, 2], 3, 0.1234567)] == [
        "true",
        "null",
        "0.0001",
        "x",
        "[1, 2]",
        "3",
        "0.1234567",
    ]


def test_keys_are_as_short_as_tells_them_apart():
    assert short_keys(["train.steps", "model.dropout", "model.attention.dropout"]) == {
        "train.steps": "steps",
        "model.dropout": "model.dropout",
        "model.attention.dropout": "attention.dropout",
    }
    assert short_keys(["dropout", "model.dropout"]) == {
        "dropout": "dropout",
        "model.dropout": "model.dropout",
    }


def test_labels_are_distinct():
    settings = [
        ("a", {}, "1"),
        ("a", {"x": 0.5}, "2"),
        ("a", {"x": "0.5"}, "3"),
        ("b", {"x": 1 / 3}, "4"),
        ("b", {"x": 0.333333}, "5"),
    ]
    assert setting_labels(settings) == [
        "a",
        "a (x=0.5) 2",
        "a (x=0.5) 3",
        "b (x=0.3333333333333333)",
        "b (x=0.333333)",
    ]
