"""The whole DAG on the tiny study: what it makes, what reruns when, and what a damaged or bad input does."""

import csv
import hashlib
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, copy_project, run, snakemake

from openspectra.artifacts import open_artifact, verify_tree
from openspectra.data.tokenizer import TOKENIZER_FILES, load_tokenizer
from openspectra.data.tokens import Tokens
from openspectra.strict_yaml import read_yaml
from openspectra.training.batches import StepData
from openspectra.training.config import PretrainConfig
from openspectra.training.world import World

MODELS = ("floatlm/2L", "trilm/2L", "quantlm/2L-8bit", "quantlm/2L-6bit", "quantlm/2L-4bit", "quantlm/2L-3bit")


def planned(output: str) -> dict[str, int]:
    """Return how many jobs of each rule a dry run lists."""
    rows = re.findall(r"^(\w+)\s+(\d+)$", output.split("Job stats:")[-1].split("Reasons:")[0], re.MULTILINE)
    return {rule: int(count) for rule, count in rows if rule not in {"total", "all"}}


def hashes(project: Path) -> dict[str, str]:
    """Return the sha256 of every manifest and every file it lists, by path."""
    artifacts = [*verify_tree(project / "results" / "tiny"), *verify_tree(project / "reports" / "tiny")]
    files = [artifact.folder / r.path for artifact in artifacts for r in artifact.manifest.files]
    files += [artifact.folder / "manifest.json" for artifact in artifacts]
    return {str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def edit_study(project: Path, old: str, new: str, study: str = "tiny") -> None:
    path = project / f"studies/{study}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_every_model_is_trained_evaluated_and_reported(tiny):
    for model in MODELS:
        metrics = json.loads((tiny / "results/tiny" / model / "manifest.json").read_text())["metrics"]
        assert metrics["num_parameters"] == 459_392
        assert (tiny / "results/tiny/evaluation" / model / "held_out" / "scores.csv").is_file()
    with (tiny / "reports/tiny/models.csv").open() as file:
        assert {row["model_id"] for row in csv.DictReader(file)} == set(MODELS)
    html = (tiny / "reports/tiny/index.html").read_text()
    assert all(model in html for model in MODELS)
    assert "one training run" in html


def test_losses_fall(tiny):
    for family in ("floatlm", "trilm"):
        with (tiny / f"results/tiny/{family}/2L/valid.csv").open() as file:
            losses = [float(row["valid_loss"]) for row in csv.DictReader(file)]
        assert losses[-1] < losses[0] < 6.3  # the loss of a uniform guess over 512 tokens is 6.24 nats


def test_verify_and_why_follow_the_lineage(tiny):
    verified = run("openspectra", "verify", "results/tiny", cwd=tiny)
    assert verified.returncode == 0, verified.stdout
    told = run("openspectra", "why", "results/tiny/evaluation/quantlm/2L-4bit/held_out", cwd=tiny).stdout
    for part in ("quantlm/2L-4bit  [quantize", "floatlm/2L  [pretrain", "tokens/train  [tokens", "corpus  [corpus"):
        assert part in told


def test_text_of_a_step_is_the_text_that_was_read(tiny):
    code = (
        "import sys; from openspectra import cli; cli.app(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'pandas', 'datasets'} & set(sys.modules), 'too slow: a second is the limit'"
    )
    arguments = ("step", "tiny", "7")
    told = run(sys.executable, "-c", code, *arguments, cwd=tiny)
    assert told.returncode == 0, told.stdout
    assert told.stdout.startswith("step 7 of 40: 4 sequences of 128 tokens")
    config = PretrainConfig.model_validate_json((tiny / "results/tiny/configs/trilm/2L.json").read_text())
    tokens = Tokens(open_artifact(tiny / "results/tiny/tokens/train"))
    decoder = load_tokenizer(open_artifact(tiny / "results/tiny/tokenizer"))
    (batch,) = itertools.islice(StepData(config, tokens, 6, World()), 1)  # the seventh update starts from step 6
    assert len(batch) == 4
    for sample in batch:
        assert decoder.decode(sample.tolist(), skip_special_tokens=False) in told.stdout
    beyond = run("openspectra", *arguments[:-1], "41", cwd=tiny)
    assert beyond.returncode == 2
    assert "step: floatlm/2L has steps 1 to 40; got 41" in beyond.stdout


def test_mlflow_holds_one_run_per_artifact(tiny):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tiny}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    artifacts = [*verify_tree(tiny / "results/tiny"), *verify_tree(tiny / "reports/tiny")]
    jobs = ("source", "sources", "part", "token_part")  # the shares of parallel jobs: what they add up to is a run
    assert len(runs) == sum(artifact.manifest.stage not in jobs for artifact in artifacts)
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_loaders_of_the_outside_world_take_the_models(tiny):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for model_id in MODELS:
        folder = tiny / "results/tiny" / model_id
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = AutoTokenizer.from_pretrained(folder)("def main():", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert torch.isfinite(model(ids).logits).all()
        for name, weight in model.state_dict().items():
            if "_proj" in name:
                check_states(model_id, name, weight)
    for name in TOKENIZER_FILES:  # beside packed weights too
        content = (tiny / "results/tiny/tokenizer" / name).read_bytes()
        copies = [path for path in (tiny / "results/tiny").rglob(name) if path.parent.name != "configs"]
        assert len(copies) > len(MODELS) and all(path.read_bytes() == content for path in copies)


def check_states(model_id: str, name: str, weight) -> None:
    """A TriLM matrix has one magnitude per scale; a b-bit row has at most 2^b values per group of 128."""
    if model_id.startswith("trilm"):
        magnitudes = weight.abs().unique()
        assert 0 < (magnitudes > 0).sum() <= 2, name
    elif model_id.startswith("quantlm"):
        bits = int(re.search(r"(\d)bit", model_id)[1])
        group = 128 if bits < 5 else weight.shape[1]
        for row in weight[:8]:
            assert all(len(part.unique()) <= 2**bits for part in row.split(group)), name


def test_second_run_does_nothing(tiny):
    again = snakemake(tiny)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout


@pytest.mark.slow
def test_snakemake_s_own_report_holds_page_and_tables_with_captions(tiny_copy):
    made = snakemake(tiny_copy, "--report", "report.html")
    assert made.returncode == 0, made.stdout[-3000:]
    text = (tiny_copy / "report.html").read_text()
    for name in ("index.html", "models.csv", "scores.csv", "gaps.csv"):
        assert f"reports/tiny/{name}" in text
    assert "every model with sizes, losses and scores" in text and "one row per model, sizes and test loss" in text
    assert '"Page"' in text and '"Tables"' in text


def test_changed_task_list_reruns_evaluation_and_report_only(tiny_copy):
    edit_study(tiny_copy, "[held_out_text, cloze, continuation, minimal_pairs]", "[held_out_text, cloze]")
    jobs = planned(snakemake(tiny_copy, "-n").stdout)
    assert jobs == {"write_config": 1, "evaluate_model": 1, "render_report": 1, "track_artifacts": 1}


def test_changed_comment_makes_only_the_page_again(tiny_copy):
    """It may be an assumption, which the page lists."""
    edit_study(tiny_copy, "seed: 1\ncorpus", "# another comment\nseed: 1\ncorpus")
    assert planned(snakemake(tiny_copy, "-n").stdout) == {"render_report": 1, "track_artifacts": 1}


def test_changed_rate_reruns_that_chain_from_step_0(tiny_copy):
    edit_study(tiny_copy, "peak_lr: {2L: 8e-3}", "peak_lr: {2L: 7e-3}")
    jobs = planned(snakemake(tiny_copy, "-n").stdout)
    assert jobs == {
        "write_config": 1,
        "pretrain_model": 1,
        "evaluate_model": 1,
        "render_report": 1,
        "track_artifacts": 1,
    }
    before = hashes(tiny_copy)
    finished = snakemake(tiny_copy, "pretrain")
    assert finished.returncode == 0, finished.stdout[-3000:]
    log = (tiny_copy / "logs/tiny/pretrain_model/trilm/2L.log").read_text()
    assert "starts at step 0 in a new checkpoint folder: config.peak_lr, config.peak_lr_after_drop differ" in log
    after = hashes_of_models(tiny_copy)
    assert after["floatlm/2L"] == before["results/tiny/floatlm/2L/manifest.json"]
    assert after["trilm/2L"] != before["results/tiny/trilm/2L/manifest.json"]
    assert len(list((tiny_copy / "results/tiny/trilm/2L/checkpoints").iterdir())) == 1


def hashes_of_models(project: Path) -> dict[str, str]:
    folder = project / "results/tiny"
    return {m: hashlib.sha256((folder / m / "manifest.json").read_bytes()).hexdigest() for m in MODELS}


def test_forced_quantization_redoes_what_follows_and_nothing_upstream(tiny_copy):
    before = hashes(tiny_copy)
    jobs = planned(snakemake(tiny_copy, "--forcerun", "quantize_model", "-n").stdout)
    assert jobs == {"quantize_model": 1, "evaluate_model": 1, "render_report": 1, "track_artifacts": 1}
    one = "results/tiny/quantlm/2L-4bit/manifest.json"
    finished = snakemake(tiny_copy, "--forcerun", "quantize_model", "--until", "quantize_model", one)
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert "quantize: done, in results/tiny/quantlm/2L-4bit" in finished.stdout
    assert hashlib.sha256((tiny_copy / one).read_bytes()).hexdigest() == before[one]  # bit for bit again


@pytest.mark.parametrize("target", ["corpus", "tokens", "pretrain", "quantize", "evaluate", "report"])
def test_stage_targets_exist_and_are_up_to_date(tiny, target):
    finished = snakemake(tiny, "-n", target)
    assert finished.returncode == 0
    assert "Nothing to be done" in finished.stdout


def test_plain_lm_eval_gives_the_same_score(tiny, tmp_path):
    model = "results/tiny/trilm/2L"
    settings = f"pretrained={model},dtype=float32,softmax_dtype=float32"
    finished = run(
        *("lm_eval", "--model", "hf", "--model_args", settings, "--include_path", "results/tiny/tasks"),
        *("--tasks", "continuation", "--batch_size", "16", "--device", "cpu"),
        *("--output_path", str(tmp_path / "scores.json")),
        cwd=tiny,
        OMP_NUM_THREADS="1",
    )
    assert finished.returncode == 0, finished.stdout[-3000:]
    theirs = json.loads(next(tmp_path.glob("**/*.json")).read_text())["results"]
    with (tiny / "results/tiny/evaluation/trilm/2L/held_out/scores.csv").open() as file:
        ours = {(row["task"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    for metric in ("acc", "acc_norm"):
        assert ours["continuation", metric] == theirs["continuation"][f"{metric},none"]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "flip" else content[: len(content) // 2])


@pytest.mark.parametrize(
    ("how", "damaged", "stage"),
    [
        ("flip", "tokens/parts/0/train-00000.bin", "pretrain"),
        ("truncate", "floatlm/2L/model.safetensors", "quantize"),
        ("flip", "trilm/2L/model.safetensors", "evaluate"),
    ],
)
def test_damaged_artifact_stops_its_reader(tiny_copy, how, damaged, stage):
    results = tiny_copy / "results/tiny"
    damage(results / damaged, how)
    inputs = {
        "pretrain": "--config {r}/configs/trilm/2L.json --train {r}/tokens/train --valid {r}/tokens/valid"
        " --tokenizer {r}/tokenizer --fresh",
        "quantize": "--config {r}/configs/quantlm/2L-4bit.json --model {r}/floatlm/2L --train {r}/tokens/train"
        " --valid {r}/tokens/valid",
        "evaluate": "--config {r}/configs/evaluation/held_out.json --model {r}/trilm/2L --tasks {r}/tasks",
    }[stage]
    out = tiny_copy / "new"
    finished = run("openspectra", stage, *inputs.format(r=results).split(), "--out", str(out), cwd=tiny_copy)
    assert finished.returncode == 1, finished.stdout
    assert damaged in finished.stdout
    assert "run the same command again" in finished.stdout
    assert "Traceback" not in finished.stdout
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrain --config none.json --train t --valid v --tokenizer k --out o", "none.json: no such file"),
        (
            "quantize --config bad.json --model m --train t --valid v --out o",
            "bad.json: bits: input should be 2, 3, 4, 5, 6, 7 or 8; got 9",
        ),
        ("check studies/none.yaml", "studies/none.yaml: no such file"),
        ("pretrain --confg x", "No such option"),
    ],
)
def test_bad_arguments_exit_with_2(tiny, tmp_path, arguments, message):
    config = json.loads((tiny / "results/tiny/configs/quantlm/2L-4bit.json").read_text()) | {"bits": 9}
    (tmp_path / "bad.json").write_text(json.dumps(config))
    finished = run("openspectra", *arguments.split(), cwd=tmp_path)
    assert finished.returncode == 2, finished.stdout
    assert message in finished.stdout
    assert "Traceback" not in finished.stdout
    assert not (tmp_path / "o").exists()


def test_test_split_is_refused_by_training(tiny_copy):
    results = tiny_copy / "results/tiny"
    part, parents = f"{tiny_copy}/part", ("--tokenizer", f"{results}/tokenizer")
    (tiny_copy / "part.json").write_text(json.dumps({"splits": ["test"]}))
    (tiny_copy / "test.json").write_text(json.dumps({"split": "test"}))
    for command in (
        ("tokenize", "--config", "part.json", "--corpus-part", f"{results}/corpus/parts/0", "--out", part),
        ("tokens", "--config", "test.json", "--out", f"{tiny_copy}/test", part),
    ):
        made = run("openspectra", *command, *parents, cwd=tiny_copy)
        assert made.returncode == 0, made.stdout
    inputs = ("--config", f"{results}/configs/trilm/2L.json", "--train", f"{results}/tokens/train")
    inputs += ("--valid", f"{tiny_copy}/test", "--tokenizer", f"{results}/tokenizer", "--out", "x")
    finished = run("openspectra", "pretrain", *inputs, cwd=tiny_copy)
    assert finished.returncode == 2
    assert "holds split `test`; give the valid split" in finished.stdout


def test_bad_study_stops_the_workflow_before_any_file(tmp_path):
    project = copy_project(tmp_path / "project")
    edit_study(project, "bits: [8, 6, 4, 3]", "bits: [8, 6, 9, 3]")
    finished = snakemake(project)
    assert finished.returncode != 0
    assert "studies/tiny.yaml: quantization.bits.2: input should be 2, 3, 4, 5, 6, 7 or 8; got 9" in finished.stdout
    assert "Traceback" not in finished.stdout
    assert not (project / "results").exists()


def test_size_that_does_not_exist_has_no_rule(tiny):
    finished = snakemake(tiny, "results/tiny/trilm/9B/manifest.json")
    assert finished.returncode != 0
    assert "results/tiny/trilm/9B/manifest.json" in finished.stdout


def test_lost_manifest_comes_back_from_the_checkpoint_without_training(tiny_copy):
    manifest = tiny_copy / "results/tiny/trilm/2L/manifest.json"
    before = manifest.read_bytes()
    manifest.unlink()
    finished = snakemake(tiny_copy, "results/tiny/trilm/2L/manifest.json")
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert manifest.read_bytes() == before
    assert "continues from step 40 of 40" in (tiny_copy / "logs/tiny/pretrain_model/trilm/2L.log").read_text()


@pytest.mark.parametrize("study", sorted(path.stem for path in (ROOT / "studies").glob("*.yaml")))
def test_dry_run_of_every_study(tmp_path, study):
    project = copy_project(tmp_path / "project")
    finished = run("snakemake", "--cores", "2", "-n", "--config", f"study={study}", cwd=project)
    assert finished.returncode == 0, finished.stdout[-3000:]


def test_slurm_profile_plans_the_paper(tmp_path):
    project = copy_project(tmp_path / "project")
    finished = run("snakemake", "--profile", "slurm", "-n", cwd=project)
    assert finished.returncode == 0, finished.stdout[-3000:]
    jobs = planned(finished.stdout)
    assert (jobs["pretrain_model"], jobs["quantize_model"]) == (18, 108)  # three calibration sets for each of 36
    assert "trilm/99M: 99,762,688 parameters, peak rate 0.0024 -> 0.0015" in finished.stdout
    assert not (project / "results").exists()


def test_workflow_passes_lint(tmp_path):
    project = copy_project(tmp_path / "project")
    finished = run("snakemake", "--lint", cwd=project)
    assert "Congratulations" in finished.stdout, finished.stdout


def test_no_rule_has_retries():
    """A rule's retries are multiplied inside Slurm jobs; they belong in the profile."""
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        assert "retries:" not in path.read_text(), path
    assert read_yaml(ROOT / "slurm/config.yaml")["retries"] == 1
    assert not (ROOT / "profiles" / "default").exists()
