"""Fixtures: small real artifacts for unit tests, and one whole run of the `tiny` study for everything that needs it."""

import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
LAYOUT = ("--set-resources", "pretrain_model:micro_batch=2")
"""Of every training of `tiny`: two micro batches a step, so that gradient accumulation is exercised. Bits hold within one."""
TRACKED = ("Snakefile", "config.yaml", "studies", "workflow", "slurm", "envs", "resources")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Escape what no UTF-8 can hold in a test's captured output: pytest-xdist sends it to another process."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command with this environment's programs first on the PATH; stdout holds both streams."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENSPECTRA_DATA": "", **environment}
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PATH": path} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def in_namespace(kind: str) -> list[str]:
    """Return what starts a command in a namespace of its own; empty where this machine does not let one be made.

    `net`: no address can be reached, not even this machine's. `mount`: file systems can be mounted for the command alone.
    """
    command = ["unshare", "--map-root-user", f"--{kind}"]
    works = shutil.which(command[0]) and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if works else []


def kills_at_file_operations(set_up: Callable[[], object], action: Callable[[], object]) -> Iterator[int]:
    """Set up and run `action` in a fork of this process, killed before its n-th operation on files, for n = 1, 2, ...

    Yields n after each kill, for the caller to look at what was left. Ends with a run that nobody killed.
    """
    killed, number = True, 0
    while killed:
        number += 1
        set_up()
        pid = os.fork()
        if pid == 0:
            _kill_at_file_operation(number)
            try:
                action()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        killed = code == -signal.SIGKILL
        assert killed or code == 0
        if killed:
            yield number


def _kill_at_file_operation(number: int) -> None:
    operations = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link"}
    seen = 0

    def hook(event: str, _arguments: tuple) -> None:
        nonlocal seen
        if event in operations:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def snakemake(project: Path, *arguments: str, within: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """Run the workflow of the `tiny` study in `project` on two cores, started by the command `within`."""
    return run(*within, "snakemake", "--config", "study=tiny", *LAYOUT, "--cores", "2", *arguments, cwd=project)


def copy_project(target: Path) -> Path:
    """Copy what a clone holds of the workflow, without results."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TRACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, target / name)
    return target


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A project folder in which the whole tiny study has been run. Not to be changed: take `tiny_copy` for that.

    It runs without a network, which no study needs that reads nothing from the hub; once, for all workers of pytest-xdist.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    project, finished = folder / "tiny/project", folder / "tiny/finished"
    with FileLock(folder / "tiny.lock"):
        if not finished.exists():
            study = snakemake(copy_project(project), within=in_namespace("net"))
            assert study.returncode == 0, study.stdout[-5000:]
            finished.touch()
    return project


@pytest.fixture
def tiny_copy(tiny, tmp_path) -> Path:
    """A copy of the finished tiny project, time stamps kept, for tests that change something."""
    return Path(shutil.copytree(tiny, tmp_path / "project", symlinks=True))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An SQLite store of MLflow with all tables, made once: it takes seconds."""
    from tracking_store import EXPERIMENT

    from openspectra.tracking.sync import track

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    track([], EXPERIMENT, f"sqlite:///{database}")
    return database


@pytest.fixture
def store(empty_store, tmp_path):
    """A tracking store of one test."""
    from tracking_store import Store

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Store(tmp_path / "mlflow.db")
