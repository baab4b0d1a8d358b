"""GPTQ at its limits: what `check` refuses is what gptqmodel refuses, what fails all the same is told in one line, and
several QuantLMs in one process are made as each would be alone."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from conftest import in_namespace, run
from data_study import ROOT, DataStudy, corpus_of, study_of, texts

from openspectra.artifacts import FINISHED, MANIFEST, Artifact, open_artifact, write_artifact
from openspectra.data.tokens import Tokens
from openspectra.errors import ConfigError
from openspectra.evaluation.config import BUILT_TASKS
from openspectra.quantization.config import BLOCK, BLOCK_BITS, GROUP_SIZES, QuantizeConfig
from openspectra.quantization.rounding import round_to_nearest
from openspectra.strict_yaml import read_yaml
from openspectra.study import load_study

SAMPLING = {"num_calibration_samples": 8, "calibration_sequence_length": 32, "seed": 0}


class ModelConfig(QuantizeConfig):
    family: str = "floatlm"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with tokens and three random FloatLMs: `odd`, whose sides no block of 32 divides, `even`, and `broken`,
    in whose second block the matrices behind the second norm read infinities."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data").mkdir()
    lines = (json.dumps({"text": text}) + "\n" for text in texts(60))
    (folder / "data/a.jsonl").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENSPECTRA_DATA", str(folder / "data"))
        for split in ("valid", "train"):
            DataStudy(study_of(corpus=corpus_of()), folder).tokens(split)
    for name, hidden, intermediate in (("odd", 100, 204), ("even", 64, 96)):
        make_model(folder / name, hidden, intermediate, open_artifact(folder / "tokenizer"))
    make_model(folder / "broken", 64, 96, open_artifact(folder / "tokenizer"), last_norm=float("inf"))
    return folder


def test_two_models_at_a_time_are_compared(project, monkeypatch):
    """Three of 3.9B in float32 would be 48 GB, more than many GPUs have, at the end of hours of GPTQ."""
    from openspectra.quantization import divergence

    models, load = [], divergence.load_float32

    def counted(folder):
        assert sum(model() is not None for model in models) < 2
        models.append(weakref.ref(found := load(folder)))
        return found

    monkeypatch.setattr(divergence, "load_float32", counted)
    config = QuantizeConfig(model_id="quantlm/1L-3bit", bits=3, group_size=-1, **SAMPLING)
    found = divergence.compare(
        config, project / "even", project / "even", Tokens(open_artifact(project / "tokens/valid"))
    )
    assert len(models) == 3 and found["kl"] == found["added_loss"] == 0 < found["rounding_kl"]


def make_model(
    folder: Path, hidden: int, intermediate: int, tokenizer: Artifact, last_norm: float | None = None
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    layers = 2 if last_norm else 1
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    llama = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, vocab_size=384, max_position_embeddings=64))
    if last_norm:
        torch.nn.init.constant_(llama.model.layers[1].post_attention_layernorm.weight, last_norm)
    config = ModelConfig(model_id="quantlm/1L-8bit", bits=8, group_size=-1, **SAMPLING)
    with write_artifact(folder, "pretrain", config, {}) as draft:
        llama.save_pretrained(draft.folder)
        for record in tokenizer.manifest.files:
            (draft.folder / record.path).write_bytes(tokenizer.file(record.path).read_bytes())
        count = llama.num_parameters()
        draft.metrics |= {"num_parameters": count, "num_counted_parameters": count, "num_linear_parameters": 1}


def command(project: Path, model: str, bits: int, out: str, **keys: int) -> list[str]:
    """Return the command that quantizes a model of `project`."""
    config = QuantizeConfig(model_id=f"quantlm/1L-{bits}bit", bits=bits, group_size=-1, **SAMPLING | keys)
    (project / f"{bits}.json").write_text(config.model_dump_json())
    inputs = ["--model", model, "--train", "tokens/train", "--valid", "tokens/valid"]
    return [
        "openspectra",
        "quantize",
        "--config",
        f"{bits}.json",
        *inputs,
        "--out",
        out,
        "--log",
        f"{Path(out).name}.log",
    ]


KEPT = "1, 2, 4, 8, 16, 20 (training.checkpoints_per_run)."


def study_with(tmp_path: Path, **sections) -> Path:
    content = read_yaml(ROOT / "studies/tiny.yaml")
    for name, keys in sections.items():
        content[name] = content[name] | keys if name != "sizes" else keys
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


def batch(project: Path, *commands: list[str]) -> list[str]:
    """Return the command that runs several in one process."""
    return ["openspectra", "batch", *(" ".join(words[1:]) for words in commands)]


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(("bits", "group_size"), [(2, 8), (3, 8), (4, -1), (8, -1)])
def test_rounding_takes_the_nearest_of_few_values(bits, group_size):
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    rounded = round_to_nearest(weight, bits, group_size)
    width = group_size if group_size > 0 else 24
    for before, after in zip(weight.reshape(-1, width), rounded.reshape(-1, width), strict=True):
        step = 2 * before.abs().max() / (2**bits - 1)
        assert len(after.unique()) <= 2**bits
        assert (after - before).abs().max() <= step / 2 * 1.0001  # the largest too: it lies half a step outside
    assert torch.equal(round_to_nearest(rounded, bits, group_size)[1], rounded[1])


def test_one_process_makes_several_and_what_fails_keeps_none_of_the_others(project):
    """And makes again, with the same bytes, only what is missing, damaged or was made of something else."""
    broken = command(project, "broken", 4, "some/broken")
    made = [command(project, "even", bits, f"some/{bits}") for bits in (8, 2)]
    finished = run(*batch(project, broken, *made), cwd=project)
    assert finished.returncode == 1
    (line,) = [line for line in finished.stdout.splitlines() if line.startswith("openspectra: ")]
    assert line.startswith(
        "openspectra: quantlm/1L-4bit: model.layers.1.mlp.gate_proj: its inputs are no finite numbers"
    )
    assert not (project / "some/broken" / MANIFEST).exists()
    before = {name: files_of(project / "some" / name) for name in ("8", "2")}
    metrics = open_artifact(project / "some/2").manifest.metrics
    assert 0 < metrics["kl"] < metrics["rounding_kl"] and metrics["num_damping_retries"] == 0
    alone = run(*command(project, "even", 2, "alone/2"), cwd=project)
    assert alone.returncode == 0, alone.stdout
    ours, theirs = (open_artifact(project / name / "2").manifest.files for name in ("some", "alone"))
    assert ours == theirs  # as a process of its own makes it

    for name in ("8", "2"):
        (project / "some" / name / MANIFEST).unlink()  # as Snakemake does before a job
    (project / "some/8/layers.csv").write_text("damaged")
    again = run(*batch(project, *made), cwd=project)
    assert again.returncode == 0, again.stdout
    assert "nothing is left to do, in some/2" in again.stdout and "done, in some/8" in again.stdout
    assert {name: files_of(project / "some" / name) for name in ("8", "2")} == before


@pytest.mark.slow
def test_killed_quantization_goes_on_with_what_is_left_and_gives_the_same_bytes(project):
    commands = [command(project, "even", bits, f"whole/{bits}") for bits in (8, 4)]
    whole = run(*batch(project, *commands), cwd=project)
    assert whole.returncode == 0, whole.stdout
    commands = [command(project, "even", bits, f"killed/{bits}") for bits in (8, 4)]
    job = subprocess.Popen(batch(project, *commands), cwd=project, stderr=subprocess.DEVNULL)
    while not (project / "killed/4/.staging/gptq").exists():  # the second one writes
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert (project / "killed/8" / FINISHED).exists() and not (project / "killed/4" / MANIFEST).exists()
    again = run(*batch(project, *commands), cwd=project)
    assert again.returncode == 0, again.stdout
    assert "nothing is left to do, in killed/8" in again.stdout
    assert files_of(project / "killed") == files_of(project / "whole")


@pytest.mark.slow
def test_two_threads_change_nothing_but_the_order_of_sums(project):
    """Which shows in the last digits of the errors; a job of the workflow has the same threads everywhere."""
    commands = [[*command(project, "even", 4, f"threads/{count}"), "--threads", str(count)] for count in (1, 2)]
    for words in commands:
        finished = run(*words, cwd=project)
        assert finished.returncode == 0, finished.stdout
    one, two = (open_artifact(project / f"threads/{count}") for count in (1, 2))
    assert one.manifest.metrics == pytest.approx(two.manifest.metrics, rel=1e-3)
    errors = [[float(row["loss"]) for row in artifact.rows("layers.csv")] for artifact in (one, two)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


SHAPE = {"num_hidden_layers": 1, "num_attention_heads": 5}
FREE = {8: -1, 6: -1, 4: -1, 3: -1}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {
                "sizes": {"2L": {"hidden_size": 100, "intermediate_size": 224, **SHAPE}},
                "quantization": {"group_size": FREE},
            },
            [
                "sizes.2L.hidden_size: must be a multiple of 32 to be packed at 6 and 3 bits (quantization.bits); got 100."
            ],
        ),
        (
            {
                "sizes": {"2L": {"hidden_size": 160, "intermediate_size": 204, **SHAPE}},
                "quantization": {"group_size": FREE},
            },
            ["sizes.2L.intermediate_size: must be a multiple of 32 to be packed at 6 and 3 bits"],
        ),
        (
            {
                "sizes": {"2L": {"hidden_size": 100, "intermediate_size": 204, **SHAPE}},
                "quantization": {"group_size": FREE, "bits": [8, 4]},
            },
            [],
        ),
        (
            {"quantization": {"group_size": FREE | {4: 8}}},
            ["quantization.group_size.4: must be one of -1, 16, 32, 64, 128, 256, 512, 1024; got 8."],
        ),
        (
            {"quantization": {"trajectory": {"steps": [4, 9, 11], "bits": [4]}}},
            [f"quantization.trajectory.steps: no weights are kept at 9, 11; kept: {KEPT}"],
        ),
        (
            {"quantization": {"trajectory": {"steps": [4], "bits": [4, 2]}}},
            ["quantization: `group_size` needs an entry for every width in `bits`; got none for [2]."],
        ),
        (
            {"quantization": {"calibration_sequence_length": 129}},
            ["quantization.calibration_sequence_length: must be 11 to 128 tokens, training.sequence_length; got 129."],
        ),
        (
            {"quantization": {"calibration_sequence_length": 10}},
            ["quantization.calibration_sequence_length: must be 11 to 128 tokens"],
        ),
        (
            {"training": {"sequence_length": 64}, "quantization": {"calibration_sequence_length": 64}},
            ["training.sequence_length: must be at least 110 for task `minimal_pairs`"],
        ),
        (
            {
                "training": {"sequence_length": 64},
                "quantization": {"calibration_sequence_length": 64},
                "evaluation": {
                    "built_tasks": {
                        "seed": 1,
                        "num_documents": 5,
                        "document_characters": 600,
                        "num_items": 12,
                        "tasks": list(BUILT_TASKS),
                    }
                },
            },
            [
                "training.sequence_length: must be at least 110 for task `minimal_pairs`",
                "training.sequence_length: must be at least 128 for task `docstring`, half of it for the 64 tokens",
                "training.sequence_length: must be at least 128 for task `last_sentence`, half of it for the 64 tokens",
            ],
        ),
    ],
)
def test_check_names_what_the_engines_would_refuse(tmp_path, sections, expected):
    path = study_with(tmp_path, **sections)
    if not expected:
        assert load_study(path).models
        return
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert len(caught.value.problems) == len(expected)
    for problem, start in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(f"{path}: {start}")


@pytest.mark.slow
def test_limits_are_those_of_gptqmodel():
    code = f"""
