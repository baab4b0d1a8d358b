"""Exports as a part of a study: made by their rule, known to verify, repair, report and tracking."""

import csv
import json
from pathlib import Path

import pytest
from conftest import run, snakemake


def with_exports(project: Path, exports: dict[str, list[str]]) -> None:
    """Add exports to the tiny study of a project."""
    path = project / "studies/tiny.yaml"
    path.write_text(path.read_text() + f"exports: {json.dumps(exports)}\n")


def manifest(project: Path, name: str) -> dict:
    return json.loads((project / "results/tiny/exports" / name / "manifest.json").read_text())


def test_an_export_is_made_checked_and_made_again(tiny_copy):
    with_exports(tiny_copy, {"trilm": ["packed-1.6bit"]})
    missing = run("openspectra", "verify", "results/tiny", cwd=tiny_copy).stdout
    assert "exports/trilm/2L/packed-1.6bit/manifest.json: missing, the study has it" in missing
    made = snakemake(tiny_copy, "export")
    assert made.returncode == 0, made.stdout
    name = "trilm/2L/packed-1.6bit"
    export = manifest(tiny_copy, name)
    assert export["config"] == {"model": "trilm/2L", "format": "packed-1.6bit"}
    assert set(export["parents"]) == {"model", "tokens_valid", "evaluation_held_out"}
    assert export["metrics"]["round_trip_exact"] and export["metrics"]["perplexity_difference_percent"] == 0
    assert export["metrics"]["bits_per_weight_stored"] < 1.62  # two scales of a small matrix are 0.004 bits a weight
    card = (tiny_copy / "results/tiny/exports" / name / "README.md").read_text()
    for part in ("`trilm/2L` of the study `tiny`", "| stdlib | Python-2.0 |", "| held_out | minimal_pairs | acc |"):
        assert part in card
    verified = run("openspectra", "verify", "results/tiny/exports", cwd=tiny_copy)
    assert verified.returncode == 0, verified.stdout
    weights = tiny_copy / "results/tiny/exports" / name / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    planned = snakemake(tiny_copy, "-n", "export")
    assert "model.safetensors: its sha256 differs" in planned.stdout and "export_model      1" in planned.stdout
    refused = run("openspectra", "generate", f"results/tiny/exports/{name}", "def", cwd=tiny_copy)
    assert refused.returncode == 1 and refused.stdout.count("\n") == 1
    assert "model.safetensors: its sha256 differs" in refused.stdout


@pytest.mark.slow
def test_exports_reach_the_page_and_tracking_and_give_text(tiny_copy):
    import mlflow

    forms = {f"quantlm/2L-{bits}bit": ["gptq"] for bits in (3, 4, 6, 8)} | {"floatlm": ["gguf-f16", "transformers"]}
    with_exports(tiny_copy, forms)
    made = snakemake(tiny_copy)
    assert made.returncode == 0, made.stdout
    with (tiny_copy / "reports/tiny/exports.csv").open() as file:
        rows = {f"{row['model']}/{row['format']}": row for row in csv.DictReader(file)}
    assert set(rows) == {f"{model}/{form}" for model in forms for form in forms[model] if "/" in model} | {
        "floatlm/2L/gguf-f16",
        "floatlm/2L/transformers",
    }
    for name, row in rows.items():
        assert (row["round_trip_exact"] == "True") == ("gguf" not in name), name
        assert abs(float(row["perplexity_difference_percent"])) < 0.02
    for name in ("quantlm/2L-4bit/gptq", "quantlm/2L-6bit/gptq", "floatlm/2L/gguf-f16", "floatlm/2L/transformers"):
        said = run(
            "openspectra", "generate", f"results/tiny/exports/{name}", "def main(", "--tokens", "4", cwd=tiny_copy
        )
        assert said.returncode == 0 and said.stdout.startswith("def main("), said.stdout
        assert "4 tokens:" in said.stdout.splitlines()[-1]
    client = mlflow.MlflowClient(f"sqlite:///{tiny_copy}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    tracked = client.search_runs([experiment.experiment_id], "tags.kind = 'export'", max_results=100)
    assert {each.info.run_name for each in tracked} == {f"exports/{name}" for name in rows}
    again = snakemake(tiny_copy)
    assert "Nothing to be done" in again.stdout
