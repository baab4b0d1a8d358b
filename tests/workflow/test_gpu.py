"""The tiny study on one and on two GPUs, in both half precisions. `make test-gpu` runs these; elsewhere they skip."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pyarrow.parquet
import pytest
import torch
from conftest import copy_project, snakemake
from test_exactness import Run

from openspectra.artifacts import verify_tree

pytestmark = pytest.mark.gpu
GPUS = torch.cuda.device_count()
LENGTH = 2048
"""Tokens of a sequence, in the paper."""


def devices(count: int, *more: str):
    """Return the parameters `count` and `more` of a test, which skips where there are fewer GPUs."""
    needs_gpus = pytest.mark.skipif(count > GPUS, reason=f"needs {count} CUDA GPUs, here: {GPUS}")
    return pytest.param(count, *more, marks=needs_gpus)


@pytest.fixture(scope="module", params=["bf16-mixed", "16-mixed"])
def project(request, tmp_path_factory):
    """A project whose tiny study trains in half precision."""
    folder = copy_project(tmp_path_factory.mktemp(request.param) / "project")
    study = folder / "studies/tiny.yaml"
    changed = study.read_text().replace("precision: 32-true", f"precision: {request.param}")
    assert request.param in changed
    study.write_text(changed)
    return folder


@pytest.mark.parametrize("count", [devices(1), devices(2)])
def test_whole_study(project, count):
    for family in ("floatlm", "trilm"):  # trained on another number of GPUs
        shutil.rmtree(project / "results/tiny" / family, ignore_errors=True)
    finished = snakemake(project, "--set-resources", f"pretrain_model:devices={count}")
    assert finished.returncode == 0, finished.stdout[-5000:]
    stages = [artifact.manifest.stage for artifact in verify_tree(project / "results/tiny")]
    assert (stages.count("pretrain"), stages.count("quantize"), stages.count("evaluate")) == (2, 4, 6)
    for family in ("floatlm", "trilm"):
        folder = project / "results/tiny" / family / "2L"
        assert json.loads((folder / "run.json").read_text())["ranks"] == count
        metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
        assert metrics["valid_loss"] < 6.0  # 6.24 nats: nothing learned of 512 tokens
    assert (project / "reports/tiny/index.html").is_file()


@pytest.mark.parametrize("count", [devices(1)])
def test_scores_are_those_of_a_cpu(project, count):
    """Likelihoods of the same model, on a GPU and where it sees none: equal but for the order of sums in float32."""
    model = "results/tiny/evaluation/floatlm/2L"
    read = partial(likelihoods, project / model / "held_out")
    assert snakemake(project, f"{model}/held_out/manifest.json").returncode == 0
    gpu = read()
    shutil.rmtree(project / model)
    finished = snakemake(project, f"{model}/held_out/manifest.json", within=("env", "CUDA_VISIBLE_DEVICES="))
    assert finished.returncode == 0, finished.stdout[-5000:]
    cpu = read()
    assert len(gpu) > 40
    assert gpu == pytest.approx(cpu, rel=1e-4)
    assert gpu != cpu, "both were computed by the same device"


def likelihoods(folder) -> list[float]:
    """Return the log-likelihoods of all documents and of all choices of all items, in nats."""
    texts = [row["log_likelihood"] for row in rows(folder / "documents.csv")]
    items = pyarrow.parquet.read_table(folder / "items.parquet").to_pylist()
    return [*map(float, texts), *(value for item in items for value in item["log_likelihoods"])]


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def has_tokens(project):
    """Make what a run of `Run` reads."""
    finished = snakemake(project, "tokens", "results/tiny/configs/trilm/2L.json")
    assert finished.returncode == 0, finished.stdout[-5000:]


def straight_and_stopped(project, folder, changes, options) -> list[dict]:
    """Return the results of a run, and of the same one stopped at its first state and continued with an empty compiler cache."""
    results = []
    for name in ("straight", "stopped"):
        run = Run(project, folder / name, changes=changes, options=options)
        command = [sys.executable, "-m", "openspectra.cli", *run.arguments]
        if name == "stopped":
            with (folder / "output.txt").open("w+") as output:
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, env=compiler_cache(folder / "first")
                )
                while not list(run.out.glob("checkpoints/*/step-*.pt")):
                    assert process.poll() is None, (folder / "output.txt").read_text()
                    time.sleep(0.05)
                process.send_signal(signal.SIGTERM)
                assert process.wait() == 75, (folder / "output.txt").read_text()
        cache = compiler_cache(folder / ("first" if name == "straight" else "second"))
        finished = subprocess.run(command, capture_output=True, text=True, check=False, env=cache)
        assert finished.returncode == 0, finished.stderr
        results.append(run.result())
    return results


def compiler_cache(folder) -> dict[str, str]:
    return os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder)}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("count", [devices(1), devices(2)])
def test_resumed_run_is_bit_identical(project, tmp_path, count, strategy):
    has_tokens(project)
    changes = {"max_steps": 400, "checkpoint_every_steps": 20}
    options = ("--devices", str(count), "--strategy", strategy, "--micro-batch", "2")
    straight, stopped = straight_and_stopped(project, tmp_path, changes, options)
    assert straight == stopped


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize(("count", "strategy"), [devices(1, "ddp"), devices(2, "ddp"), devices(2, "fsdp2")])
def test_resumed_run_at_the_papers_length_is_bit_identical(project, tmp_path, count, strategy, compiled):
    """At 2,048 tokens the backward pass of attention sums many blocks of keys: in any order, unless told otherwise."""
    has_tokens(project)
    shape = json.loads((project / "results/tiny/configs/trilm/2L.json").read_text())["shape"]
    shape |= {"max_position_embeddings": LENGTH, "initializer_range": 0.02}
    changes = {"sequence_length": LENGTH, "global_batch_size": 4, "peak_lr": 1e-3, "peak_lr_after_drop": 6e-4}
    if compiled:  # by the rule for large runs: 1.5e14 operations
        shape |= {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8}
        changes["global_batch_size"] = 16
    changes["shape"] = shape
    options = ("--devices", str(count), "--strategy", strategy, "--micro-batch", "2")
    straight, stopped = straight_and_stopped(project, tmp_path, changes, options)
    assert straight == stopped
    assert compiled == bool(list((tmp_path / "second").rglob("*.cubin"))), "not what this test is about"
