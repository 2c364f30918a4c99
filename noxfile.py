"""Development sessions: ``nox -s tests`` is the one that must pass; ``nox --list`` shows all.

Every session installs the project into an environment of its own. One thread per process: two
processes that fight over two cores with several threads each can be thirty times slower than one.
"""

import os
import re
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "lint", "types"]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
VERSIONS = {
    "oldest": ("3.11", ()),
    "gpu": ("3.12", ("torch==2.11.*", "triton==3.6.*", "numpy<2.4")),
    "newest": ("3.13", ("torch==2.13.*",)),
}
"""Python and packages at the ends of the range that pyproject.toml claims, and on GPU machines.

``oldest`` takes the first version of every package. NumPy 2.4 breaks the interpreter of Triton 3.6,
without which the kernels stay untested on a CPU.
"""
SOURCES = ("moeut", "tasks", "runners", "tests", "noxfile.py")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite on the CPU (extra arguments go to pytest)."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "2", "-m", "not gpu", *session.posargs, env=ONE_THREAD)


@nox.session
def extras(session: nox.Session) -> None:
    """Run the tests of what needs the optional packages: harness, Hugging Face, reasoning_gym."""
    session.install("-e", ".[test,lm,eval,hf,gym]")
    session.run("pytest", "-m", "extras", *session.posargs, env=ONE_THREAD)


@nox.session
def cluster(session: nox.Session) -> None:
    """Run sweeps on real clusters, started on this machine: Slurm (where installed) and Ray.

    Slurm is there after ``apt-get install -y slurm-wlm munge``. Most of a test is waiting for a
    cluster: two run side by side, each on a cluster of its own.
    """
    session.install("-e", ".[test,slurm,ray]")
    wanted = {**ONE_THREAD, "MOEUT_CLUSTER": "1"}
    words = ("-n", "2", "-rs", "--durations=0", "tests/cluster", "-m", "cluster")
    session.run("pytest", *words, *session.posargs, env=wanted)


@nox.session
def browser(session: nox.Session) -> None:
    """Open the report's page in Chromium: the system's, or one of npm's registry.

    Without either, the tests that need one are skipped, and the reason is printed.
    """
    session.install("-e", ".[test,browser]")
    finder = "tests/runners/reporting/html/chromium.py"
    found = session.run("python", finder, session.create_tmp(), silent=True, success_codes=[0, 1])
    assert isinstance(found, str)
    line = found.strip().rpartition("\n")[2]
    is_there = Path(line).is_file()
    session.log(f"Chromium: {line}")
    wanted = ONE_THREAD | ({"MOEUT_BROWSER": line} if is_there else {})
    session.run("pytest", "tests/runners/reporting/html", *session.posargs, env=wanted)


@nox.session
def trackers(session: nox.Session) -> None:
    """Hand rows to the real trackers, without network."""
    session.install("-e", ".[test,tensorboard,wandb,trackio]")
    files = (
        "tests/runners/training/test_trackers.py",
        "tests/runners/training/test_tensorboard.py",
    )
    session.run("pytest", *files, *session.posargs, env=ONE_THREAD)


@nox.session
def mutants(session: nox.Session) -> None:
    """Damage configs and users' files at random, 3,000 times each: read whole, or one line.

    Extra arguments go to pytest; MOEUT_MUTANTS is the number for each kind of file.
    """
    session.install("-e", ".[test]")
    number = os.environ.get("MOEUT_MUTANTS", "3000")
    wanted = {**ONE_THREAD, "MOEUT_MUTANTS": number}
    files = ("tests/tasks/test_mutants.py", "tests/runners/config/test_mutants.py")
    session.run("pytest", "-n", "2", *files, *session.posargs, env=wanted)


@nox.session
def mechanisms(session: nox.Session) -> None:
    """Try all that holds of every mechanism of recurrence: each entry of gradients, each graph.

    With WRITE_TABLE=1 the outcomes are written to docs/recurrence.md.
    """
    session.install("-e", ".[test]")
    wanted = {**ONE_THREAD, "MOEUT_MECHANISMS": "1"}
    files = (
        "tests/moeut/test_properties.py",
        "tests/runners/process/test_mechanism_ranks.py",
        "tests/runners/process/test_scoring_ranks.py",
    )
    session.run("pytest", *files, *session.posargs, env=wanted)


@nox.session
@nox.parametrize(
    ("python", "name"), [(python, name) for name, (python, _) in VERSIONS.items()], ids=[*VERSIONS]
)
def versions(session: nox.Session, name: str) -> None:
    """Run the suite on the oldest, the GPU machines' and the newest versions (15 GB of wheels).

    docs/benchmarks/versions.md holds what it showed; it goes there by hand.
    """
    session.install("-e", ".[test]", *(VERSIONS[name][1] or lowest_versions()))
    session.run("python", "-m", "pip", "list")
    session.run("pytest", "-n", "2", "-m", "not gpu", *session.posargs, env=ONE_THREAD)


def lowest_versions() -> list[str]:
    """Return the requirements of the suite, each at the first version that pyproject.toml takes."""
    project = nox.project.load_toml(Path(__file__).parent / "pyproject.toml")["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return [re.sub(r">=([\w.]+)[^;]*", r"==\1.*", requirement) for requirement in listed]


@nox.session
def lint(session: nox.Session) -> None:
    """Check formatting and lint rules with ruff."""
    session.install("ruff>=0.15,<0.18")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the three packages with mypy."""
    session.install("-e", ".", "mypy>=1.18", "types-PyYAML")
    session.run("mypy")


@nox.session
def quickstart(session: nox.Session) -> None:
    """Run the README's main job (extra arguments are overrides, such as train.steps=60)."""
    session.install("-e", ".")
    session.run("python", "-m", "runners.sweep", "configs/quickstart.yaml", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure the expert layers beside their floors on this machine."""
    session.install("-e", ".")
    session.run("python", "-m", "runners.bench", "experts", *session.posargs)


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Run the GPU tests and all GPU benchmarks in the environment as it is, with its torch.

    Extra arguments go to the benchmarks: --output FOLDER, --peer NAME=PATH, --tune, --seconds N.
    What was stopped goes on where it was.
    """
    session.run("pytest", "-m", "gpu")
    session.run("pytest", "tests/moeut/ops", "tests/golden/test_triton.py")
    session.run("python", "-m", "runners.bench", "all", *session.posargs)
