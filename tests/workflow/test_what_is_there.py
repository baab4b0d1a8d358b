"""A job that fails keeps nothing else from the page; suites of a model share a process and are made again one by one."""

import csv
import shutil

import pytest
from conftest import snakemake
from test_tiny_study import edit_study, planned

from openspectra.artifacts import open_artifact, write_artifact
from openspectra.quantization.config import QuantizeConfig

BROKEN = "results/tiny/quantlm/2L-3bit"
TRILM = "results/tiny/evaluation/trilm/2L"


def break_weights(project) -> None:
    """Put a model in place whose answers are no numbers: a whole artifact, so that its reader finds out."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = project / BROKEN
    shutil.copytree(folder, project / "aside")
    artifact = open_artifact(folder, "quantize")
    parents = {role: artifact.open_parent(parent) for role, parent in artifact.manifest.parents.items()}
    with write_artifact(folder, "quantize", QuantizeConfig(**artifact.manifest.config), parents) as draft:
        for record in artifact.manifest.files:
            target = draft.folder / record.path
            target.parent.mkdir(exist_ok=True)
            shutil.copy(project / "aside" / record.path, target)
        weights = load_file(project / "aside/model.safetensors")
        weights["lm_head.weight"] = torch.full_like(weights["lm_head.weight"], torch.nan)
        save_file(weights, draft.folder / "model.safetensors", {"format": "pt"})
        draft.metrics |= artifact.manifest.metrics


def test_a_failed_evaluation_is_a_hole_in_a_page_that_is_made_all_the_same(tiny_copy):
    break_weights(tiny_copy)
    failed = snakemake(tiny_copy, "--keep-going", "--rerun-triggers", "mtime")
    assert failed.returncode == 1
    assert "the page of what is there: reports/tiny/index.html" in failed.stdout
    page = (tiny_copy / "reports/tiny/index.html").read_text(encoding="utf-8")
    assert (
        "Not evaluated on suite held_out (held_out_text, cloze, continuation, minimal_pairs), 1 of 6: quantlm/2L-3bit."
        in page
    )
    assert "Failed: evaluation/quantlm/2L-3bit: quantlm/2L-3bit: held_out_text: " in page
    with (tiny_copy / "reports/tiny/models.csv").open(encoding="utf-8") as file:
        losses = {row["model_id"]: row["test_loss"] for row in csv.DictReader(file)}
    assert losses.pop("quantlm/2L-3bit") == "" and all(losses.values())
    shutil.rmtree(tiny_copy / BROKEN)
    shutil.move(tiny_copy / "aside", tiny_copy / BROKEN)  # whose evaluation was made before, and is older than the page
    jobs = planned(snakemake(tiny_copy, "-n", "--rerun-triggers", "mtime").stdout)
    assert jobs == {"evaluate_model": 1, "render_report": 1, "track_artifacts": 1}


@pytest.mark.slow
def test_a_new_suite_is_computed_alone_and_a_forced_one_anew(tiny_copy):
    edit_study(
        tiny_copy, "num_resamples: 200", "    few: {tasks: [cloze], batch_size: 4, dtype: float32}\nnum_resamples: 200"
    )
    held_out = (tiny_copy / TRILM / "held_out/manifest.json").read_bytes()
    assert planned(snakemake(tiny_copy, "-n").stdout)["evaluate_model"] == 1
    added = snakemake(tiny_copy, f"{TRILM}/few/manifest.json")
    assert added.returncode == 0, added.stdout[-3000:]
    assert f"nothing is left to do, in {TRILM}/held_out" in added.stdout
    assert f"done, in {TRILM}/few" in added.stdout
    assert (tiny_copy / TRILM / "held_out/manifest.json").read_bytes() == held_out
    forced = snakemake(tiny_copy, f"{TRILM}/few/manifest.json", "--forcerun", f"{TRILM}/held_out/manifest.json")
    assert f"done, in {TRILM}/held_out" in forced.stdout
    assert f"nothing is left to do, in {TRILM}/few" in forced.stdout
    assert (tiny_copy / TRILM / "held_out/manifest.json").read_bytes() == held_out
