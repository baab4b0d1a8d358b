"""What each data stage costs, as a command: megabytes of text (or tokens) per CPU second, and its peak memory.

    python benchmarks/data_stages.py --tokenizer data/tokenizer/20B_tokenizer.json data/corpora/*/train.parquet

The text becomes a file in SlimPajama's layout (`.jsonl.zst` with the name of the subset), half of it in the subset that
is read. The figures are those behind "The 300B-token run on paper" in docs/data.md; memory is that of the process alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from machine import processor

from openspectra.artifacts import open_artifact, sha256_of
from openspectra.study import load_study, resolved_configs

HERE = Path(__file__).parent
SUBSETS = ("RedPajamaC4", "RedPajamaBook")
TOKENS = 2**29
"""Tokens of the ready file: 1 GB."""
PROGRAM = """
from pathlib import Path
from openspectra.cli import main
try:
    main()
finally:  # not ru_maxrss, which begins with what the parent held
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""
"""The command line, which prints its peak memory in kB when it ends."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="Parquet files with a column `text`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the tokenizer.json of GPT-NeoX-20B")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options)
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, tokenizers {version('tokenizers')}",
        "",
        "| stage | input | CPU s | MB per CPU s | wall s | peak memory, MB |",
    ]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |", *rows]
    text = "\n".join(lines) + "\n"
    print(text)
    (HERE / "results/data-stages.md").write_text(text)


def measure(folder: Path, options: argparse.Namespace) -> list[str]:
    """Run every stage in `folder` and return the rows of the table."""
    size, half = write_text(folder / "data", options)
    write_studies(folder, options)
    text, other, ready = (configs_of(folder, name) for name in ("text", "other", "ready"))
    tokens = np.random.default_rng(0).integers(1, 50_000, TOKENS, dtype="<u2")
    tokens[::1000] = 0  # end of text: 1,000 tokens a document
    tokens.tofile(folder / "data/tokens.bin")
    os.environ["OPENSPECTRA_DATA"] = str(folder / "data")
    os.chdir(folder)
    tokenize = [
        "tokenize",
        "--config",
        text["tokens/parts"],
        "--corpus-part",
        "part",
        "--tokenizer",
        "tokenizer",
    ]
    stages = [
        ("read, one of two subsets", size, ["read", "--config", text["sources/parts/kept"], "--out", "source"]),
        ("read, another subset", size, ["read", "--config", other["sources/parts/other"], "--out", "other"]),
        ("", 0, ["sources", "--config", text["sources"], "--out", "sources", "source"]),
        ("de-duplicate and divide", half, ["part", "--config", text["corpus/parts"], "--sources", "sources", "--out", "part"]),
        ("", 0, ["corpus", "--config", text["corpus"], "--sources", "sources", "--out", "corpus", "part"]),
        ("", 0, ["tokenizer", "--config", text["tokenizer"], "--corpus", "corpus", "--out", "tokenizer"]),
        ("tokenize, 2 threads", half, [*tokenize, "--threads", "2", "--out", "tokens"]),
        ("search for benchmark items", half, ["contamination", "--config", text["contamination"], "--corpus", "corpus", "--out", "found"]),
        ("index ready tokens", TOKENS * 2, ["tokenize", "--config", ready["tokens/parts"], "--tokenizer", "tokenizer", "--out", "ready"]),
    ]  # fmt: skip
    rows = []
    for name, num_bytes, command in stages:
        seconds, cpu_seconds, memory = run([*command, "--log", "log"])
        if name:
            rate = num_bytes / 1e6 / cpu_seconds
            rows.append(
                f"| {name} | {num_bytes / 1e6:,.0f} MB | {cpu_seconds:.1f} | {rate:,.0f} | {seconds:.1f} | {memory:,.0f} |"
            )
    metrics = open_artifact(Path("tokens")).manifest.metrics["splits"]["train"]["sources"]["kept"]
    rows.append(f"\nBytes per token: {metrics['bytes'] / metrics['tokens']:.2f}")
    rows.append(f"Disk per byte of text: read {on_disk('source') / half:.2f}, divided {on_disk('part') / half:.2f}")
    rows.append(f"Disk per byte of tokens, indices: {on_disk('ready') / TOKENS / 2:.4f}")
    return rows


def write_text(data: Path, options: argparse.Namespace) -> tuple[int, int]:
    """Write the text and a benchmark into the data folder; return the bytes of all text and of the first subset."""
    texts = [text for path in options.files for text in pyarrow.parquet.read_table(path)["text"].to_pylist()]
    rows = [{"text": text, "meta": {"redpajama_set_name": SUBSETS[n % 2]}} for n, text in enumerate(texts)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    data.mkdir()
    (data / "a.jsonl.zst").write_bytes(pyarrow.compress(lines.encode(), codec="zstd", asbytes=True))
    (data / "tokenizer.json").write_bytes(options.tokenizer.read_bytes())
    items = [{"question": text[:500]} for text in texts[1::2]]  # of the other subset
    (data / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    sizes = [len(text.encode()) for text in texts]
    return sum(sizes), sum(sizes[::2])


def write_studies(folder: Path, options: argparse.Namespace) -> None:
    """Write studies of each subset of the text and of the ready tokens; all that no data stage reads is that of `tiny`."""
    (folder / "studies").mkdir()
    (folder / "studies/tiny.yaml").write_text((HERE.parent / "studies/tiny.yaml").read_text())
    source = {"adapter": "files", "files": ["a.jsonl.zst"]}
    sources = {
        name: source | {"where": {"meta.redpajama_set_name": value}}
        for name, value in (("kept", SUBSETS[0]), ("other", "none"))
    }
    tokenizer = {"file": "tokenizer.json", "vocab_size": 50_277}
    common = {"base": "tiny", "tokenizer": tokenizer, "evaluation": None}
    benchmarks = {"items": {"files": ["items.jsonl"]}}
    corpus = {"valid_fraction": 0.01, "test_fraction": 0.01, "benchmarks": benchmarks}
    ready = {
        "files": {"one": ["tokens.bin"]},
        "tokenizer_sha256": sha256_of(options.tokenizer),
        "dtype": "uint16",
        "valid_fraction": 0.001,
    }
    studies = {
        study: {"corpus": corpus | {"sources": {name: sources[name]}}}
        for study, name in (("text", "kept"), ("other", "other"))
    }
    studies["ready"] = {"corpus": None, "token_files": ready}
    for name, content in studies.items():
        (folder / f"studies/{name}.yaml").write_text(json.dumps(common | content))  # JSON is YAML


def configs_of(folder: Path, name: str) -> dict[str, str]:
    """Write the resolved configs of a study and return their paths by artifact."""
    paths = {}
    for number, (key, config) in enumerate(resolved_configs(load_study(folder / f"studies/{name}.yaml"), name).items()):
        paths[key] = str(folder / f"{name}-{number}.json")
        Path(paths[key]).write_text(config.model_dump_json())
    return paths


def run(arguments: list[str]) -> tuple[float, float, float]:
    """Run one command; return wall seconds, CPU seconds and peak memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments}: failed\n{Path('log').read_text()[-2000:]}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, int(output) / 1000


def on_disk(folder: str) -> int:
    return sum(record.bytes for record in open_artifact(Path(folder)).manifest.files)


if __name__ == "__main__":
    main()
