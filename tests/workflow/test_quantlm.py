"""The QuantLMs of a trained model against the reference GPTQ, plain rounding and the mere cast to float16."""

import copy
import re

import numpy as np
import pytest
from conftest import snakemake
from reference_gptq import gptq_model
from test_tiny_study import edit_study, planned

from openspectra.artifacts import FINISHED, open_artifact, verify_tree
from openspectra.data.order import sequence_at
from openspectra.data.tokens import Tokens
from openspectra.quantization.calibration import draw_calibration
from openspectra.quantization.config import QuantizeConfig

RESULTS = "results/tiny"
FACTOR = 2
"""KL divergences are compared within it."""


def validation_text(folder, length: int) -> np.ndarray:
    tokens = Tokens(open_artifact(folder / "tokens/valid"))
    available = tokens.num_sequences(length, "")
    return tokens.sequences(sequence_at(range(min(16, available)), available, 7), length)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_quantlm_is_as_near_to_its_floatlm_as_the_reference_gptq(tiny, tmp_path, bits):
    from openspectra.quantization.divergence import divergences, load_float32, rounded

    folder = tiny / RESULTS
    artifact = open_artifact(folder / f"quantlm/2L-{bits}bit")
    config, metrics = QuantizeConfig(**artifact.manifest.config), artifact.manifest.metrics
    floatlm, sequences = (
        load_float32(folder / "floatlm/2L"),
        validation_text(folder, config.calibration_sequence_length),
    )
    samples = draw_calibration(config, Tokens(open_artifact(folder / "tokens/train")), tmp_path / "calibration.csv")
    reference = gptq_model(floatlm, samples, bits, config.group_size, config.damp_percent)
    rounding, half = rounded(copy.deepcopy(floatlm), bits, config.group_size), copy.deepcopy(floatlm).half().float()
    models = [load_float32(artifact.folder), reference, rounding, half]
    kl, of_reference, of_rounding, of_half = (kl for kl, _ in divergences(floatlm, models, sequences))
    assert 0 < kl < FACTOR * of_reference and of_reference < FACTOR * kl
    assert kl < of_rounding
    assert metrics["kl"] == pytest.approx(kl, rel=0.5) and metrics["rounding_kl"] == pytest.approx(of_rounding, rel=0.5)
    assert of_half < kl  # the floor of every QuantLM, which is stored in float16
    rows = artifact.rows("layers.csv")
    assert len(rows) == 14 and all(float(row["loss"]) > 0 and row["retries"] == "0" for row in rows)


@pytest.mark.slow
def test_checkpoints_are_quantized_where_the_study_says_so_and_drawn(tiny_copy):
    trajectory = "  trajectory: {steps: [4, 16], bits: [4]}\nevaluation:\n"
    edit_study(tiny_copy, "evaluation:\n", trajectory)
    before = (tiny_copy / RESULTS / "quantlm/2L-4bit/manifest.json").read_bytes()
    jobs = planned(snakemake(tiny_copy, "-n").stdout)
    assert (jobs["publish_checkpoint"], jobs["quantize_model"]) == (2, 1)
    finished = snakemake(tiny_copy)
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert f"nothing is left to do, in {RESULTS}/quantlm/2L-4bit" in finished.stdout
    assert (tiny_copy / RESULTS / "quantlm/2L-4bit/manifest.json").read_bytes() == before
    added = {}
    for step, name in ((4, "2L@4"), (16, "2L@16"), (40, "2L")):
        metrics = open_artifact(tiny_copy / RESULTS / f"quantlm/{name}-4bit").manifest.metrics
        assert metrics["tokens_seen"] == step * 4 * 128
        added[step] = metrics["added_loss"]
    assert verify_tree(tiny_copy / RESULTS)
    page = (tiny_copy / "reports/tiny/index.html").read_text(encoding="utf-8")
    assert "Loss added by quantization over training" in page and "quantization_2L" in page
    table = (tiny_copy / "reports/tiny/quantization.csv").read_text().splitlines()
    ids = [line.partition(",")[0] for line in table[1:]]
    assert ids == [*(f"quantlm/2L-{bits}bit" for bits in (8, 6, 4, 3)), "quantlm/2L@4-4bit", "quantlm/2L@16-4bit"]
    assert "Nothing to be done" in snakemake(tiny_copy).stdout


def test_a_width_that_is_lost_or_changed_is_made_alone(tiny_copy):
    """In a job that makes four: the others keep their bytes, and none of what follows them is computed again."""
    folder = tiny_copy / RESULTS / "quantlm"
    before = {path: path.read_bytes() for path in folder.glob("*/manifest.json")}
    (folder / "2L-6bit/manifest.json").unlink()
    (folder / "2L-6bit" / FINISHED).unlink()
    finished = snakemake(tiny_copy, "evaluate")
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert {path: path.read_bytes() for path in folder.glob("*/manifest.json")} == before
    assert re.findall(r"^quantize: done, in \S+/quantlm/(\S+)$", finished.stdout, re.MULTILINE) == ["2L-6bit"]
    assert not re.findall(r"^evaluate: done", finished.stdout, re.MULTILINE)
