"""The tiny study on one and on two GPUs, in both half precisions. `make test-gpu` runs these; elsewhere they skip."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import copy_project, snakemake
from test_exactness import Run

from openspectra.artifacts import verify_tree

pytestmark = pytest.mark.gpu
GPUS = torch.cuda.device_count()


def devices(count: int):
    """Return the parameter `count` of a test, which skips where there are fewer GPUs."""
    return pytest.param(count, marks=pytest.mark.skipif(count > GPUS, reason=f"needs {count} CUDA GPUs, here: {GPUS}"))


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


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("count", [devices(1), devices(2)])
def test_resumed_run_is_bit_identical(project, tmp_path, count, strategy):
    if not (project / "results").exists():
        assert snakemake(project, "tokens").returncode == 0
    options = ("--devices", str(count), "--strategy", strategy, "--micro-batch", "2")
    results = []
    for name in ("straight", "stopped"):
        run = Run(project, tmp_path / name, changes={"max_steps": 400, "checkpoint_every_steps": 20}, options=options)
        command = [sys.executable, "-m", "openspectra.cli", *run.arguments]
        if name == "stopped":
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            while not list(run.out.glob("checkpoints/*/step-*.pt")):
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate()
            assert process.returncode == 75, output
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        results.append(run.result())
    assert results[0] == results[1]
