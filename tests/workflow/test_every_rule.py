"""Every rule that a shipped study plans, in every form of its command line, is executed on real input.

What is planned comes from the studies' own dry runs, so a new rule or a new form of a command without a run fails here.
`tiny` runs most of it; four small studies run the rest: `tokens` is the paper's on ready token files, `web` a ladder on
text from the hub, `sweep` a study without evaluation, `released` one of released weights. None of them reaches a network after `prefetch`.
"""

import hashlib
import json
import random
import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from benchmark_hub import COMMIT, logiqa_row, mmlu_subjects, phrase, write_benchmarks
from conftest import ROOT, copy_project, in_namespace, run
from hub_server import hub

from openspectra.artifacts import open_artifact, verify_tree
from openspectra.data.tokens import Tokens
from openspectra.evaluation.config import BUILT_TASKS
from openspectra.strict_yaml import read_yaml

SHIPPED = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))
TARGETS = ("all", "prefetch")
TRAINING = {
    "total_tokens": 2048,
    "sequence_length": 128,
    "warmup_fraction": 0.25,
    "precision": "32-true",
    "valid_sequences": 4,
    "validations_per_run": 1,
    "checkpoints_per_run": 2,
    "log_every_steps": 1,
}
SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}


class Form(NamedTuple):
    """A form of a stage's command line: its options, or one kind of artifact that it takes or does without."""

    stage: str
    part: str


def forms_of(output: str) -> set[Form]:
    """Return the forms of all commands that Snakemake printed; of a batch, those of its commands."""
    commands = []
    for command in re.findall(r"^Shell command: openspectra (.+)$", output, re.MULTILINE):
        if command.startswith("batch "):
            commands += [f"{each} --threads 1" for each in shlex.split(command) if " " in each]
        else:
            commands.append(command)
    forms, kinds_by_stage = set(), {}
    for command in commands:
        stage, *words = command.split()
        forms.add(Form(stage, " ".join(sorted({word for word in words if word.startswith("--")}))))
        kinds = {kind for word in words if (kind := re.match(r"results/[^/]+/([a-z]+)/", word))}
        kinds_by_stage.setdefault(stage, []).append({kind[1] for kind in kinds})
    for stage in {"report", "track"} & set(kinds_by_stage):
        for kind in ("corpus", "tasks", "contamination", "evaluation", "quantlm"):
            forms |= {
                Form(stage, f"{'with' if kind in kinds else 'without'} {kind}") for kinds in kinds_by_stage[stage]
            }
    return forms


def rules_of(output: str) -> set[str]:
    """Return the names in all tables of jobs that Snakemake printed."""
    tables = re.findall(r"^job +count\n-+ +-+\n((?:\w+ +\d+\n)+)", output, re.MULTILINE)
    return {line.split()[0] for table in tables for line in table.splitlines()} - {"total"}


def snakemake(project: Path, study: str, *arguments: str, within=(), **environment: str) -> str:
    """Run the workflow and return what it printed, the commands included."""
    command = ["snakemake", "--config", f"study={study}", "--cores", "2", "-p", *arguments]
    finished = run(*within, *command, cwd=project, **environment)
    assert finished.returncode == 0, finished.stdout[-6000:]
    return finished.stdout


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> dict[str, str]:
    """What Snakemake prints of each shipped study where nothing is made yet."""
    project = copy_project(tmp_path_factory.mktemp("planned"))

    def plan(study: str) -> str:
        return snakemake(project, study, "-n", "--nolock", *TARGETS)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SHIPPED, pool.map(plan, SHIPPED), strict=True))


