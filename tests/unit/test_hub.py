"""The hub adapter against a hub of our own: pinned commits, splits, subsets, fields, jobs, and a network that fails.

Each read is the real command in a process of its own, because the libraries take the hub's address when imported.
"""

import csv
import gzip
import json
import sys
from pathlib import Path

import pytest
from conftest import run
from data_study import texts
from hub_server import hub

from openspectra.artifacts import open_artifact
from openspectra.data.config import ReadConfig
from openspectra.data.documents import iterate_raw

OLD, NEW = "a" * 40, "b" * 40
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: "train/*.jsonl"}
  - {split: validation, path: "held.jsonl"}
- config_name: french
  data_files:
  - {split: train, path: "french.jsonl"}
---
"""


def lines(of: list[str], **fields: str) -> str:
    return "".join(
        json.dumps({"body": text, "meta": {"set": "ab"[n % 2]}, **fields}) + "\n" for n, text in enumerate(of)
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A data set of two commits; the newer one has three train files, a held-out split and a subset."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("hub")
    root = folder / "people/text"
    (root / OLD).mkdir(parents=True)
    (root / OLD / "train.jsonl").write_text(lines(["as it was"]))
    (root / NEW / "train").mkdir(parents=True)
    for number in range(3):
        (root / NEW / f"train/{number}.jsonl").write_text(lines(texts(100, seed=number)))
    (root / NEW / "held.jsonl").write_text(lines(["held out"]))
    french = [json.dumps({"texte": text, "body": "another field"}) + "\n" for text in ("un", "deux")]
    (root / NEW / "french.jsonl").write_text("".join(french))
    (root / NEW / "README.md").write_text(CARD)
    broken = {"train-0.jsonl": lines(["good"]), "train-1.jsonl": "<html>404</html>", "train-2.jsonl": lines(["too"])}
    (folder / "people/broken" / NEW).mkdir(parents=True)
    for name, content in broken.items():
        (folder / "people/broken" / NEW / name).write_text(content)
    changing = {"train-0.jsonl": lines(["good"]), "train-1.jsonl": lines(["good too"], language="en")}
    packed = {
        "train-0.jsonl.gz": gzip.compress(lines(["whole"]).encode()),
        "train-1.jsonl.gz": gzip.compress(lines(["cut"]).encode())[:-9],
    }
    squeezed = {"train-0.jsonl.zst": pyarrow.compress(lines(["small"]).encode(), codec="zstd", asbytes=True)}
    for name, files in (("changing", changing), ("packed", packed), ("squeezed", squeezed)):
        (folder / "people" / name / NEW).mkdir(parents=True)
        for file, content in files.items():
            (folder / "people" / name / NEW / file).write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )
    (folder / "people/columns" / NEW).mkdir(parents=True)
    for number in range(3):
        path = folder / "people/columns" / NEW / f"train-{number}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"body": [f"row {n} of {number}" for n in range(500)]}), path)
    damaged = bytearray(path.read_bytes())
    damaged[1000:1200] = bytes(200)
    path.write_bytes(damaged)
    return folder


def read(address: str, tmp_path: Path, program: tuple[str, ...] = ("openspectra",), job: int = 0, **source):
    """Run the reading stage on the hub at `address`; return the finished process and the folder it wrote."""
    source = {"adapter": "hub", "path": "people/text", "revision": NEW, "text_field": "body"} | source
    limits = {"min_characters": 1, "max_document_bytes": 10_000, "num_parts": 1}
    config = ReadConfig.model_validate({"name": "web", "source": source} | limits)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    environment = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
    }
    command = [*program, "read", "--config", "config.json", "--job", str(job), "--out", "out", "--log", "out.log"]
    return run(*command, cwd=tmp_path, **environment), tmp_path / "out"


def documents(out: Path) -> list[tuple[str, str, str | None]]:
    """Return place, text and split of everything read, by place."""
    artifact = open_artifact(out, "source")
    found = iterate_raw(artifact.file("00000.arrow"))
    return sorted((document.place, document.text, document.split) for document in found)


def test_rows_keep_their_split_and_name_file_and_row(repository, tmp_path):
    with hub(repository) as address:
        finished, out = read(address, tmp_path, split={"train": "train", "valid": "validation"})
    assert finished.returncode == 0, finished.stdout
    expected = [
        (f"people/text/train/{file:05d}:{row}", text, "train")
        for file in range(3)
        for row, text in enumerate(texts(100, seed=file), 1)
    ]
    assert documents(out) == sorted([*expected, ("people/text/validation/00000:1", "held out", "valid")])


def test_compressed_files_are_read_and_idle_jobs_read_nothing(repository, tmp_path):
    with hub(repository) as address:
        for job, expected in ((0, ["small"]), (1, [])):
            (tmp_path / str(job)).mkdir()
            finished, out = read(address, tmp_path / str(job), path="people/squeezed", num_jobs=2, job=job)
            assert finished.returncode == 0, finished.stdout
            counts = open_artifact(out).manifest.metrics["counts"]
            assert counts == {"read": len(expected), "documents": len(expected), "skipped": {}}


def test_older_commit_gives_the_older_text(repository, tmp_path):
    with hub(repository) as address:
        finished, out = read(address, tmp_path, revision=OLD)
    assert finished.returncode == 0, finished.stdout
    assert documents(out) == [("people/text/train/00000:1", "as it was", None)]


def test_subset_and_field_are_taken(repository, tmp_path):
    with hub(repository) as address:
        finished, out = read(address, tmp_path, name="french", text_field="texte")
    assert finished.returncode == 0, finished.stdout
    assert [text for _, text, _ in documents(out)] == ["un", "deux"]


def test_where_takes_rows_and_jobs_share_the_files(repository, tmp_path):
    found = []
    with hub(repository) as address:
        for job in range(2):
            (tmp_path / str(job)).mkdir()
            finished, out = read(address, tmp_path / str(job), num_jobs=2, job=job, where={"meta.set": "b"})
            assert finished.returncode == 0, finished.stdout
            found += documents(out)
            assert {place.split("/")[3].split(":")[0] for place, _, _ in documents(out)} == [
                {"00000", "00002"},
                {"00001"},
            ][job]
    expected = [text for file in range(3) for text in texts(100, seed=file)[1::2]]
    assert sorted(text for _, text, _ in found) == sorted(expected)


def test_connection_lost_in_the_middle_changes_no_byte(repository, tmp_path):
    manifests, cuts = [], {"1.jsonl": 2}
    for broken in ({}, cuts):
        folder = tmp_path / str(len(manifests))
        folder.mkdir()
        with hub(repository, broken) as address:
            finished, out = read(address, folder)
        assert finished.returncode == 0, finished.stdout
        manifests.append((out / "manifest.json").read_bytes())
    assert cuts["1.jsonl"] < 0, "no answer was cut"
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ({"path": "people/none"}, 2, "corpus.sources.web: people/none: no such data set, or no access to it; correct path"),
        ({"revision": "c" * 40}, 2, f"people/text: Revision '{'c' * 40}' doesn't exist"),
        ({"split": "trian"}, 2, "people/text: Bad split: trian. Available splits: ['train', 'validation']; correct path"),
        ({"name": "german"}, 2, "people/text: BuilderConfig 'german' not found"),
        ({"text_field": "text"}, 2, "people/text/train/00000: no column 'text'; it has ['body', 'meta']"),
        ({"path": "people/changing"}, 2, "people/changing/train/00001: columns or types differ from those that the data set"),
        ({"path": "people/broken"}, 1, "people/broken/train/00001: the file is truncated or damaged"),
    ],
    ids=["data set", "commit", "split", "subset", "field", "schema", "damaged file"],
)  # fmt: skip
def test_what_the_hub_does_not_have_is_named_in_one_line(repository, tmp_path, source, code, message):
    with hub(repository) as address:
        finished, out = read(address, tmp_path, **source)
    assert (finished.returncode, finished.stdout.count("\n")) == (code, 1), finished.stdout
    assert finished.stdout.startswith("openspectra: ") and message in finished.stdout
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("name", "file", "kept"),
    [
        ("broken", 1, ["good", "too"]),
        ("packed", 1, ["whole"]),
        ("columns", 2, [f"row {n} of {file}" for file in range(2) for n in range(500)]),
    ],
)
def test_damaged_file_can_be_skipped_and_the_others_are_read(repository, tmp_path, name, file, kept):
    with hub(repository) as address:
        finished, out = read(address, tmp_path, path=f"people/{name}", dirty={"damaged_file": "skip"})
    assert finished.returncode == 0, finished.stdout
    assert sorted(text for _, text, _ in documents(out)) == sorted(kept)
    (skipped,) = csv.DictReader((out / "skipped.csv").open())
    assert (skipped["place"], skipped["problem"]) == (f"people/{name}/train/{file:05d}", "damaged_file")
    assert skipped["cause"] and str(tmp_path) not in skipped["cause"]


def test_file_that_the_hub_refuses_is_no_lost_network(repository, tmp_path):
    with hub(repository, refused="1.jsonl") as address:
        finished, out = read(address, tmp_path)
    assert (finished.returncode, finished.stdout.count("\n")) == (2, 1), finished.stdout
    assert "corpus.sources.web: people/text/train/00001: the hub refuses it (" in finished.stdout
    assert not list(out.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [None, {"1.jsonl": 10**6}], ids=["nobody answers", "every answer breaks off"])
def test_network_that_stays_away_ends_in_one_line_and_leaves_nothing(repository, tmp_path, cuts):
    patience = "import datasets; datasets.config.STREAMING_READ_MAX_RETRIES = 1; datasets.config.STREAMING_READ_RETRY_INTERVAL = 0"
    program = (sys.executable, "-c", f"{patience}; from openspectra.cli import main; main()")
    with hub(repository, cuts) as address:
        finished, out = read(address if cuts else "http://127.0.0.1:9", tmp_path, program)
    assert finished.returncode == 1, finished.stdout
    message = finished.stdout.splitlines()[
        -1
    ]  # after those of the libraries, which were imported before the log was open
    assert "the hub cannot be reached (" in message
    assert "run the same command again where there is a network" in message
    assert not list(out.iterdir())
