"""Evaluation of a tiny random model, checked against its logits computed directly, and against lm-eval's command line."""

import csv
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from openspectra.artifacts import Artifact, open_artifact, write_artifact, write_json
from openspectra.data.config import CorpusConfig
from openspectra.data.corpus import Document, write_documents
from openspectra.data.tokenizer import loader_settings
from openspectra.errors import ConfigError, DamagedArtifactError, OpenSpectraError
from openspectra.evaluation import harness
from openspectra.evaluation.build_tasks import build_tasks
from openspectra.evaluation.config import EvaluateConfig, TasksConfig
from openspectra.evaluation.harness import evaluate
from openspectra.quantization.config import QuantizeConfig

TASKS = ["held_out_text", "cloze", "continuation", "minimal_pairs"]
CONFIG = EvaluateConfig(tasks=TASKS, batch_size=4, dtype="float32")
MODEL_ID = "quantlm/tiny-8bit"
MAX_LENGTH = 128
MODULES = ("ast.py", "bisect.py", "calendar.py", "copy.py", "csv.py", "heapq.py", "queue.py", "random.py", "shlex.py")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums depend on the number of threads; the command line below is started with one, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project's top folder; artifacts below it lie where a study puts them."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    folder = Path(csv.__file__).parent
    return [(folder / name).read_text(encoding="utf-8") for name in MODULES]


@pytest.fixture(scope="module")
def tasks(project, texts) -> Artifact:
    return make_tasks(project / "results/demo/tasks", project / "results/demo/corpus", texts, seed=1)


@pytest.fixture(scope="module")
def model(project, texts) -> Artifact:
    return make_model(project / "results/demo/quantlm/tiny-8bit", texts)


@pytest.fixture(scope="module")
def evaluated(project, model, tasks) -> Path:
    folder = project / "evaluated"
    folder.mkdir()
    summary = evaluate(CONFIG, model, folder, tasks)
    write_json(folder / "summary.json", summary)
    return folder


def make_tasks(folder: Path, corpus_folder: Path, texts: list[str], seed: int) -> Artifact:
    corpus_config = {"sources": {"stdlib": {"adapter": "python_stdlib"}}, "valid_fraction": 0.1, "test_fraction": 0.1}
    with write_artifact(corpus_folder, "corpus", CorpusConfig.model_validate(corpus_config), {}) as draft:
        documents = [Document(hashlib.sha256(text.encode()).hexdigest()[:16], text, "a") for text in texts]
        write_documents(documents, draft.folder / "test.parquet")
    config = TasksConfig(seed=seed, num_documents=3, document_characters=700, num_items=9)
    with write_artifact(folder, "tasks", config, {}) as draft:
        build_tasks(config, open_artifact(corpus_folder), draft.folder, "results/demo/tasks")
    return open_artifact(folder)


def make_model(folder: Path, texts: list[str], fill_head: float | None = None) -> Artifact:
    """Write a random Llama with large weights, so that its answers differ; `fill_head` overwrites the head's weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 384, "max_position_embeddings": MAX_LENGTH}
    llama = LlamaForCausalLM(LlamaConfig(**shape, **ids, initializer_range=0.3))
    if fill_head is not None:
        llama.lm_head.weight.data.fill_(fill_head)
    sampling = {"num_calibration_samples": 1, "calibration_sequence_length": 1, "seed": 0}
    config = QuantizeConfig(model_id=MODEL_ID, bits=8, group_size=-1, **sampling)
    with write_artifact(folder, "quantize", config, {}) as draft:
        llama.save_pretrained(draft.folder)
        tokenizer.save(str(draft.folder / "tokenizer.json"))
        write_json(draft.folder / "tokenizer_config.json", loader_settings("<|end|>", {}))
    return open_artifact(folder)


def rows_of(path: Path, **equal: str) -> list[dict]:
    if path.suffix == ".parquet":
        rows = pyarrow.parquet.read_table(path).to_pylist()
        return [row for row in rows if equal.items() <= {key: row[key] for key in equal}.items()]
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if equal.items() <= row.items()]


def score_of(folder: Path, task: str, metric: str) -> float:
    (row,) = rows_of(folder / "scores.csv", task=task, metric=metric)
    return float(row["value"])


def items_of(tasks: Artifact, task: str) -> list[dict]:
    return [json.loads(line) for line in tasks.file(f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


class DirectModel:
    """The same weights in float64, read token by token without lm-eval."""

    def __init__(self, model: Artifact):
        from tokenizers import Tokenizer
        from transformers import LlamaForCausalLM

        self.tokenizer = Tokenizer.from_file(str(model.file("tokenizer.json")))
        self.llama = LlamaForCausalLM.from_pretrained(model.folder, dtype=torch.float64)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    @torch.no_grad()
    def log_probabilities(self, context: list[int], target: list[int]) -> list[float]:
        """Return the log-probability of each token of `target`, given `context` and the target's tokens before it."""
        logits = self.llama(torch.tensor([context + target[:-1]])).logits[0, len(context) - 1 :]
        return logits.log_softmax(-1)[range(len(target)), target].tolist()

    def log_likelihood(self, context: str, target: str) -> float:
        context_ids = self.encode(context) if context else [0]
        whole = self.encode(context + target)
        target_ids = whole[len(context_ids) :] if context else whole
        context_ids = context_ids[len(target_ids) - MAX_LENGTH - 1 :]
        return sum(self.log_probabilities(context_ids, target_ids))

    def rolling(self, text: str) -> tuple[int, float]:
        """Return tokens and log-likelihood of a text cut into windows; the last one sees as much as fits before it."""
        tokens, total = self.encode(text), 0.0
        for start in range(0, len(tokens), MAX_LENGTH):
            target = tokens[start : start + MAX_LENGTH]
            context = [0] if start == 0 else tokens[start + len(target) - MAX_LENGTH - 1 : start]
            total += sum(self.log_probabilities(context, target))
        return len(tokens), total


