"""What a residual stream in half precision does to the loss: twin runs that differ in nothing else.

    python benchmarks/stream_twins.py RESULTS        RESULTS: a study's folder with `tokens` and `tokenizer`

Every trial is `openspectra pretrain` in a process of its own, on the first GPU where there is one. The twins of a family,
size, precision and seed: the stream in half precision (the product), in float32, and in float32 from weights changed by a
millionth, which tells how far two equal runs part by rounding alone. The table has the differences of the validation loss.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent
ARMS = ("half", "float32", "float32, changed by 1e-6")
SHAPES = {  # with 384 tokens, as many as the tokenizer of studies/paper-mini.yaml has
    "1.0M": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "4.9M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8},
}
RATES = {"1.0M": {"floatlm": 4.0e-3, "trilm": 8.0e-3}, "4.9M": {"floatlm": 2.0e-3, "trilm": 4.0e-3}}
SEQUENCES, LENGTH, VALID_SEQUENCES = 16, 256, 512


def config_of(family: str, size: str, precision: str, seed: int, steps: int) -> dict:
    """Return a run of the family's recipe in studies/paper-mini.yaml, of another shape and number of steps."""
    from openspectra.study import load_study

    config = load_study(HERE.parent / "studies/paper-mini.yaml").pretrained[f"{family}/0.96M"].model_dump()
    config["shape"] |= SHAPES[size] | {"vocab_size": 384, "scales_per_matrix": 1}
    rate = RATES[size][family]
    config |= {"peak_lr": rate, "min_lr": rate / 10 if family == "floatlm" else 0.0, "warmup_steps": steps // 20}
    if family == "trilm":
        config |= {"lr_drop_step": steps // 2, "peak_lr_after_drop": 0.625 * rate}
        config |= {"weight_decay_stop_step": round(steps * 2 / 3)}
    config |= dict.fromkeys(("max_steps", "checkpoint_every_steps", "valid_every_steps"), steps) | {
        "log_every_steps": 16
    }
    config |= {"global_batch_size": SEQUENCES, "sequence_length": LENGTH, "valid_sequences": VALID_SEQUENCES}
    return config | {"precision": precision, "seed": seed}


def train(arm: str, arguments: list[str]) -> None:
    """Run `openspectra` with the stream of an arm."""
    import torch

    from openspectra.cli import main
    from openspectra.model import llama

    if arm != "half":
        llama.stream_dtype = lambda x_BTD: x_BTD.dtype
    if arm == ARMS[2]:
        draw = llama.Llama.reset_parameters

        def changed(model, *seed):
            draw(model, *seed)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for weights in model.parameters():
                    noise = torch.randn(weights.shape, generator=generator)
                    weights.mul_(1 + 1e-6 * noise.to(weights.device))

        llama.Llama.reset_parameters = changed
    sys.argv = ["openspectra", *arguments]
    main()


def trial(folder: Path, results: Path, key: tuple, steps: int) -> dict:
    """Train one twin; return its losses."""
    family, size, precision, seed, arm = key
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(family, size, precision, seed, steps)))
    command = [sys.executable, __file__, "--arm", arm, str(results), "pretrain", "--config", f"{folder}/config.json"]
    command += ["--out", f"{folder}/model", "--tokenizer", f"{results}/tokenizer", "--threads", "1"]
    command += [f"--{split}={results}/tokens/{split}" for split in ("train", "valid")]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = dict(zip(("family", "size", "precision", "seed", "arm"), key, strict=True))
    if finished.returncode:
        print(key, finished.stdout[-500:], finished.stderr[-1500:], file=sys.stderr)
        return found | {"valid_loss": None, "train_loss": None}
    rows = {name: list(csv.DictReader((folder / f"model/{name}.csv").open())) for name in ("train", "valid")}
    last = [float(row["train_loss"]) for row in rows["train"][-4:]]
    return found | {"valid_loss": float(rows["valid"][-1]["valid_loss"]), "train_loss": sum(last) / len(last)}


def table(trials: list[dict]) -> str:
    """Return differences to the float32 stream, mean and standard deviation over seeds, as Markdown."""
    losses = {tuple(t[key] for key in ("family", "size", "precision", "arm", "seed")): t["valid_loss"] for t in trials}
    lines = ["| family | size | precision | arm | float32: valid loss | minus float32, mean | deviation | seeds |"]
    lines += ["| --- " * 8 + "|"]
    for family, size, precision, arm in dict.fromkeys(key[:4] for key in losses):
        plain = {
            key[4]: losses[*key[:3], "float32", key[4]] for key in losses if key[:4] == (family, size, precision, arm)
        }
        pairs = [(losses[family, size, precision, arm, seed], loss) for seed, loss in plain.items()]
        pairs = [(ours, loss) for ours, loss in pairs if ours is not None and loss is not None]
        if arm == "float32" or not pairs:
            continue
        apart = [ours - loss for ours, loss in pairs]
        spread = f"{statistics.stdev(apart):.4f}" if len(apart) > 1 else "-"
        mean = statistics.mean(loss for _, loss in pairs)
        lines.append(
            f"| {family} | {size} | {precision} | {arm} | {mean:.4f} | {statistics.mean(apart):+.4f} | {spread} "
            f"| {', '.join(f'{each:+.4f}' for each in apart)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--precisions", nargs="*", default=["16-mixed", "bf16-mixed"])
    parser.add_argument("--sizes", nargs="*", default=list(SHAPES), choices=SHAPES)
    arguments, rest = parser.parse_known_args()
    if arguments.arm:
        return train(arguments.arm, rest)
    import torch
    from machine import processor

    seeds = range(1, arguments.seeds + 1)
    keys = list(product(("floatlm", "trilm"), arguments.sizes, arguments.precisions, seeds, ARMS))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        work = [
            pool.submit(trial, Path(folder) / str(number), arguments.results, key, arguments.steps)
            for number, key in enumerate(keys)
        ]
        trials = [each.result() for each in work]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    about = f"{datetime.now(UTC):%Y-%m-%d}, {where}, torch {torch.__version__}, {arguments.steps} steps of "
    about += f"{SEQUENCES} x {LENGTH} tokens, valid loss in nats on {VALID_SEQUENCES} sequences"
    name = HERE / "results" / f"stream-twins-{'cuda' if torch.cuda.is_available() else 'cpu'}"
    name.with_suffix(".md").write_text(f"{about}\n\n{table(trials)}\n")
    name.with_suffix(".json").write_text(json.dumps({"about": about, "trials": trials}, indent=1) + "\n")
    print(about, table(trials), sep="\n\n")


if __name__ == "__main__":
    main()
