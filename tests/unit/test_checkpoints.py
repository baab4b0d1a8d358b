"""What lies in a run's checkpoint folder, altered by hand or by the disk: found, named, and never taken for a state."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from test_training import config, train

from openspectra.artifacts import open_artifact, write_artifact, write_csv
from openspectra.errors import DamagedArtifactError
from openspectra.training.checkpoint import CheckpointFolder
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
        for key in ("run", "step", "model", "optimizer", "records")
    },
}


@pytest.fixture
def checkpoints(tmp_path) -> CheckpointFolder:
    """The folder of a run of 12 steps, with states of steps 10 and 12."""
    return train(config(), tmp_path).checkpoints


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