@pytest.fixture(scope="module")
def direct(model) -> DirectModel:
    return DirectModel(model)


def test_rolling_log_likelihood_equals_direct_computation(evaluated, tasks, direct):
    texts = {item["document_id"]: item["text"] for item in items_of(tasks, "held_out_text")}
    rows = rows_of(evaluated / "documents.csv", task="held_out_text")
    assert len(rows) == len(texts) == 3
    for row in rows:
        num_tokens, log_likelihood = direct.rolling(texts[row["document_id"]])
        assert num_tokens > 2 * MAX_LENGTH  # several windows, the last one partial
        assert int(row["num_tokens"]) == num_tokens
        assert int(row["num_bytes"]) == len(texts[row["document_id"]].encode())
        assert float(row["log_likelihood"]) == pytest.approx(log_likelihood, rel=1e-5)


def test_bits_per_byte_follows_from_documents_table(evaluated):
    rows = rows_of(evaluated / "documents.csv")
    bits = -sum(float(row["log_likelihood"]) for row in rows) / math.log(2)
    num_bytes = sum(int(row["num_bytes"]) for row in rows)
    assert score_of(evaluated, "held_out_text", "bits_per_byte") == pytest.approx(bits / num_bytes)


def test_cloze_log_likelihood_equals_direct_computation(evaluated, tasks, direct):
    rows = rows_of(evaluated / "items.parquet", task="cloze")
    expected = [direct.log_likelihood(item["context"], item["target"]) for item in items_of(tasks, "cloze")]
    assert [value for row in rows for value in row["log_likelihoods"]] == pytest.approx(expected, rel=1e-5)
    perplexity = math.exp(-sum(expected) / len(expected))
    assert score_of(evaluated, "cloze", "perplexity") == pytest.approx(perplexity, rel=1e-4)


@pytest.mark.parametrize(
    "task, context, choices", [("continuation", "context", "endings"), ("minimal_pairs", "", "texts")]
)
def test_choice_is_the_likeliest_by_direct_computation(evaluated, tasks, direct, task, context, choices):
    rows = rows_of(evaluated / "items.parquet", task=task)
    right = 0
    for row, item in zip(rows, items_of(tasks, task), strict=True):
        expected = [direct.log_likelihood(item.get(context, ""), choice) for choice in item[choices]]
        assert row["log_likelihoods"] == pytest.approx(expected, rel=1e-5)
        assert (row["item_id"], row["document_id"]) == (item["item_id"], item["document_id"])
        acc = float(expected.index(max(expected)) == item["label"])
        assert row["acc"] == acc
        right += acc
    assert 0 < right < len(rows)  # or this test could not tell right from wrong
    assert score_of(evaluated, task, "acc") == pytest.approx(right / len(rows))


def test_standard_error_is_that_of_a_mean(evaluated):
    (row,) = rows_of(evaluated / "scores.csv", task="continuation", metric="acc")
    p, n = float(row["value"]), int(row["num_samples"])
    assert float(row["stderr"]) == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_scores_state_chance_for_accuracies_alone(evaluated, tasks):
    table = json.loads(tasks.file("tasks.json").read_text())
    for row in rows_of(evaluated / "scores.csv"):
        if row["metric"].startswith("acc"):
            assert float(row["chance"]) == pytest.approx(table[row["task"]]["chance"])
        else:
            assert row["chance"] == ""


