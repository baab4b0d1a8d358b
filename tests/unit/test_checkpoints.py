"""What lies in a run's checkpoint folder, altered by hand or by the disk: found, named, and never taken for a state."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loopback import free_port
from rank_that_loads import CONFIG, STEP_TO_GO_ON, whole_state
from test_training import config, train

from openspectra.artifacts import open_artifact, write_artifact, write_csv
from openspectra.errors import DamagedArtifactError
from openspectra.training.checkpoint import CheckpointFolder
from openspectra.training.sharding import chunk_shape
from openspectra.training.trajectory import verify_trajectory


def newest(folder: Path) -> Path:
    return sorted(folder.glob("step-*.pt"))[-1]


def forge(path: Path, content: object) -> None:
    """Write `content` as the state in `path`, with the hash that vouches for it."""
    torch.save(content, path)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def without(state: dict, key: str) -> dict:
    return {name: value for name, value in state.items() if name != key}


def with_other_shape(state: dict) -> dict:
    return state | {"model": {name: torch.zeros(3) for name in state["model"]}}


def with_other_moments(state: dict) -> dict:
    return state | {"optimizer": {"state": {}, "param_groups": []}}


FORGERIES = {
    "a list": lambda state: [state],
    "a tensor": lambda state: torch.zeros(2),
    "other weights": with_other_shape,
    "other moments": with_other_moments,
    "a text for a step": lambda state: state | {"step": "12"},
    **{
        f"no {key}": lambda state, key=key: without(state, key)
        for key in ("run", "step", "attention", "model", "optimizer", "records")
    },
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(config(), folder)
    return folder


@pytest.fixture
def checkpoints(run_folder, tmp_path) -> CheckpointFolder:
    """The folder of a run of 12 steps, with states of steps 10 and 12."""
    shutil.copytree(run_folder, tmp_path, dirs_exist_ok=True)
    return CheckpointFolder(tmp_path, config(), {})


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_state_is_skipped_for_the_one_before(checkpoints, caplog, kind):
    path = newest(checkpoints.folder)
    forge(path, FORGERIES[kind](torch.load(path, weights_only=True)))
    assert checkpoints.load_newest()["step"] == 10
    assert f"{path}: not a state of this run" in caplog.text


def test_bytes_that_are_no_state_and_a_folder_are_skipped(checkpoints, caplog):
    path = newest(checkpoints.folder)
    path.write_bytes(b"no archive")
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    assert checkpoints.load_newest()["step"] == 10
    assert f"{path}: not a training state" in caplog.text
    path.unlink()
    path.mkdir()
    assert checkpoints.load_newest()["step"] == 10
    assert f"{path}: damaged or incomplete, skipped" in caplog.text


def test_a_hash_that_is_no_text_damages_one_state_only(checkpoints):
    recorded = newest(checkpoints.folder).with_suffix(".sha256")
    content = recorded.read_bytes()
    recorded.write_bytes(bytes([content[0] ^ 0x80]) + content[1:])
    assert checkpoints.load_newest()["step"] == 10


@pytest.mark.parametrize("pattern", ["step-*", "step-*.pt"])
def test_states_that_are_all_gone_do_not_start_the_run_over(checkpoints, pattern):
    for path in checkpoints.folder.glob(pattern):
        path.unlink()
    with pytest.raises(DamagedArtifactError, match="weights of step 10 are here and no training state is"):
        checkpoints.load_newest()


def test_a_run_killed_before_its_first_state_says_that_it_starts_over(checkpoints, caplog):
    for path in [*checkpoints.folder.glob("step-*"), *checkpoints.folder.glob("weights-000000[01][05].*")]:
        path.unlink()
    assert checkpoints.load_newest() is None
    assert "kept weights up to step 4 and no training state; from step 0" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b'{"config": {}}'])
def test_a_damaged_description_is_written_again_and_stops_nothing(checkpoints, caplog, content):
    path = checkpoints.folder / "run.json"
    intact = path.read_bytes()
    path.write_bytes(content)
    changed = CheckpointFolder(checkpoints.root.parent, config(seed=4), {})
    changed.prepare()
    assert f"{path}: damaged, so what differs from that run cannot be said" in caplog.text
    checkpoints.prepare()
    assert path.read_bytes() == intact


def published(checkpoints: CheckpointFolder, folder: Path):
    """Return a pretrain artifact in `folder` that lists the kept weights of the run."""
    shutil.copytree(checkpoints.root, folder / "checkpoints")
    names = sorted(path.name for path in checkpoints.folder.glob("weights-*"))
    rows = [
        {
            "step": int(name[8:16]),
            "file": name,
            "sha256": hashlib.sha256((checkpoints.folder / name).read_bytes()).hexdigest(),
        }
        for name in names
    ]
    with write_artifact(folder, "pretrain", config(), {}) as draft:
        write_csv(draft.folder / "checkpoints.csv", rows[0], rows)
    return open_artifact(folder)


def test_kept_weights_are_found_by_the_manifest_alone(checkpoints, tmp_path):
    run = published(checkpoints, tmp_path / "made")
    (description,) = (tmp_path / "made").glob("checkpoints/*/run.json")
    assert verify_trajectory(run) == 5  # steps 1, 2, 4, 5, 10
    description.write_text(json.dumps(json.loads(description.read_text()) | {"stage_version": 99}))
    assert verify_trajectory(run) == 5
    weights = description.with_name("weights-00000004.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamagedArtifactError, match="weights-00000004.safetensors: differs from its sha256"):
        verify_trajectory(run)
    weights.unlink()
    with pytest.raises(DamagedArtifactError, match="weights-00000004.safetensors: missing, though checkpoints.csv"):
        verify_trajectory(run)


def in_ranks(script: str, *arguments: str, ranks: int = 1) -> list[subprocess.CompletedProcess]:
    """Run a script of this folder once for each rank, whose number is its last argument."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), *sys.path])
    more = {"PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": ""}
    commands = [[sys.executable, str(here / script), *arguments, str(rank)] for rank in range(ranks)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(c, env=os.environ | more, stdout=pipe, stderr=pipe, text=True) for c in commands]
    ended = [(process, process.communicate(timeout=300)) for process in running]
    return [subprocess.CompletedProcess(process.args, process.returncode, *said) for process, said in ended]


