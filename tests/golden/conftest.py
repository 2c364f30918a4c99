"""Golden files: found, read, and handed to every test that asks for one.

A test module says in ``FOLDERS`` which folders of ``$MOEUT_GOLDEN`` are its own; each of its tests
with an argument ``golden`` then runs once for every ``.safetensors`` file below them. What a file
holds is read from its metadata. Options that no file has are numbers too: ``RESTATED`` names the
module of ``restated`` that computes them from the published equations.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from moeut.interop import mapping

sys.path.insert(0, str(Path(__file__).parent))  # for restated


@dataclass
class Golden:
    """One file of golden numbers: its tensors, and its metadata as data."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    _parts: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """What the metadata says of the model."""
        return self.metadata["config"]

    @property
    def options(self) -> dict[str, Any]:
        """The other code's options."""
        return self.config.get("args", self.config)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors called ``prefix.*``, without the prefix."""
        if prefix not in self._parts:
            start = prefix + "."
            self._parts[prefix] = {
                name.removeprefix(start): tensor
                for name, tensor in self.tensors.items()
                if name.startswith(start)
            }
        return self._parts[prefix]


@pytest.fixture(scope="session", name="read_golden")
def read_golden_fixture() -> Callable[[Path], Golden]:
    """Return what reads a golden file."""
    return read_golden


def read_golden(path: Path) -> Golden:
    """Read a golden file; weights that it leaves out are those of its namesake one folder up."""
    tensors = _read(path)
    beside = path.parent.parent / path.name
    if not any(name.startswith("param.") for name in tensors) and beside.is_file():
        namesake = _read(beside)
        tensors |= {name: t for name, t in namesake.items() if name.startswith("param.")}
    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
    return Golden(path, tensors, metadata)


@functools.cache
def restate(module: str, name: str) -> Golden:
    """Return the numbers of one of a module's variants, as a file would hold them."""
    restated = importlib.import_module(f"restated.{module}")
    config = restated.VARIANTS[name]
    given = restated.inputs(config)
    tensors = given | restated.numbers(config, given)
    return Golden(
        Path(f"{name}.safetensors"), tensors, {"config": restated.metadata(config, tensors)}
    )


def _read(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _paths(folders: tuple[str, ...]) -> list[Path]:
    root = Path(os.environ.get("MOEUT_GOLDEN") or "/nonexistent")
    return [path for folder in folders for path in sorted((root / folder).rglob("*.safetensors"))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" not in metafunc.fixturenames:
        return
    folders = metafunc.module.FOLDERS
    paths = _paths(folders)
    names = ["/".join(path.parts[-3 if path.parent.name == "pure64" else -2 :]) for path in paths]
    # Without files, one test remains, which says what is missing.
    params: list[Any] = [*(paths or [None])]
    names = names or ["no-files"]
    module = getattr(metafunc.module, "RESTATED", None)
    if module is not None:
        for name in importlib.import_module(f"restated.{module}").VARIANTS:
            params.append((module, name))
            names.append(f"restated/{name}")
    metafunc.parametrize("golden", params, ids=names, indirect=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """One golden file of the module's folders, or a variant restated."""
    if isinstance(request.param, tuple):
        return restate(*request.param)
    golden_dir = request.getfixturevalue("golden_dir")
    if request.param is None:
        folders = ", ".join(request.module.FOLDERS)
        message = f"no .safetensors files in {folders} of MOEUT_GOLDEN={golden_dir}"
        if os.environ.get("MOEUT_REQUIRE_INPUTS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return read_golden(request.param)


@pytest.fixture(scope="session")
def assert_imported_once() -> Callable[..., None]:
    """Return a check that every element of another code's tensors arrives, once, in its place."""

    def check(
        model: torch.nn.Module, maps: list[mapping.TensorMap], theirs: dict[str, torch.Tensor]
    ) -> None:
        sizes = {name: tensor.numel() for name, tensor in theirs.items()}
        numbers = torch.arange(sum(sizes.values())).split(list(sizes.values()))
        numbered = {
            name: one.view(theirs[name].shape) for name, one in zip(theirs, numbers, strict=True)
        }
        ours = mapping.to_ours(maps, numbered)
        assert {n: t.shape for n, t in ours.items()} == {
            n: t.shape for n, t in model.state_dict().items()
        }
        arrived = torch.cat([tensor.flatten() for tensor in ours.values()])
        assert torch.equal(arrived.sort().values, torch.arange(len(arrived)))
        for name, tensor in mapping.to_ours(maps, theirs).items():
            assert torch.equal(model.state_dict()[name], tensor), name

    return check