def test_summary_holds_every_score(evaluated):
    summary = json.loads((evaluated / "summary.json").read_text())
    rows = rows_of(evaluated / "scores.csv")
    assert summary == {f"{row['task']}/{row['metric']}": float(row["value"]) for row in rows}
    assert len(rows) == 8


def test_evaluate_twice_gives_equal_bytes_and_no_path(evaluated, model, tasks, tmp_path):
    evaluate(CONFIG, model, tmp_path, tasks)
    for name in ("scores.csv", "documents.csv", "items.parquet"):
        assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes()
        assert "/" not in str(rows_of(tmp_path / name))


def test_score_of_a_task_does_not_depend_on_its_neighbours(evaluated, model, tasks, tmp_path):
    evaluate(CONFIG.model_copy(update={"tasks": ["continuation"]}), model, tmp_path, tasks)
    assert rows_of(tmp_path / "scores.csv") == rows_of(evaluated / "scores.csv", task="continuation")
    assert (
        tmp_path / "documents.csv"
    ).read_text() == "task,document_id,num_tokens,num_bytes,lost_bytes,log_likelihood\n"


def test_limit_scores_the_first_items(evaluated, model, tasks, tmp_path):
    evaluate(CONFIG.model_copy(update={"tasks": ["cloze"], "limit": 2}), model, tmp_path, tasks)
    rows = rows_of(tmp_path / "items.parquet")
    assert [row["item_id"] for row in rows] == ["cloze-00000", "cloze-00001"]
    assert rows_of(tmp_path / "scores.csv", metric="acc")[0]["num_samples"] == "2"


def test_sample_is_drawn_by_seed_and_scores_its_items_as_the_whole_does(evaluated, model, tasks, tmp_path):
    whole = {row["item_id"]: row for row in rows_of(evaluated / "items.parquet", task="cloze")}
    drawn = []
    for seed in (1, 2, 1):
        out = tmp_path / str(len(drawn))
        out.mkdir()
        evaluate(CONFIG.model_copy(update={"tasks": ["cloze"], "limit": 4, "sample_seed": seed}), model, out, tasks)
        rows = rows_of(out / "items.parquet")
        drawn.append([row["item_id"] for row in rows])
        assert rows_of(out / "scores.csv", metric="acc")[0]["num_samples"] == "4"
        for row in rows:
            expected = whole[row["item_id"]]["log_likelihoods"]
            assert row["log_likelihoods"] == pytest.approx(expected, rel=1e-4)
    assert drawn[0] == drawn[2] == sorted(drawn[0]) and len(set(drawn[0])) == 4
    assert drawn[0] != drawn[1] and drawn[0] != sorted(whole)[:4]
    with pytest.raises(ValueError, match="`sample_seed` draws `limit` items of every task; give `limit`"):
        EvaluateConfig(tasks=["cloze"], batch_size=1, dtype="float32", sample_seed=1)


def test_rebuilt_tasks_are_read_anew_even_with_equal_path_and_time(model, texts, tmp_path):
    config = CONFIG.model_copy(update={"tasks": ["minimal_pairs"]})
    answers = []
    for seed in (1, 2):
        tasks = make_tasks(tmp_path / "tasks", tmp_path / "corpus", texts, seed)
        os.utime(tasks.folder / "minimal_pairs.jsonl", (10**9, 10**9))
        out = tmp_path / str(seed)
        out.mkdir()
        evaluate(config, model, out, tasks)
        answers.append([row["log_likelihoods"] for row in rows_of(out / "items.parquet")])
    assert answers[0] != answers[1]


def test_model_that_computes_nan_is_an_error_naming_model_and_task(texts, tasks, tmp_path):
    broken = make_model(tmp_path / "model", texts, fill_head=math.nan)
    with pytest.raises(OpenSpectraError, match=f"{MODEL_ID}: minimal_pairs: log-likelihood is nan"):
        evaluate(CONFIG.model_copy(update={"tasks": ["minimal_pairs"]}), broken, tmp_path, tasks)
    with pytest.raises(OpenSpectraError, match=f"{MODEL_ID}: held_out_text: .*nan"):
        evaluate(CONFIG.model_copy(update={"tasks": ["held_out_text"]}), broken, tmp_path, tasks)
    assert not (tmp_path / "scores.csv").exists()


