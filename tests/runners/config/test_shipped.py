"""Shipped configs are found by name from anywhere, in a checkout and in an installed wheel."""

from importlib.metadata import PackagePath
from pathlib import Path

import pytest

from runners.config import shipped
from runners.config.grid import read_sweep
from runners.config.run_file import read_run
from runners.config.schema import ConfigError
from runners.config.shipped import find_config, shipped_configs

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml"])
def test_a_shipped_sweep_is_found_by_name_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == ROOT / "configs" / "quickstart.yaml"
    assert read_sweep(name).config.name == "quickstart"
    (tmp_path / "quickstart").mkdir()  # such as the folder of an earlier sweep
    assert read_sweep(name).config.name == "quickstart"


def test_a_shipped_run_in_a_folder_is_found_with_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_run("language/44m").train.steps > 1000
    assert len(read_sweep("language/244m_norm").variants) == 3


def test_a_file_of_ones_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs" / "quickstart.yaml"
    own.parent.mkdir()
    own.write_text("name: mine\nbase: {}\n")
    assert find_config("configs/quickstart.yaml") == Path("configs/quickstart.yaml")
    assert find_config("quickstart") == ROOT / "configs" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quikstart", "quikstart: no such file, and no config of that name ships with the suite; "),
        ("cogs/smal", "did you mean 'cogs/small'"),
        ("quikstart.yaml", "quikstart.yaml: no such file"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("a\0b.yaml", "cannot be read: embedded null byte"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for read in (read_sweep, read_run):
        with pytest.raises(ConfigError) as caught:
            read(name)
        assert message in str(caught.value)
        assert len(str(caught.value)) < 400


def test_installed_configs_are_those_that_the_wheel_lists(tmp_path, monkeypatch):
    files = [
        PackagePath(f"../../../share/moeut-suite/configs/{name}.yaml")
        for name in ("quickstart", "cogs/small")
    ]
    for file in files:
        file.dist = type("Dist", (), {"locate_file": lambda self, path: tmp_path / path})()
    monkeypatch.setattr(shipped.metadata, "files", lambda name: files)
    found = shipped_configs(tmp_path)
    assert set(found) == {"quickstart", "cogs/small"}
    assert found["cogs/small"].as_posix().endswith("share/moeut-suite/configs/cogs/small.yaml")


def test_the_wheel_lists_every_folder_of_configs():
    import tomllib

    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = content["tool"]["setuptools"]["data-files"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in shipped_configs().values()}
    assert listed == {f"share/moeut-suite/{folder}": [f"{folder}/*.yaml"] for folder in folders}