import json, torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization.config import FORMAT
def packs(bits, size):
    try:
        layer = TorchLinear(bits=bits, group_size=-1, sym=True, desc_act=False, in_features=size, out_features=size,
                            bias=False, pack_dtype=torch.int32, register_buffers=True)
        return TorchLinear._validate(bits=bits, group_size=-1, sym=True, pack_dtype=torch.int32, in_features=size, out_features=size)[0]
    except Exception:
        return False
print(json.dumps([TorchLinear.SUPPORTS_GROUP_SIZE, {{b: packs(b, {BLOCK} + 8) for b in (2, 4, 5, 6, 7, 8)}}]))
"""
    environment = os.environ | {"TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    group_sizes, takes_any_side = json.loads(done.stdout.splitlines()[-1])
    assert tuple(group_sizes) == GROUP_SIZES
    assert {int(bits) for bits, takes in takes_any_side.items() if not takes} == set(BLOCK_BITS) - {3}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 6, 4, 3])
def test_sides_that_no_block_divides(project, bits):
    """gptqmodel itself: it packs them at 8 and 4 bits; at the others its error is told in one line, with the log."""
    finished = run(*command(project, "odd", bits, f"odd-{bits}"), cwd=project)
    if bits not in BLOCK_BITS:
        assert finished.returncode == 0, finished.stdout
        return
    assert finished.returncode == 1
    last = finished.stdout.splitlines()[-1]
    assert last.startswith("openspectra: ") and last.endswith(
        f"(not expected here; what led to it stands in odd-{bits}.log)"
    )
    assert "Error: " in last and "Traceback" not in finished.stdout
    assert "Traceback" in (project / f"odd-{bits}.log").read_text()
    assert sorted(path.name for path in (project / f"odd-{bits}").iterdir()) == []


def test_error_inside_gptqmodel_is_one_line_with_the_log(project):
    test_sides_that_no_block_divides(project, 3)


@pytest.mark.slow
@pytest.mark.skipif(not in_namespace("mount"), reason="this machine lets no user mount a file system")
def test_full_disk_is_one_line(project):
    quantize = " ".join(command(project, "even", 8, "full/disk"))
    (project / "full").mkdir()
    script = f"mount -t tmpfs -o size=400k tmpfs full && {quantize}; code=$?; ls -A full/disk; exit $code"
    finished = run(*in_namespace("mount"), "sh", "-c", script, cwd=project)
    assert finished.returncode == 1
    assert finished.stdout == (
        "openspectra: full/disk: No space left on device; make room and run the same command again.\n"
    )
    assert "SafetensorError" in (project / "disk.log").read_text()  # which holds the system's number in its text alone


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_is_used_and_gives_the_weights_of_a_cpu(project):
    from safetensors.torch import load_file

    cpu = run(*command(project, "even", 4, "cpu"), cwd=project, CUDA_VISIBLE_DEVICES="")
    gpu = run(*command(project, "even", 4, "gpu"), cwd=project)
    assert cpu.returncode == gpu.returncode == 0, cpu.stdout + gpu.stdout
    weights, expected = (load_file(project / name / "model.safetensors") for name in ("gpu", "cpu"))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (weights[name].float() - tensor.float()).norm() / tensor.float().norm()
        assert difference < 0.02, f"{name}: {difference}"
