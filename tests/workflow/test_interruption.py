"""What a trainer finds in its folder when it starts: a damaged checkpoint, another trainer, a dead one's lock."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run

LONG = {"max_steps": 300, "checkpoint_every_steps": 20, "log_every_steps": 10, "valid_every_steps": 50}


def command(project: Path, out: Path, **changes: int) -> list[str]:
    results = project / "results/tiny"
    config = json.loads((results / "configs/trilm/2L.json").read_text()) | LONG | changes
    path = out.parent / "config.json"
    path.write_text(json.dumps(config))
    parents = [
        "--train",
        f"{results}/tokens/train",
        "--valid",
        f"{results}/tokens/valid",
        "--tokenizer",
        f"{results}/tokenizer",
    ]
    return ["openspectra", "pretrain", "--config", str(path), *parents, "--out", str(out)]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not any(int(path.stem[5:]) >= step for path in out.glob("checkpoints/*/step-*.pt")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("straight") / "model"
    finished = run(*command(tiny, out), cwd=tiny)
    assert finished.returncode == 0, finished.stdout
    return (out / "manifest.json").read_bytes()


def test_newest_checkpoint_damaged_falls_back_to_the_one_before(tiny, tmp_path, uninterrupted):
    out = tmp_path / "model"
    process = start(command(tiny, out))
    wait_for_step(out, 60, process)
    process.kill()
    process.wait()
    newest = max(out.glob("checkpoints/*/step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    finished = run(*command(tiny, out), cwd=tiny)
    assert finished.returncode == 0, finished.stdout
    assert f"{newest.name}: damaged or incomplete, skipped" in finished.stdout
    assert json.loads((out / "manifest.json").read_bytes())["files"] == json.loads(uninterrupted)["files"]


def test_second_trainer_is_refused_and_a_dead_ones_lock_is_free(tiny, tmp_path):
    out = tmp_path / "model"
    endless = command(tiny, out, max_steps=20_000)
    process = start(endless)
    wait_for_step(out, 20, process)
    second = run(*endless, cwd=tiny)
    assert second.returncode == 1
    assert f'"pid": {process.pid}' in second.stdout and "is writing here" in second.stdout
    process.kill()
    process.wait()
    reached = max(int(path.stem[5:]) for path in out.glob("checkpoints/*/step-*.pt"))
    third = start(endless)
    wait_for_step(out, reached + 1, third)
    third.terminate()
    output, _ = third.communicate(timeout=60)
    assert third.returncode == 75, output
    assert f'"pid": {process.pid}' in output and "ended without a word; going on" in output
