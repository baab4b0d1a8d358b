"""Evaluation: our scoring against lm-eval's on the same model, tasks, batch size, precision and threads.

    openspectra mirror data/benchmarks        # once, or `snakemake prefetch`: the tasks' items into the cache of `datasets`
    python benchmarks/evaluation_speed.py --tokenizer data/tokenizer/20B_tokenizer.json

Both sides run `lm_eval.evaluator.evaluate`, which its command line runs after start-up, in one process and in turns: with
lm-eval's own model class and with ours, tokenizing included. What the command line does beside (start-up, and 100,000
resamples for a standard error) is left out of both; the start-up, common to both, stands in the table. A random model of
ten million parameters; without `--tokenizer` a vocabulary of 4,096, trained on the items, and a deeper model.
"""

import argparse
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from machine import processor

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
STARTED = time.perf_counter()
HERE = Path(__file__).parent
TASKS = ("hellaswag", "arc_easy", "arc_challenge", "lambada_openai")
SMALL_VOCABULARY = 4096
SHAPES = {  # hidden, GLU, layers: 10 million parameters with 50 thousand entries, and with 4 thousand
    True: {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 3},
    False: {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 10, "num_attention_heads": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json; none: 4,096 entries, trained here")
    parser.add_argument("--limit", type=int, default=100, help="items of each task")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    from lm_eval.models.huggingface import HFLM

    from openspectra.evaluation.harness import load_tasks
    from openspectra.evaluation.language_model import LanguageModel

    loaded = load_tasks(list(TASKS))
    with tempfile.TemporaryDirectory() as folder:
        parameters, entries = make_model(Path(folder), options.tokenizer, loaded)
        settings = {"pretrained": folder, "dtype": "float32", "softmax_dtype": "float32", "device": "cpu"}
        sides = {
            name: kind(**settings, batch_size=options.batch_size)
            for name, kind in (("lm-eval", HFLM), ("ours", LanguageModel))
        }
        start_up = time.perf_counter() - STARTED
        for model in sides.values():
            score(model, loaded[TASKS[0]], 4)  # caches
        seconds = {task: {name: [] for name in sides} for task in TASKS}
        for number in range(options.rounds):
            for task in TASKS:
                results = {}
                for name in sorted(sides, reverse=number % 2):
                    begun = time.process_time()
                    results[name] = score(sides[name], loaded[task], options.limit)
                    seconds[task][name].append(time.process_time() - begun)
                require_equal(task, results)
    write(options, parameters, entries, start_up, seconds)


def score(model, task: dict, limit: int) -> dict:
    """Return lm-eval's results of one task."""
    from lm_eval.evaluator import evaluate

    return evaluate(model, task, limit=limit, bootstrap_iters=0, log_samples=False)["results"]


def require_equal(task: str, results: dict) -> None:
    """Refuse scores that differ by more than the order of sums."""
    for key, value in results["lm-eval"][task].items():
        ours = results["ours"][task][key]
        tolerance = 1e-5 * abs(value) if isinstance(value, float) and not key.startswith("acc") else 0
        if ours != value and not (isinstance(value, float) and abs(ours - value) <= tolerance):
            raise SystemExit(f"{task}: {key} is {ours}, and {value} by lm-eval")


def make_model(folder: Path, given: Path | None, loaded: dict) -> tuple[int, int]:
    """Write a random model with its tokenizer; return its parameters and the entries of its vocabulary."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    from openspectra.artifacts import write_json
    from openspectra.data.tokenizer import loader_settings

    if given:
        tokenizer = Tokenizer.from_file(str(given))
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        texts = (str(item) for run in loaded.values() for task in run["tasks"].values() for item in task.eval_docs)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        settings = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": alphabet, "show_progress": False}
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=SMALL_VOCABULARY, **settings))
    entries = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": entries, "max_position_embeddings": 2048}
    model = LlamaForCausalLM(
        LlamaConfig(**SHAPES[bool(given)], **ids, initializer_range=0.1, tie_word_embeddings=False)
    )
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", loader_settings("<|endoftext|>", {}))
    return sum(weight.numel() for weight in model.parameters()), entries


def write(options, parameters: int, entries: int, start_up: float, seconds: dict) -> None:
    totals = [
        [sum(seconds[task][name][number] for task in TASKS) for name in ("lm-eval", "ours")]
        for number in range(options.rounds)
    ]
    rows = {task: list(zip(*(seconds[task][name] for name in ("lm-eval", "ours")), strict=True)) for task in TASKS}
    rows["all"] = totals
    lines = [
        f"# Evaluation speed ({datetime.now(UTC):%Y-%m-%d}, {processor()})",
        "",
        f"{parameters:,} parameters, {entries:,} entries, {options.limit} items of each task, batch size {options.batch_size}, "
        f"float32, {options.threads} thread, {options.rounds} rounds in turn, torch {version('torch')}, lm-eval "
        f"{version('lm_eval')}. Seconds of CPU time. Start-up of the process, both models loaded: {start_up:.0f} s by the clock.",
        "",
        "| task | lm-eval | ours | ratio (smallest to largest) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for task, pairs in rows.items():
        ratios = [theirs / ours for theirs, ours in pairs]
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {task} | {medians[0]:.2f} | {medians[1]:.2f} | {spread} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / f"results/evaluation-{entries}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