def test_perplexity_beyond_numbers_is_an_error_naming_model_and_task(texts, tasks, tmp_path):
    from safetensors.torch import load_file, save_file

    wild = make_model(tmp_path / "model", texts)
    weights = load_file(wild.folder / "model.safetensors")
    weights["lm_head.weight"] *= 1e4
    with write_artifact(tmp_path / "wild", "quantize", CONFIG, {}) as draft:
        for record in wild.manifest.files:
            (draft.folder / record.path).write_bytes((wild.folder / record.path).read_bytes())
        save_file(weights, draft.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OpenSpectraError, match="wild: cloze: a perplexity is too large"):
        evaluate(CONFIG.model_copy(update={"tasks": ["cloze"]}), open_artifact(tmp_path / "wild"), tmp_path, tasks)


def test_unknown_task_names_the_nearest_one(model, tasks, tmp_path, monkeypatch):
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager

    def without_defaults(include_path, include_defaults):
        assert include_defaults  # a name that is not built may be one of lm-eval's own; indexing those takes 8 s
        return manager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", without_defaults)
    monkeypatch.setattr(harness, "task_manager", harness.task_manager.__wrapped__)  # nothing of it is kept
    config = CONFIG.model_copy(update={"tasks": ["clozes", "zebra", "continuation"]})
    with pytest.raises(ConfigError) as caught:
        evaluate(config, model, tmp_path, tasks)
    assert caught.value.problems == [
        "evaluate.tasks: 'clozes': no such task; did you mean `cloze`?",
        "evaluate.tasks: 'zebra': no such task; `lm_eval ls tasks` prints the names.",
    ]


def test_text_longer_than_the_context_is_an_error(model, texts, project, tmp_path):
    tasks = make_tasks(tmp_path / "tasks", tmp_path / "corpus", texts, seed=1)
    items = items_of(tasks, "minimal_pairs")
    items[4]["texts"][0] = "x = [" + "1, " * MAX_LENGTH + "]"
    with write_artifact(tmp_path / "long", "tasks", CONFIG, {}) as draft:
        for record in tasks.manifest.files:
            (draft.folder / record.path).write_bytes((tasks.folder / record.path).read_bytes())
        (draft.folder / "minimal_pairs.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    with pytest.raises(OpenSpectraError, match=f"reads at most {MAX_LENGTH} tokens"):
        evaluate(
            CONFIG.model_copy(update={"tasks": ["minimal_pairs"]}), model, tmp_path, open_artifact(tmp_path / "long")
        )


@pytest.mark.parametrize("which, name", [("model", "model.safetensors"), ("tasks", "cloze.jsonl")])
def test_altered_input_is_refused(texts, which, name, tmp_path):
    tasks = make_tasks(tmp_path / "tasks", tmp_path / "corpus", texts, seed=1)
    model = make_model(tmp_path / "model", texts)
    path = tmp_path / which / name
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(DamagedArtifactError, match=name):
        evaluate(CONFIG, model, tmp_path, tasks)


def test_importing_the_stage_loads_no_heavy_package():
    code = (
        "import sys, openspectra.evaluation.harness\n"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_task_of_lm_eval_without_cached_data_names_the_remedy(model, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for constant in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(constant, True)  # read from the environment at import, perhaps by another test
    with pytest.raises(OpenSpectraError, match="arc_easy: its data are not in the cache .*snakemake prefetch"):
        evaluate(CONFIG.model_copy(update={"tasks": ["arc_easy"]}), model, tmp_path, tasks)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["cloze,held_out_text", "continuation", "minimal_pairs"])
def test_command_line_of_lm_eval_gives_equal_scores(evaluated, model, tasks, project, names):
    """Runs `lm_eval` as a person would, from the project's top folder, on the paths written into the YAML files."""
    out = project / "command_line" / names
    arguments = [f"pretrained={model.folder.relative_to(project)}", "dtype=float32", "softmax_dtype=float32"]
    command = [
        Path(sys.executable).with_name("lm_eval"),
        "--model",
        "hf",
        "--model_args",
        ",".join(arguments),
        "--include_path",
        "results/demo/tasks",
    ]
    command += ["--tasks", names, "--batch_size", str(CONFIG.batch_size), "--output_path", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(project / "hf")}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    for task in names.split(","):
        rows = rows_of(evaluated / "scores.csv", task=task)
        assert rows
        for row in rows:
            ours, theirs = float(row["value"]), results[task][f"{row['metric']},{row['filter']}"]
            if row["metric"].startswith("acc"):
                assert ours == theirs
            else:  # sums of log-likelihoods, taken in another order
                assert ours == pytest.approx(theirs, rel=1e-6)
            if row["stderr"]:
                assert results[task][f"{row['metric']}_stderr,{row['filter']}"] == pytest.approx(float(row["stderr"]))