def write_parts(checkpoints: CheckpointFolder, step: int, ranks: int) -> None:
    """Save a state as that many ranks of FSDP2 do."""
    groups = [{"params": list(whole_state(step)), "lr": 0.1, "weight_decay": 0.0}]
    hashes = []
    for rank in range(ranks):
        chunks = {}
        for name, tensors in whole_state(step).items():
            rows = [chunk_shape(tensors["weight"].shape, number, ranks)[0] for number in range(ranks)]
            chunks[name] = {key: tensor.split(rows)[rank].clone() for key, tensor in tensors.items()}
        model = {name: chunk.pop("weight") for name, chunk in chunks.items()}
        state = {name: chunk | {"step": torch.tensor(float(step))} for name, chunk in chunks.items()}
        part = {"model": model, "optimizer": {"state": state, "param_groups": groups}}
        hashes.append(checkpoints.save_part(step, rank, part))
    rest = {"records": {}, "attention": "", "precision": {}, "model": {}, "optimizer": None}
    checkpoints.save(step, {"step": step, "parts": hashes} | rest)


@pytest.mark.parametrize("step", [STEP_TO_GO_ON, CONFIG.max_steps])
def test_ranks_take_no_more_than_their_rows_of_a_state_of_another_world(tmp_path, step):
    checkpoints = CheckpointFolder(tmp_path, CONFIG, {})
    checkpoints.prepare()
    write_parts(checkpoints, step, ranks=3)
    whole = max(4 * tensors["weight"].numel() for tensors in whole_state(step).values())
    ranks = in_ranks("rank_that_loads.py", str(tmp_path), ranks=2)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    first, second = (json.loads(rank.stdout) for rank in ranks)
    assert first["is_exact"] and first["held"] == [0, 1, 2]
    if step == CONFIG.max_steps:  # only rank 0 publishes, and nobody needs moments
        assert first["largest"] <= whole and second["held"] == [] and second["largest"] < 1000
    else:
        assert second["is_exact"] and max(first["largest"], second["largest"]) <= whole / 2


def test_training_goes_on_when_the_state_that_it_was_read_from_is_cut_off(tmp_path):
    """Memory mapped from a file that another machine has removed, or that is cut off, ends the process with SIGBUS."""
    train(config(), tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "cut")
    newest(tmp_path / "cut/checkpoints" / CheckpointFolder(tmp_path, config(), {}).folder.name).unlink()
    (ended,) = in_ranks("run_with_cut_state.py", str(tmp_path / "cut"))
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
    name = CheckpointFolder(tmp_path, config(), {}).folder.name
    one, other = (
        torch.load(newest(tmp_path / run / "checkpoints" / name), weights_only=True) for run in ("straight", "cut")
    )
    assert one["step"] == other["step"] == 12
    assert all(torch.equal(weight, other["model"][key]) for key, weight in one["model"].items())
    states = one["records"]["states"]
    assert states and all(torch.equal(packed, other["records"]["states"][key]) for key, packed in states.items())
