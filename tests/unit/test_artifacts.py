"""An artifact exists with its manifest or not at all, and every altered byte is found."""

import os
import shutil
import subprocess
import sys
import threading

import pytest
from conftest import kills_at_file_operations

from openspectra.artifacts import describe_lineage, open_artifact, verify_tree, write_artifact
from openspectra.data.config import SourcesConfig, TokensConfig
from openspectra.errors import ConfigError, DamagedArtifactError, OpenSpectraError
from openspectra.writing import WAITS


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
    with write_artifact(tmp_path / "a", "tokens", TokensConfig(split="train"), {}) as draft:
        (draft.folder / "new.bin").write_bytes(b"x")
    assert not (tmp_path / "a" / "sub").exists()


def test_what_is_no_earlier_state_of_the_artifact_is_never_deleted(tmp_path):
    """A mistyped `--out`: somebody's folder, a whole study, another artifact, the inside of a parent, a file."""
    source = make(tmp_path / "study/a")
    (tmp_path / "mine/sub").mkdir(parents=True)
    (tmp_path / "mine/thesis.tex").write_text("years")

    def refused(out, split="train", parents=None) -> str:
        before = sorted(path for path in tmp_path.rglob("*"))
        with (
            pytest.raises(ConfigError) as error,
            write_artifact(out, "tokens", TokensConfig(split=split), parents or {}),
        ):
            raise AssertionError("the work began")
        assert sorted(path for path in tmp_path.rglob("*")) == before
        return str(error.value)

    assert "mine: holds sub, thesis.tex, which would be deleted; name a new or empty" in refused(tmp_path / "mine")
    assert "study: holds a, which would be deleted" in refused(tmp_path / "study")
    assert "a: holds tokens/train, which tokens/valid would replace" in refused(tmp_path / "study/a", "valid")
    assert "lies inside" in refused(tmp_path / "study/a/inside", parents={"corpus": source})
    assert "thesis.tex: a file, where a folder is needed" in refused(tmp_path / "mine/thesis.tex")


def test_an_artifact_without_its_manifest_is_made_again(tmp_path):
    """As Snakemake and `repair` leave it, and what ended while it was published."""
    made = make(tmp_path / "a")
    (tmp_path / "a/manifest.json").unlink()
    assert make(tmp_path / "a").sha256 == made.sha256
    (tmp_path / "a/manifest.json").write_text("{")
    assert make(tmp_path / "a").sha256 == made.sha256


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
    with write_artifact(tmp_path / "out", "sources", SourcesConfig(sources=["a"]), {}):
        pass  # the lock went with its owner


def test_lock_of_a_killed_writer_is_taken_over(tmp_path, caplog):
    out = tmp_path / "out"
    out.mkdir()
    (out / "lock").touch()
    (out / "owner.json").write_text('{"pid": 1}')
    make(out)
    assert 'the writer before, {"pid": 1}, ended without a word' in caplog.text
    assert not (out / "lock").exists() and not (out / "owner.json").exists()


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_umask_rules_every_file_whoever_wrote_it(tmp_path, umask, file, folder):
    import torch
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        with write_artifact(tmp_path / "a", "tokens", TokensConfig(split="train"), {}) as draft:
            (draft.folder / "sub").mkdir(mode=0o700)
            save_file({"weight": torch.zeros(3)}, draft.folder / "sub/model.safetensors")  # its own choice is 0600
            (draft.folder / "script").touch(mode=0o755)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*")}
    assert modes == dict.fromkeys(("manifest.json", "run.json", "script", "model.safetensors"), file) | {"sub": folder}


def test_parents_are_found_from_a_folder_that_is_a_link_and_from_its_true_place(tmp_path):
    study = tmp_path / "results/study"
    corpus = make(study / "corpora/a")
    make(study / "tokens/train", b"tokens", {"corpus": corpus})
    shutil.move(study / "tokens", tmp_path / "disk")
    (study / "tokens").symlink_to(tmp_path / "disk")
    make(study / "tokens/new/one", b"more", {"corpus": corpus})  # written through the link, the other before the move
    for name in ("train", "new/one"):
        (parent,) = open_artifact(study / "tokens" / name).parents("tokens")
        assert parent.sha256 == corpus.sha256
    assert len(verify_tree(study)) == 3
    shutil.move(study / "corpora", tmp_path / "elsewhere")
    (study / "corpora").symlink_to(tmp_path / "elsewhere")
    assert len(verify_tree(study)) == 3
    assert f"{study}/corpora/a  [tokens" in describe_lineage(open_artifact(study / "tokens/train"))


def test_what_verify_cannot_enter_is_told(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted")
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(DamagedArtifactError) as error:
        verify_tree(tmp_path)
    assert str(error.value).splitlines() == [
        f"{tmp_path}/gone: not checked, a link to {tmp_path}/unmounted, which is missing; mend the link.",
        f"{tmp_path}/loop: not checked, a link to a folder that holds it; remove the link.",
    ]


@pytest.mark.parametrize(
    ("place", "fits"),
    [
        ("results/study/tokens/train", True),
        ("results/study/tokens/valid", False),
        ("results/study/mine/train", True),  # no artifact's place, so anything may be there
        ("results/study/trilm/2L", False),
        ("elsewhere/tokens/valid", True),
    ],
)
def test_artifact_in_the_place_of_another_is_refused(tmp_path, place, fits):
    make(tmp_path / "made")
    shutil.copytree(tmp_path / "made", tmp_path / place)
    if fits:
        open_artifact(tmp_path / place)
    else:
        with pytest.raises(DamagedArtifactError, match="belongs into tokens/train of a study and was put here by hand"):
            open_artifact(tmp_path / place)


def test_job_of_a_workflow_waits_for_a_writer_that_outlived_the_one_before(tmp_path, monkeypatch):
    """By hand a second writer is an error; the job of a workflow after a kill goes on as soon as the first has ended."""
    script = """
import sys
from pathlib import Path
from openspectra.writing import only_writer
with only_writer(Path(sys.argv[1])):
    print("writing", flush=True)
    sys.stdin.readline()
"""
    first = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "writing\n"
    end = threading.Timer(1, first.communicate, ["\n"])
    end.start()
    monkeypatch.setenv(WAITS, "1")
    make(tmp_path / "out").verify()
    end.join()
    assert first.returncode == 0
