"""The data stages as commands: the same bytes for any number of workers, and after kill -9 at any point."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import copy_project, in_namespace, run
from hub_server import hub

WORDS = [
    "the",
    "a",
    "ternary",
    "weight",
    "of",
    "model",
    "and",
    "text",
    "is",
    "in",
    "it",
    "to",
    "corpus",
    "token",
    "shard",
]
START_SECONDS = 1.5
"""From the start of a command to its work, on a slow machine."""
STUDY = {
    "base": "tiny",
    "corpus": {
        "sources": {"web": {"adapter": "files", "files": ["web/*.jsonl"], "num_jobs": 2}},
        "valid_fraction": 0.1,
        "test_fraction": 0.1,
        "num_parts": 2,
    },
    "tokenizer": {"vocab_size": 300},
    "evaluation": None,
}


def make_project(folder: Path, names: list[str]) -> Path:
    """Copy the project with a study of 1,000 documents in files that are made in the order of `names`."""
    project = copy_project(folder)
    (project / "studies/data.yaml").write_text(yaml.safe_dump(STUDY))
    (project / "data/web").mkdir(parents=True)
    for name in names:
        (project / "data/web" / f"{name}.jsonl").write_text(documents(name))
    return project


def documents(name: str) -> str:
    """Return the 200 documents of the file called `name`, as lines of JSON."""
    rng = random.Random(name)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(20, 200))) for _ in range(200)]
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def make_tokens(project: Path, cores: str = "2", **environment: str) -> None:
    finished = run("snakemake", "--config", "study=data", "--cores", cores, "tokens", cwd=project, **environment)
    assert finished.returncode == 0, finished.stdout[-3000:]


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file, hidden ones too, but for the facts of a run."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    made = make_project(tmp_path_factory.mktemp("data") / "project", list("abcde"))
    make_tokens(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cores", "hash_seed", "names"), [("1", "1", "abcde"), ("4", "2", "edcba"), ("2", "77", "cadbe")]
)
def test_bytes_are_equal_for_any_workers_file_order_and_hash_seed(project, tmp_path, cores, hash_seed, names):
    other = make_project(tmp_path / "project", list(names))
    threads = {"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": cores}
    make_tokens(other, cores, **threads)
    assert tree(other / "results/data") == tree(project / "results/data")


def commands(results: str) -> dict[str, list[str]]:
    """Return the command of each stage by its folder below the results."""
    config = f"{results}/configs"
    sources = ["--sources", f"{results}/sources"]
    tokenizer, corpus = ["--tokenizer", f"{results}/tokenizer"], ["--corpus", f"{results}/corpus"]
    jobs = [f"{results}/sources/parts/web/{job}" for job in (0, 1)]
    parts = [f"{results}/corpus/parts/{part}" for part in (0, 1)]
    token_parts = [f"{results}/tokens/parts/{part}" for part in (0, 1)]
    return {
        "sources/parts/web/1": ["read", "--config", f"{config}/sources/parts/web.json", "--job", "1"],
        "corpus/parts/1": ["part", "--config", f"{config}/corpus/parts.json", *sources, "--part", "1"],
        "tokens/parts/1": [
            "tokenize", "--config", f"{config}/tokens/parts.json", "--corpus-part", parts[1], *tokenizer, "--part", "1",
        ],
        "tokenizer": ["tokenizer", "--config", f"{config}/tokenizer.json", *corpus],
        "corpus": ["corpus", "--config", f"{config}/corpus.json", *sources, *parts],
        "sources": ["sources", "--config", f"{config}/sources.json", *jobs],
        "tokens/train": ["tokens", "--config", f"{config}/tokens/train.json", *corpus, *tokenizer, *token_parts],
    }  # fmt: skip


@pytest.mark.slow
def test_40_kills_at_random_points_leave_no_trace(project):
    """Each stage is killed by SIGKILL at a random time and run again: the bytes of an uninterrupted run, no other file."""
    expected, rng = tree(project / "results/data"), random.Random(0)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    killed = 0
    stages = commands("results/data")
    for number in range(200):
        folder = list(stages)[number % len(stages)]
        command = ["openspectra", *stages[folder], "--out", f"results/data/{folder}"]
        facts = json.loads((project / "results/data" / folder / "run.json").read_text())
        process = subprocess.Popen(
            command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0, START_SECONDS + facts["duration_seconds"]))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        finished = run(*command, cwd=project)
        assert finished.returncode == 0, finished.stdout
        assert tree(project / "results/data") == expected, f"after kill {killed} of {folder}"
        if killed == 40:
            break
    assert killed == 40


@pytest.mark.slow
def test_second_run_of_the_workflow_has_nothing_to_do(project):
    finished = run("snakemake", "--config", "study=data", "--cores", "1", "tokens", cwd=project)
    assert "Nothing to be done" in finished.stdout


def test_after_prefetch_no_stage_needs_a_network(tmp_path):
    """`prefetch` reads a hub; then everything up to the tokens is made where no address can be reached."""
    if not in_namespace("net"):
        pytest.skip("needs `unshare` and the right to make a network namespace")
    commit, project = "a" * 40, copy_project(tmp_path / "project")
    source = {"adapter": "hub", "path": "people/text", "revision": commit, "num_jobs": 2}
    (project / "studies/data.yaml").write_text(
        yaml.safe_dump(STUDY | {"corpus": STUDY["corpus"] | {"sources": {"web": source}}})
    )
    files = tmp_path / "hub/people/text" / commit
    files.mkdir(parents=True)
    for name in "ab":
        (files / f"{name}.jsonl").write_text(documents(name))
    command = ["snakemake", "--config", "study=data", "--cores", "2"]
    with hub(tmp_path / "hub") as address:
        online = {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
        }
        finished = run(*command, "prefetch", cwd=project, **online)
    assert finished.returncode == 0, finished.stdout[-3000:]
    finished = run(*in_namespace("net"), *command, "corpus", "tokens", cwd=project, HF_HUB_OFFLINE="0")
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert json.loads((project / "results/data/corpus/manifest.json").read_text())["metrics"]["counts"]["read"] == 400


def test_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path):
    if not in_namespace("mount"):
        pytest.skip("needs `unshare` and the right to mount")
    (tmp_path / "data").mkdir()
    rows = [json.dumps({"text": random.Random(number).randbytes(500).hex()}) + "\n" for number in range(1000)]
    (tmp_path / "data/a.jsonl").write_text("".join(rows))
    source = {"adapter": "files", "files": ["a.jsonl"]}
    config = {"name": "web", "source": source, "min_characters": 1, "max_document_bytes": 10_000, "num_parts": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    for size, code in (("200k", 1), ("20m", 0)):
        script = f"mount -t tmpfs -o size={size} tmpfs out && openspectra read --config config.json --out out/web --log out/log; code=$?; ls -A out/web; exit $code"
        finished = run(*in_namespace("mount"), "sh", "-c", script, cwd=tmp_path)
        assert finished.returncode == code, finished.stdout
        if code:
            line = "openspectra: out/web: No space left on device; make room and run the same command again.\n"
            assert finished.stdout == line
        else:
            assert "manifest.json" in finished.stdout


def test_full_disk_under_the_log_ends_in_one_line(tmp_path):
    if not in_namespace("mount"):
        pytest.skip("needs `unshare` and the right to mount")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text(json.dumps({"text": "a text"}) + "\n")
    source = {"adapter": "files", "files": ["a.jsonl"]}
    config = {"name": "web", "source": source, "min_characters": 1, "max_document_bytes": 10_000, "num_parts": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "full").mkdir()
    fill = "mount -t tmpfs -o size=4k tmpfs full && head -c 4096 /dev/zero > full/file"
    command = "openspectra read --config config.json --out web --log full/log"
    finished = run(*in_namespace("mount"), "sh", "-c", f"{fill} && {command}", cwd=tmp_path)
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[-1] == (
        "openspectra: full/log: No space left on device; make room and run the same command again."
    )
    assert "Traceback" not in finished.stdout


def test_full_disk_under_the_table_of_runs_leaves_no_half_of_it(tiny, tmp_path):
    if not in_namespace("mount"):
        pytest.skip("needs `unshare` and the right to mount")
    (tmp_path / "full").mkdir()
    (tmp_path / "studies").symlink_to(tiny / "studies")
    shutil.copytree(tiny / "results/tiny/tokenizer", tmp_path / "results/tiny/tokenizer")
    fill = "mount -t tmpfs -o size=4k tmpfs full && head -c 4096 /dev/zero > full/file"
    command = "openspectra track sync tiny --out full/tracking.json"
    finished = run(
        *in_namespace("mount"), "sh", "-c", f"{fill} && {command}; code=$?; ls -A full; exit $code", cwd=tmp_path
    )
    assert finished.returncode == 1
    line = "openspectra: full/tracking.json: No space left on device; make room and run the same command again."
    assert finished.stdout.splitlines()[-2:] == [line, "file"]


@pytest.mark.parametrize(("study", "is_fetched"), [("ladder", False), ("ladder-hub", True), ("tiny", False)])
def test_items_to_look_for_are_fetched_where_no_file_gives_them(tmp_path, study, is_fetched):
    project = copy_project(tmp_path / "project")
    target = f"results/{study}/contamination/manifest.json"
    finished = run("snakemake", "-n", target, "--config", f"study={study}", cwd=project)
    assert finished.returncode == 0, finished.stdout[-2000:]
    assert "check_contamination" in finished.stdout
    assert ("fetch_benchmarks" in finished.stdout) == is_fetched


def test_paper_study_plans_its_token_files_without_having_them(tmp_path):
    project = copy_project(tmp_path / "project")
    finished = run("snakemake", "-n", "--config", "study=paper", cwd=project)
    assert finished.returncode == 0, finished.stdout[-2000:]
    assert "tokenize_part" in finished.stdout and "build_part" not in finished.stdout
    assert not (project / "results").exists()