def lm_eval_tasks() -> list[str]:
    """Return every task of lm-eval that a shipped study names."""
    named = set()
    for study in SHIPPED:
        for suite in (read_yaml(ROOT / f"studies/{study}.yaml").get("evaluation") or {}).get("suites", {}).values():
            named |= set(suite["tasks"])
    return sorted(named - set(BUILT_TASKS))


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    """What the hub serves: the data sets of lm-eval's tasks, and a text to train on."""
    folder = tmp_path_factory.mktemp("hub")
    write_benchmarks(folder, mmlu_subjects())
    rng = random.Random(0)
    (folder / "people/text" / COMMIT).mkdir(parents=True)
    lines = (json.dumps({"text": phrase(rng, 150)}) + "\n" for _ in range(60))
    (folder / "people/text" / COMMIT / "train.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny) -> Path:
    """A project with small studies, and what they are given in its data folder."""
    project = copy_project(tmp_path_factory.mktemp("small") / "project")
    data = project / "data"
    for folder in ("tokens", "text", "benchmarks/logiqa"):
        (data / folder).mkdir(parents=True)
    tokenizer = open_artifact(tiny / "results/tiny/tokenizer").file("tokenizer.json").read_bytes()
    (data / "tokenizer.json").write_bytes(tokenizer)
    tokens = Tokens(open_artifact(tiny / "results/tiny/tokens/train", "tokens"))
    ids = tokens.sequences(range(tokens.num_sequences(128)), 128)[:, :-1].reshape(-1).astype("<u2")
    ids[: len(ids) // 2].tofile(data / "tokens/a.bin")
    ids[len(ids) // 2 :].tofile(data / "tokens/b.bin")
    rng = random.Random(0)
    (data / "text/a.jsonl").write_text("".join(json.dumps({"text": phrase(rng, 150)}) + "\n" for _ in range(60)))
    rows = pyarrow.Table.from_pylist([logiqa_row(rng, number) for number in range(3)])
    pyarrow.parquet.write_table(rows, data / "benchmarks/logiqa/test.parquet")
    (project / "rates.csv").write_text("family,size,peak_lr,valid_loss\nfloatlm,1L,0.004,4.0\n")

    paper, tiny_study = read_yaml(ROOT / "studies/paper.yaml"), read_yaml(ROOT / "studies/tiny.yaml")
    floatlm = {"batch_tokens": 512, "peak_lr": {"1L": 4e-3}}
    taught = tiny_study["families"]["trilm"] | floatlm | {"distillation": {}}
    by_table = tiny_study["families"]["floatlm"] | floatlm | {"peak_lr": {"table": "rates.csv"}}
    sizes = {"sizes": {"1L": SIZE}}
    small = {"tokenizer": {"vocab_size": 300}, **sizes}
    split = {"valid_fraction": 0.2, "test_fraction": 0.2}
    paper_suite = paper["evaluation"]["suites"]["logiqa"]
    studies = {
        "tokens": sizes
        | {
            "base": "paper",
            "token_files": paper["token_files"]
            | {
                "files": {"one": ["tokens/a.bin"], "two": ["tokens/b.bin"]},
                "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
                **split,
            },
            "tokenizer": {"file": "tokenizer.json", "vocab_size": 512},
            "training": paper["training"] | TRAINING,
            "families": {"floatlm": paper["families"]["floatlm"] | floatlm},
            "quantization": {
                "bits": [8],
                "group_size": {8: -1},
                "num_calibration_samples": 4,
                "calibration_sequence_length": 32,
            },
            "exports": {"floatlm": ["gguf-f16"]},
            "evaluation": {
                "built_tasks": {
                    "seed": 1,
                    "num_documents": 2,
                    "document_characters": 300,
                    "num_items": 2,
                    "tasks": ["held_out_text"],
                },
                "suites": {"some": paper_suite | {"tasks": ["held_out_text", "boolq", "triviaqa", "logiqa"]}},
            },
        },
        "web": small
        | {
            "base": "tiny",
            "corpus": {"sources": {"web": {"adapter": "hub", "path": "people/text", "revision": COMMIT}}} | split,
            "training": tiny_study["training"] | TRAINING,
            "families": {"floatlm": by_table, "trilm": taught},
            "quantization": None,
            "evaluation": {
                "suites": {"some": {"tasks": ["piqa", "lambada_openai"], "batch_size": 4, "dtype": "float32"}}
            },
        },
        "sweep": small
        | {
            "base": "tiny",
            "corpus": {
                "sources": {"text": {"adapter": "files", "files": ["text/*"]}},
                "benchmarks": {"logiqa": {"files": ["benchmarks/logiqa/*"], "fields": ["context"]}},
            }
            | split,
            "training": tiny_study["training"] | TRAINING,
            "families": {"floatlm": tiny_study["families"]["floatlm"] | floatlm},
            "quantization": None,
            "evaluation": None,
        },
    }
    held_out = {"built_tasks": studies["tokens"]["evaluation"]["built_tasks"]}
    studies["released"] = {
        "base": "tiny",
        "released": {"trilm": {"2L": "released"}},
        **dict.fromkeys(("corpus", "quantization", "evaluation")),
    }
    shutil.copytree(tiny / "results/tiny/trilm/2L", data / "released", ignore=shutil.ignore_patterns("checkpoints"))
    studies["both"] = studies["web"] | {"evaluation": studies["web"]["evaluation"] | held_out}
    for name, content in studies.items():
        (project / f"studies/{name}.yaml").write_text(yaml.safe_dump({"title": name} | content))
    return project


def online(address: str, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}


@pytest.mark.slow
def test_every_form_of_every_planned_command_is_executed(planned, project, hub_folder, tmp_path):
    home, printed = tmp_path / "home", []
    with hub(hub_folder) as address:
        for study in ("tokens", "web", "both"):
            printed.append(snakemake(project, study, "prefetch", **online(address, home)))
    alone = in_namespace("net")
    checkpoint = "results/tokens/evaluation/quantlm/1L@2-8bit/some/manifest.json"
    searched = "results/both/contamination/manifest.json"  # for built tasks and fetched ones
    released = "results/released/trilm/2L/manifest.json"
    runs = (("tokens", ["all", checkpoint]), ("web", ["all"]), ("both", [searched]), ("sweep", ["all"]))
    runs += (("released", [released]),)
    for study, targets in runs:
        printed.append(snakemake(project, study, *targets, within=alone, HF_HOME=str(home)))
    assert verify_tree(project / "results")
    executed = "\n".join([planned["tiny"], *printed])  # the fixture `tiny` ran all that it plans
    all_planned = "\n".join(planned.values())
    missing = forms_of(all_planned) - forms_of(executed)
    assert not missing, f"planned by a shipped study and executed by no test: {sorted(missing)}"
    listed = run("snakemake", "--list-rules", "--config", "study=tiny", cwd=project).stdout
    known = set(re.findall(r"^(\w+)(?: \(.*\))?$", listed, re.MULTILINE))
    groups = {"all", "prefetch", "corpus", "tokens", "pretrain", "quantize", "evaluate", "export", "report"}
    assert known - groups == rules_of(executed) - groups  # the rules of the Snakefile that only name targets


def test_every_shipped_task_of_lm_eval_has_data_here():
    """Or the test below would pass over a task that a study gains."""
    assert {"logiqa", "mmlu_continuation", "triviaqa"} < set(lm_eval_tasks())


@pytest.mark.slow
def test_every_task_of_lm_eval_gives_scores(project, hub_folder, tiny, tmp_path):
    """All suites of all shipped studies, with the paper's batch of one and half precision, from the fetched data."""
    subjects = {f"mmlu_{subject}_continuation" for subject in mmlu_subjects()}  # some studies name a few of the group
    names = [task for task in lm_eval_tasks() if task not in subjects]
    files = {"logiqa": "benchmarks/logiqa/test.parquet"}
    home = tmp_path / "home"
    (tmp_path / "benchmarks.json").write_text(json.dumps({"tasks": names, "files": files}))
    config = {"tasks": names, "num_fewshot": 0, "batch_size": 1, "dtype": "float16", "files": files}
    (tmp_path / "evaluation.json").write_text(json.dumps(config))
    data = {"OPENSPECTRA_DATA": str(project / "data")}
    with hub(hub_folder) as address:
        command = ["openspectra", "benchmarks", "--config", "benchmarks.json", "--out", "benchmarks"]
        finished = run(*command, cwd=tmp_path, **online(address, home), **data)
    assert finished.returncode == 0, finished.stdout[-3000:]
    model = tiny / "results/tiny/floatlm/2L"
    command = ["openspectra", "evaluate", "--config", "evaluation.json", "--model", str(model), "--out", "evaluation"]
    finished = run(*in_namespace("net"), *command, cwd=tmp_path, HF_HOME=str(home), **data)
    assert finished.returncode == 0, finished.stdout[-3000:]
    evaluation = open_artifact(tmp_path / "evaluation", "evaluate")
    scores = evaluation.rows("scores.csv")
    assert set(names) <= {row["task"] for row in scores}
    assert all(0 <= float(row["value"]) < 1e12 for row in scores if "bias_score" not in row["metric"])
    biases = [(row["task"], float(row["value"])) for row in scores if "bias_score" in row["metric"]]
    assert {task for task, _ in biases} == {"bbq"} and all(-1 <= value <= 1 for _, value in biases)
    leaves = {row["task"]: int(row["num_items"]) for row in evaluation.rows("data.csv")}
    assert set(leaves) == set(names) - {"mmlu_continuation"} | subjects
    scored = pyarrow.parquet.read_table(evaluation.file("items.parquet"))["task"].to_pylist()
    scored += [row["task"] for row in evaluation.rows("documents.csv")]
    assert {task: scored.count(task) for task in leaves} == leaves  # an item of every task, group or not
    fetched = open_artifact(tmp_path / "benchmarks", "benchmarks").manifest.metrics["num_items"]
    assert sum(fetched.values()) == sum(leaves.values())
