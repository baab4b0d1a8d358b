"""Where a study stands is read from what its jobs leave on the disk."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openspectra.errors import Interrupted, OpenSpectraError
from openspectra.logs import log_to
from openspectra.status import last_error, log_of, status_lines, status_of
from openspectra.study import load_study
from openspectra.writing import only_writer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return load_study(ROOT / "studies/tiny.yaml")


def fail(log: Path, error: Exception) -> None:
    with pytest.raises(type(error)), log_to(log):
        raise error


def test_states_of_jobs(study):
    root = Path("results/tiny")
    (root / "corpus").mkdir(parents=True)
    (root / "corpus/manifest.json").write_text("{}")
    fail(
        log_of("tiny", "tokenizer", "tokenizer"), OpenSpectraError("results/tiny: No space left on device; make room.")
    )
    fail(log_of("tiny", "floatlm/2L", "pretrain"), Interrupted("floatlm/2L: stopped at step 7, state saved.", step=7))
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (root / "tokens/train").mkdir(parents=True)
    mark = {"host": os.uname().nodename, "pid": killed.pid, "job": None}
    (root / "tokens/train/owner.json").write_text(json.dumps(mark))
    with only_writer(root / "trilm/2L"):
        (root / "trilm/2L/speed.jsonl").write_text('{"step": 10, "tokens_per_second": 512.0}\n')
        status = status_of(study, "tiny")
        lines = status_lines(study, "tiny")
    assert status.done == ["corpus"]
    assert [each.place for each in status.running] == ["trilm/2L"]
    assert status.running[0].progress == "step 10 of 40, 512 tokens/s, 30.0 s left"
    assert status.interrupted == {"floatlm/2L": "stopped at step 7, state saved."}
    assert status.failed["tokens/train"] == "ended without a word: killed, or out of memory"
    assert "No space left on device" in status.failed["tokenizer"] and "tokenizer.log" in status.failed["tokenizer"]
    assert len(status.waiting) == status.total - 5
    assert any("snakemake --cores all --config study=tiny" in line for line in lines)
    assert "trilm/2L" in status_of(study, "tiny").waiting  # the lock is free again


def test_job_of_another_machine_runs_as_long_as_it_writes(study):
    folder = Path("results/tiny/trilm/2L")
    folder.mkdir(parents=True)
    mark = folder / "owner.json"
    mark.write_text(json.dumps({"host": "node7", "pid": 1, "job": "42"}))
    assert status_of(study, "tiny").running[0].who == "process 1 on node7, Slurm job 42"
    os.utime(mark, (time.time() - 7200,) * 2)
    assert "nothing was written for 2.0 h by process 1 on node7" in status_of(study, "tiny").failed["trilm/2L"]


def test_an_error_that_the_job_went_on_after_is_none(tmp_path):
    log = tmp_path / "a.log"
    fail(log, OpenSpectraError("broken"))
    assert last_error(log).startswith("OpenSpectraError: broken")
    with log_to(log):
        import logging

        logging.getLogger("openspectra").info("done")
    assert last_error(log) is None
    assert last_error(tmp_path / "absent.log") is None


def test_status_and_plan_load_nothing_heavy(tmp_path):
    code = (
        "import sys; from openspectra import cli; cli.app(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    )
    for command in ("status", "plan"):
        done = subprocess.run([sys.executable, "-c", code, command, "tiny"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
