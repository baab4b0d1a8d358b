"""Weights kept on the way, and families that the tiny study does not train, go through the same stages as any model."""

import json
import shutil

import pytest
from conftest import run, snakemake


def test_a_checkpoint_is_quantized_and_evaluated(tiny_copy):
    targets = [
        f"results/tiny/evaluation/{model}/held_out/manifest.json" for model in ("quantlm/2L@16-4bit", "trilm/2L@8")
    ]
    finished = snakemake(tiny_copy, "--", *targets)
    assert finished.returncode == 0, finished.stdout
    perplexities = {}
    for model in ("quantlm/2L@16-4bit", "quantlm/2L-4bit", "trilm/2L@8", "trilm/2L"):
        manifest = json.loads((tiny_copy / f"results/tiny/evaluation/{model}/held_out/manifest.json").read_text())
        perplexities[model] = manifest["metrics"]["held_out_text/word_perplexity"]
    assert perplexities["quantlm/2L@16-4bit"] > perplexities["quantlm/2L-4bit"]  # after 16 of 40 steps
    assert perplexities["trilm/2L@8"] > perplexities["trilm/2L"]
    published = json.loads((tiny_copy / "results/tiny/trilm/2L@8/manifest.json").read_text())
    assert published["config"] == {"model_id": "trilm/2L@8", "family": "trilm", "step": 8}
    assert published["metrics"]["tokens_seen"] == 8 * 4 * 128
    refused = snakemake(tiny_copy, "-n", "--", "results/tiny/trilm/2L@9/manifest.json")
    assert refused.returncode != 0
    assert "trilm/2L@9: no weights are kept at this step; kept: [1, 2, 4, 8, 16, 20]" in refused.stdout


def test_verify_finds_swapped_repeated_and_altered_weights(tiny_copy):
    (folder,) = (path.parent for path in tiny_copy.glob("results/tiny/trilm/2L/checkpoints/*/run.json"))
    eight, sixteen, twenty = (folder / f"weights-{step:08d}.safetensors" for step in (8, 16, 20))
    aside = folder / "aside"
    eight.rename(aside)
    sixteen.rename(eight)
    aside.rename(sixteen)
    content = bytearray(twenty.read_bytes())
    content[5000] ^= 1
    twenty.write_bytes(content)
    shutil.copy(folder / "weights-00000002.safetensors", folder / "weights-00000001.safetensors")
    checked = run("openspectra", "verify", "results/tiny/trilm", cwd=tiny_copy)
    assert checked.returncode == 1
    for name, finding in (
        ("00000001", "holds the weights of step 2"),
        ("00000008", "holds the weights of step 16"),
        ("00000016", "holds the weights of step 8"),
        ("00000020", "differs from its sha256 in checkpoints.csv"),
    ):
        assert f"weights-{name}.safetensors: {finding}" in checked.stdout
    published = run(
        "openspectra", "checkpoint", "--model", "results/tiny/trilm/2L", "--step", "8", "--out", "eight", cwd=tiny_copy
    )
    assert published.returncode == 1
    assert "holds the weights of step 16" in published.stdout
    assert not (tiny_copy / "eight/manifest.json").exists()


@pytest.mark.parametrize("family", ["bilm", "bitnet", pytest.param("tbt_w2a2", marks=pytest.mark.slow)])
def test_other_families_are_trained_and_evaluated_by_the_same_path(tiny, tmp_path, family):
    results, out = tiny / "results/tiny", tmp_path / family / "2L"
    config = json.loads((results / "configs/trilm/2L.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"family": family, "model_id": f"{family}/2L"}))
    inputs = [f"--{name}={results}/{folder}" for name, folder in (("train", "tokens/train"), ("valid", "tokens/valid"))]
    trained = run(
        "openspectra",
        "pretrain",
        f"--config={tmp_path}/config.json",
        *inputs,
        f"--tokenizer={results}/tokenizer",
        f"--out={out}",
        cwd=tiny,
    )
    assert trained.returncode == 0, trained.stdout
    evaluated = run(
        "openspectra",
        "evaluate",
        f"--config={results}/configs/evaluation/held_out.json",
        f"--model={out}",
        f"--tasks={results}/tasks",
        f"--out={tmp_path}/evaluation",
        cwd=tiny,
    )
    assert evaluated.returncode == 0, evaluated.stdout
    losses = json.loads((out / "manifest.json").read_text())["metrics"]
    scores = json.loads((tmp_path / "evaluation/manifest.json").read_text())["metrics"]
    # untrained, the model would guess among 512 tokens: 6.24 nats; the evaluation must see the model that was trained
    assert losses["valid_loss"] < 6.1
    trilm = json.loads((results / "evaluation/trilm/2L/held_out/manifest.json").read_text())["metrics"]
    assert scores["held_out_text/bits_per_byte"] == pytest.approx(trilm["held_out_text/bits_per_byte"], rel=0.15)
