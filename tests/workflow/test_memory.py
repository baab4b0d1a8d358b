"""Every data stage stays under 1 GB, whatever the text looks like: many copies, many short documents, large ones."""

import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from conftest import copy_project, run

LIMIT_BYTES = 1_000_000_000
STUDY = {
    "base": "tiny",
    "corpus": {
        "sources": {
            name: {"adapter": "files", "files": [f"{name}.*"]} for name in ("copies", "short", "large", "coded")
        },
        "valid_fraction": 0.05,
        "test_fraction": 0.05,
    },
    "tokenizer": {"vocab_size": 300},
    "evaluation": None,
}
MANY_FLUSHES = """
import sys
from pathlib import Path
from openspectra.data import documents
documents.BUFFER_BYTES = 300_000
writer = documents.BucketWriter(Path(sys.argv[1]), 300)
for number in range(200_000):
    hash = documents.hash_of(str(number).encode())
    writer.add(documents.RawDocument(hash, "text " * 20, "source", f"file:{number}", None))
writer.close()
"""


MEASURE = """
import os, resource, subprocess, sys
finished = subprocess.run(sys.argv[1:], stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(finished.returncode)
"""
"""Between the test and what it measures: a process begins with the memory of the one that started it."""


def peak_bytes(*command: str, cwd) -> int:
    """Run a command of Python and return the memory that it had at most."""
    measured = [sys.executable, "-c", MEASURE, sys.executable, *command]
    environment = os.environ | {"OPENSPECTRA_DATA": ""}
    return int(subprocess.run(measured, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.mark.slow
def test_every_data_stage_stays_under_a_gigabyte(tmp_path):
    project = copy_project(tmp_path / "project")
    (project / "studies/awkward.yaml").write_text(yaml.safe_dump(STUDY))
    data = project / "data"
    data.mkdir()
    with (data / "copies.jsonl").open("w") as file:
        file.write((json.dumps({"text": "the same " * 450}) + "\n") * 300_000)  # 1.2 GB of one document
    with (data / "short.jsonl").open("w") as file:
        file.writelines(f'{{"text": "{n // 1000:04d} {n % 1000:03d}"}}\n' for n in range(1_500_000))
    # 4.9 MB each, 64 in one row group, 16 of them different: tokenizing takes long
    rows = [f"{number % 16} " + "a large document " * 288_000 for number in range(64)]
    # a page is the least that can be decoded: by default one would hold all 64
    one_a_page = {"write_batch_size": 1, "use_dictionary": False}
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), data / "large.parquet", **one_a_page)
    pyarrow.parquet.write_table(pyarrow.table({"text": rows[:1] * 64}), data / "coded.parquet")  # once, and 64 numbers
    del rows
    results, openspectra = "results/awkward", ["-m", "openspectra.cli"]
    configs, tokenizer = f"{results}/configs", f"{results}/tokenizer"
    names = ["sources", "corpus", "corpus/parts", "tokenizer", "tokens/parts"]
    names += [f"sources/parts/{name}" for name in STUDY["corpus"]["sources"]]
    targets = [f"{configs}/{name}.json" for name in names]
    written = run("snakemake", *targets, "--config", "study=awkward", "--cores", "1", cwd=project)
    assert written.returncode == 0, written.stdout[-3000:]
    jobs = {name: f"{results}/sources/parts/{name}/0" for name in STUDY["corpus"]["sources"]}
    sources, part, corpus = f"{results}/sources", f"{results}/corpus/parts/0", f"{results}/corpus"
    commands = {
        f"read {name}": ["read", "--config", f"{configs}/sources/parts/{name}.json", "--out", out]
        for name, out in jobs.items()
    }
    commands |= {
        "sources": ["sources", "--config", f"{configs}/sources.json", "--out", sources, *jobs.values()],
        "part": ["part", "--config", f"{configs}/corpus/parts.json", "--sources", sources, "--out", part],
        "corpus": ["corpus", "--config", f"{configs}/corpus.json", "--sources", sources, "--out", corpus, part],
        "tokenizer": ["tokenizer", "--config", f"{configs}/tokenizer.json", "--corpus", corpus, "--out", tokenizer],
        "tokenize": [
            "tokenize", "--config", f"{configs}/tokens/parts.json", "--corpus-part", part, "--tokenizer", tokenizer,
            "--out", f"{results}/tokens/parts/0", "--threads", "2",
        ],
    }  # fmt: skip
    peaks = {name: peak_bytes(*openspectra, *command, cwd=project) for name, command in commands.items()}
    (tmp_path / "buckets").mkdir()
    peaks["300 buckets"] = peak_bytes("-c", MANY_FLUSHES, tmp_path / "buckets", cwd=project)
    print({name: f"{peak / 1e6:.0f} MB" for name, peak in peaks.items()})
    assert max(peaks.values()) < LIMIT_BYTES
    counts = json.loads((project / corpus / "manifest.json").read_bytes())["metrics"]["counts"]
    assert counts == {"read": 1_800_128, "kept": 1_500_017, "duplicates": 300_111, "skipped": {}}
