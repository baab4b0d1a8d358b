"""An artifact exists with its manifest or not at all, and every altered byte is found."""

import shutil
import subprocess
import sys

import pytest
from conftest import kills_at_file_operations

from openspectra.artifacts import describe_lineage, open_artifact, verify_tree, write_artifact
from openspectra.data.config import TokensConfig
from openspectra.errors import DamagedArtifactError, OpenSpectraError


def make(folder, content=b"abc" * 100, parents=None):
    with write_artifact(folder, "tokens", TokensConfig(split="train"), parents or {}) as draft:
        (draft.folder / "sub").mkdir()
        (draft.folder / "sub" / "00000.bin").write_bytes(content)
        draft.metrics["num_tokens"] = len(content)
    return open_artifact(folder)


def test_equal_work_gives_equal_manifests(tmp_path):
    assert make(tmp_path / "a").sha256 == make(tmp_path / "b").sha256
    assert make(tmp_path / "c", b"other").sha256 != make(tmp_path / "a").sha256


@pytest.mark.parametrize("bit", [0, 1199, 2399])
def test_one_flipped_bit_is_found_and_named(tmp_path, bit):
    artifact = make(tmp_path / "a")
    path = tmp_path / "a" / "sub" / "00000.bin"
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=r"00000\.bin: its sha256 differs"):
        artifact.file("sub/00000.bin")


def test_truncated_and_missing_files_are_found(tmp_path):
    artifact = make(tmp_path / "a")
    path = tmp_path / "a" / "sub" / "00000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedArtifactError, match=r"00000\.bin: 299 bytes where manifest.json says 300"):
        artifact.verify()
    path.unlink()
    with pytest.raises(DamagedArtifactError, match=r"00000\.bin: missing"):
        artifact.verify()


def test_failed_stage_leaves_what_was_there(tmp_path):
    before = make(tmp_path / "a")
    with (
        pytest.raises(RuntimeError),
        write_artifact(tmp_path / "a", "tokens", TokensConfig(split="train"), {}) as draft,
    ):
        (draft.folder / "half.bin").write_bytes(b"x")
        raise RuntimeError
    assert open_artifact(tmp_path / "a").sha256 == before.sha256
    before.verify()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["manifest.json", "run.json", "sub"]


@pytest.mark.parametrize("before", [False, True])
def test_killed_at_any_file_operation_a_stage_leaves_a_whole_artifact_or_none(tmp_path, before):
    out, expected = tmp_path / "out", make(tmp_path / "expected", b"new")

    def set_up():
        shutil.rmtree(out, ignore_errors=True)
        if before:
            make(out, b"old")
            (out / "old.bin").touch()

    found = set()
    for _ in kills_at_file_operations(set_up, lambda: make(out, b"new")):
        if (out / "manifest.json").exists():
            open_artifact(out).verify()
            found.add((out / "sub/00000.bin").read_bytes())
        else:
            found.add(None)
        assert make(out, b"new").sha256 == expected.sha256
        assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "run.json", "sub"]
    assert found == ({None, b"old", b"new"} if before else {None, b"new"})


def test_rewriting_removes_files_the_new_manifest_does_not_list(tmp_path):
    make(tmp_path / "a")
    with write_artifact(tmp_path / "a", "tokens", TokensConfig(split="valid"), {}) as draft:
        (draft.folder / "new.bin").write_bytes(b"x")
    assert not (tmp_path / "a" / "sub").exists()


def test_parent_made_anew_is_reported_by_verify_and_lineage(tmp_path):
    parent = make(tmp_path / "parent")
    child = make(tmp_path / "child", b"child", {"corpus": parent})
    assert len(verify_tree(tmp_path)) == 2
    make(tmp_path / "parent", b"changed")
    with pytest.raises(DamagedArtifactError, match="made from another corpus"):
        verify_tree(tmp_path)
    assert f"made anew since: was {parent.sha256[:12]}" in describe_lineage(child)


def test_wrong_stage_and_no_manifest_are_refused(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(DamagedArtifactError, match="made by stage `tokens`, but `corpus` is needed"):
        open_artifact(tmp_path / "a", "corpus")
    with pytest.raises(DamagedArtifactError, match="no finished artifact; rerun"):
        open_artifact(tmp_path / "nothing")
    (tmp_path / "a" / "manifest.json").write_text("{}")
    with pytest.raises(DamagedArtifactError, match="not a readable manifest"):
        open_artifact(tmp_path / "a")


def test_second_writer_is_refused_with_the_owner_named_and_the_first_goes_on(tmp_path):
    """A process that outlived its workflow and the one that the next workflow starts would mix their files."""
    script = """
import sys
from pathlib import Path
from openspectra.artifacts import write_artifact
from openspectra.data.config import SourcesConfig
with write_artifact(Path(sys.argv[1]), "sources", SourcesConfig(sources=["a"]), {}) as draft:
    (draft.folder / "a.txt").write_text(sys.argv[2])
    print("writing", flush=True)
    sys.stdin.read()
"""
    first = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "out", "first"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "writing\n"
    with pytest.raises(OpenSpectraError, match=rf'"pid": {first.pid}.* is writing here; wait for it or stop it'):
        make(tmp_path / "out")
    first.communicate("")
    assert first.returncode == 0
    open_artifact(tmp_path / "out").verify()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.txt", "manifest.json", "run.json"]
    make(tmp_path / "out")  # the lock went with its owner


def test_lock_of_a_killed_writer_is_taken_over(tmp_path, caplog):
    out = tmp_path / "out"
    out.mkdir()
    (out / "lock").touch()
    (out / "owner.json").write_text('{"pid": 1}')
    make(out)
    assert 'the writer before, {"pid": 1}, ended without a word' in caplog.text
    assert not (out / "lock").exists() and not (out / "owner.json").exists()
