"""What is installed is what is declared: pins, hashes, and no word about the machine that wrote the lock."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import openspectra

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "envs" / "lock.txt").read_text(encoding="utf-8")
INSTALLED_BEFORE_THE_LOCK = {"torch"}
"""No hash fits all its builds, so the Makefile installs it by its pin."""
ONLY_WHERE_ASKED_FOR = {"llama-cpp-python"}
"""Of the extra `gguf-run`: minutes of C++, so the lock leaves it out."""
BANNED = {"lightning": {"2.6.2", "2.6.3"}}
"""Versions that must never be installed."""
DECLARED_BUT_NOT_NEEDED = "gptqmodel 7.6.0 has requirement numpy==2.2.6"
"""The one conflict of the environment: gptqmodel was run with the newer numpy (reason in pyproject.toml)."""


def lock_entries() -> list[str]:
    """Return the lock's entries, each with its hashes, as one line."""
    lines = [
        line for line in LOCK.replace("\\\n", " ").splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    return [" ".join(line.split()) for line in lines]


def locked_versions() -> dict[str, str]:
    pairs = [entry.split()[0].split("==") for entry in lock_entries()]
    return {canonicalize_name(name): version for name, version in pairs}


def declared() -> list[Requirement]:
    """Return every dependency of pyproject.toml, extras included."""
    project = PROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for requirements in lists for text in requirements]


def test_every_imported_package_is_declared():
    names = {canonicalize_name(requirement.name) for requirement in declared()} | {"openspectra"}
    distributions = packages_distributions()
    ours = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - ours:
                found = {canonicalize_name(name) for name in distributions.get(module, [module])}
                found = {"llama-cpp-python"} if module == "llama_cpp" else found  # where it is not installed
                assert found & names, f"{path.relative_to(ROOT)} imports {module}: declare it in pyproject.toml"


def test_lock_covers_every_declared_dependency_at_its_version():
    locked = locked_versions()
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        (pin,) = requirement.specifier
        assert pin.operator == "==", f"{requirement}: pin it"
        if name in INSTALLED_BEFORE_THE_LOCK | ONLY_WHERE_ASKED_FOR:
            assert name not in locked
        else:
            assert locked.get(name) == pin.version, f"{requirement}: write envs/lock.txt anew (its first lines say how)"


def test_lock_entries_have_hashes_and_are_sorted():
    entries = lock_entries()
    assert len(entries) > 100
    for entry in entries:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==\S+( --hash=sha256:[0-9a-f]{64})+", entry), entry[:80]
    names = [canonicalize_name(entry.split("==")[0]) for entry in entries]
    assert len(set(names)) == len(names)
    assert sorted(names) == names


def test_lock_names_no_index_and_no_file():
    assert not re.search(r"://|--(extra-)?index-url|--find-links|@ file|\.whl|\.tar\.gz", LOCK)


def test_lock_says_how_it_is_written():
    assert "uv pip compile pyproject.toml" in LOCK[:500]


def test_lock_leaves_out_cuda_which_comes_with_torch():
    assert not [name for name in locked_versions() if name.startswith(("nvidia-", "cuda-")) or name == "triton"]


@pytest.mark.parametrize("name", BANNED)
def test_banned_versions_are_not_pinned(name):
    assert locked_versions()[name] not in BANNED[name]


def test_pins_of_the_makefile_are_those_of_the_project():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pattern = re.search(r"^TORCH := \$\(shell sed -n '(.*)' pyproject.toml\)$", makefile, re.MULTILINE).group(1)
    read = subprocess.run(
        ["sed", "-n", pattern, "pyproject.toml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert read.stdout.strip() in {str(requirement) for requirement in declared()}


def test_version_is_read_from_the_package():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "openspectra.__version__"}
    assert re.search(
        rf"^version: {re.escape(openspectra.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE
    )


def test_installed_packages_agree_but_for_the_known_conflict():
    found = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if "No module named pip" in found.stderr:
        pytest.skip("pip is not installed in this environment")
    conflicts = [line for line in found.stdout.splitlines() if not line.startswith("No broken requirements")]
    assert all(line.startswith(DECLARED_BUT_NOT_NEEDED) for line in conflicts), conflicts


def test_set_up_goes_on_without_the_extension_and_shows_the_cause(tmp_path):
    """In a folder with a space, with a Python that stands for one where the extension cannot be built."""
    project = tmp_path / "a project"
    for name in ("Makefile", "pyproject.toml", "envs/lock.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, project / name)
    programs = project / ".venv/bin"
    programs.mkdir(parents=True)
    for name, line in (
        ("pip", "exit 0"),
        ("python", 'case "$*" in *warm_up*) echo "ld: no such folder"; exit 1;; esac'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    made = subprocess.run(
        ["make", "env", f"PYTHON={sys.executable}"], cwd=project, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert "ld: no such folder" in made.stdout
    assert "quantizing works without it" in made.stdout
    assert (project / ".venv/installed").exists()


def test_warm_up_names_the_cause_where_it_fails(tmp_path):
    settings = {"CXX": "/bin/false", "GPTQMODEL_EXT_BUILD": str(tmp_path / "build")}
    command = [sys.executable, "-m", "openspectra.quantization.warm_up"]
    made = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert made.returncode == 1
    assert "Command '['/bin/false', '--version']' returned non-zero exit status 1" in made.stderr + made.stdout


@pytest.mark.slow
def test_warm_up_compiles_in_a_folder_with_a_space(tmp_path):
    packages = tmp_path / "a b/packages"
    packages.parent.mkdir()
    packages.symlink_to(Path(torch.__file__).parents[1])
    settings = {"PYTHONPATH": f"{packages}{os.pathsep}{ROOT / 'src'}", "GPTQMODEL_EXT_BUILD": str(tmp_path / "build")}
    command = [sys.executable, "-m", "openspectra.quantization.warm_up"]
    made = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-3000:]
    assert str(packages) in made.stdout + made.stderr  # it was compiled from there
    assert list((tmp_path / "build").rglob("*.so"))
