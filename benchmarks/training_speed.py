"""Training speed, as ratios: our trainer against its peers, and against itself with a part left out.

    python benchmarks/training_speed.py peers         each peer as its README runs it, and compiled
    python benchmarks/training_speed.py levers        what makes our trainer fast, one by one and together
    python benchmarks/training_speed.py families      TriLM against FloatLM
    python benchmarks/training_speed.py instruments   with instruments and checkpoints against without
    python benchmarks/training_speed.py families --device cuda --size 560M
    python benchmarks/training_speed.py sizes --device cuda       the paper's sizes: tokens/s, FLOP utilization, memory

Every contender is a process that holds its trainer ready and does a few optimizer steps when told to; all others
wait meanwhile. They take turns round by round, so that the noise of the machine meets all of them alike, and a
ratio is the median of the ratios within each round.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor

from openspectra.artifacts import open_artifact, write_artifact, write_json
from openspectra.data.config import TokenizerConfig, TokenPartConfig, TokensConfig
from openspectra.data.shards import SHARDS, ShardWriter, in_split
from openspectra.model.config import AttentionForm, LlamaShape
from openspectra.study import load_study
from openspectra.training.config import PretrainConfig

HERE = Path(__file__).parent
SMALL = LlamaShape(vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4)
BATCHES = {
    "small": (8, 256),
    "small-512": (4, 512),
    "small-1024": (2, 1024),
    "99M": (16, 2048),
    "560M": (8, 2048),
    "1.1B": (4, 2048),
    "2.4B": (8, 2048),
    "3.9B": (4, 2048),
}
"""Sequences per step and tokens per sequence, by size."""
RECOMPUTE = {"2.4B": "blocks", "3.9B": "blocks"}
"""What the race `sizes` computes again in the backward pass, so that a step of one pass fits into 80 GB."""
PAPER_SIZES = "99M,560M,1.1B,2.4B,3.9B"
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 products per second by data sheet: what model FLOP utilization is a share of."""
WARM_UP_STEPS = 3
TWO_CORES = sorted(os.sched_getaffinity(0))[:2]
"""Where steps are timed on a CPU, on every machine."""
COMPARISONS = [  # LitGPT has no switch for its compiler: its README's run is a compiled one
    ("Peers as their READMEs run them", "openspectra", ("nanogpt", "litgpt compiled", "transformers")),
    ("Nobody compiled", "openspectra", ("nanogpt", "litgpt", "transformers")),
    ("All compiled", "openspectra compiled", ("nanogpt compiled", "litgpt compiled", "transformers compiled")),
    ("Compiled", "together", ("nanogpt compiled",)),
    ("Compiled", "together, trilm", ("nanogpt compiled",)),
]


@dataclass
class Contender:
    """A program in a process of its own, driven over a pipe."""

    name: str
    settings: dict[str, Any]
    flops: float
    """Of one step, forward and backward, by the formula in `model_flops`."""
    python: str = sys.executable
    start_up_seconds: float = 0.0
    """From the start of the process to the end of the first step."""
    seconds: list[float] = field(default_factory=list)
    """Per step, of each round."""
    memory: int = 0
    """Most bytes that torch has held on the GPU."""
    process: subprocess.Popen | None = None

    def start(self, root: Path) -> None:
        """Start the program in an empty folder with an empty compiler cache."""
        folder = root / self.name.replace(" ", "-")
        (folder / "work").mkdir(parents=True)
        path, self.log = folder / "settings.json", folder / "log"
        path.write_text(json.dumps(self.settings | {"work": str(folder / "work")}))
        self.started = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [self.python, str(HERE / "contender.py"), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | self.environment | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")},
            )

    def wait_until_ready(self) -> None:
        """Wait for the end of the first step, in which a program compiles."""
        self._answer()
        self.start_up_seconds = time.perf_counter() - self.started
        print(f"{self.name}: ready after {self.start_up_seconds:.0f} s", file=sys.stderr)

    @contextmanager
    def running(self, root: Path) -> Iterator["Contender"]:
        """Start the program where that was not done; take it to its cores; do the first steps; stop it in the end."""
        if self.process is None:
            self.start(root)
            self.wait_until_ready()
        try:
            if self.settings["device"] == "cpu":
                for thread in os.listdir(f"/proc/{self.process.pid}/task"):
                    os.sched_setaffinity(int(thread), TWO_CORES)
            self._do(WARM_UP_STEPS)
            yield self
        finally:
            self.process.kill()
            self.process.wait()

    @property
    def environment(self) -> dict[str, str]:
        """What the program is told beside its settings: no hub, and in a race on a CPU no GPU, which it would take."""
        return {"HF_HUB_OFFLINE": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if self.settings["device"] == "cpu" else {})

    def take_turn(self, count: int) -> None:
        """Do one step to fill the caches again, then `count`; record the seconds that each of these took."""
        self._do(1)
        self.seconds.append(self._do(count) / count)

    def _do(self, count: int) -> float:
        print(count, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: ended early\n{self.log.read_text()[-3000:]}")
        seconds, memory = line.split()
        self.memory = int(memory)
        return float(seconds)


def race(contenders: list[Contender], rounds: int, steps: int, root: Path, limit: float = float("inf")) -> None:
    """Let all contenders do `steps` steps in turn, `rounds` times; every round begins with another one.

    No round begins later than `limit` seconds after the call. Where there is a core for each, all start at once. On a GPU
    each does all its rounds alone: its memory does not hold them all, and nobody else computes there.
    """
    if contenders[0].settings["device"] == "cuda":
        for contender in contenders:
            with contender.running(root):
                for _ in range(rounds):
                    contender.take_turn(steps)
        return
    begun = time.perf_counter()
    if len(os.sched_getaffinity(0)) >= len(contenders):
        for contender in contenders:
            contender.start(root)
        with ThreadPoolExecutor(len(contenders)) as pool:
            list(pool.map(Contender.wait_until_ready, contenders))
    with ExitStack() as stack:
        for contender in contenders:
            stack.enter_context(contender.running(root))
        os.sched_setaffinity(0, TWO_CORES)
        for number in range(rounds):
            if time.perf_counter() - begun > limit:
                break
            first = number % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                contender.take_turn(steps)


def model_flops(num_matrix_weights: int, shape: LlamaShape, batch: tuple[int, int]) -> float:
    """Return the model FLOPs of one step: 6 per weight that is multiplied and token, 12 L H T per token for attention.

    Weights of the embedding are looked up, not multiplied. The masked half of attention counts, as is usual.
    """
    sequences, length = batch
    attention = 12 * shape.num_hidden_layers * shape.hidden_size * length
    return (6 * num_matrix_weights + attention) * sequences * length


class Field:
    """What all contenders of a race share: shape, batch, data, precision, device."""

    def __init__(self, arguments: argparse.Namespace, root: Path):
        self.root, self.batch = root, BATCHES[arguments.size]
        self.recompute = RECOMPUTE.get(arguments.size, "none")
        self.study = load_study(HERE.parent / "studies" / "paper.yaml")
        is_small = arguments.size.startswith("small")
        size = "99M" if is_small else arguments.size
        self.configs = {family: self.study.pretrained[f"{family}/{size}"] for family in ("floatlm", "trilm")}
        self.shape = SMALL if is_small else self.configs["floatlm"].shape
        self.peers = arguments.peers.resolve()
        self.common = {
            "data": str(root / "data"),
            "precision": arguments.precision,
            "device": arguments.device,
            "batch_size": self.batch[0],
            "sequence_length": self.batch[1],
            "compile": False,
        }
        self._write_data()

    def ours(
        self,
        name: str,
        family: str,
        compile: bool = False,
        attention: AttentionForm | None = None,
        float32_stream: bool = False,
        **changes: Any,
    ) -> Contender:
        """Return our trainer; `changes` to the paper's config of the family, in which nothing else happens.

        `attention` takes the place of the rule's choice, `float32_stream` that of a residual stream in half precision.
        """
        sequences, length = self.batch
        shape = self.shape.model_copy(update={"max_position_embeddings": length})
        quiet = dict.fromkeys(("log_every_steps", "checkpoint_every_steps", "valid_every_steps"), 10**6)
        config = self.configs[family].model_dump() | quiet | {"shape": shape.model_dump(), "max_steps": 10**6}
        config |= {"global_batch_size": sequences, "sequence_length": length}
        config |= {"precision": self.common["precision"]} | changes
        path = self.root / f"{name.replace(' ', '-')}.json"
        path.write_text(PretrainConfig.model_validate(config).model_dump_json())
        weights = shape.num_linear_parameters + shape.vocab_size * shape.hidden_size
        settings = self.common | {"program": "openspectra", "config": str(path), "compile": compile}
        settings |= {"attention": attention, "float32_stream": float32_stream}
        settings |= {"recompute": self.recompute}
        return Contender(name, settings, model_flops(weights, shape, self.batch))

    def peer(self, program: str, compile: bool) -> Contender:
        """Return a peer at the shape of the race."""
        shape = self.shape
        linear = 12 * shape.num_hidden_layers * shape.hidden_size**2  # nanoGPT: GELU of four times the width
        linear = linear if program == "nanogpt" else shape.num_linear_parameters
        fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        settings = {"program": program, "compile": compile, "peers": str(self.peers)}
        settings["shape"] = {name: getattr(shape, name) for name in fields}
        flops = model_flops(linear + shape.vocab_size * shape.hidden_size, shape, self.batch)
        python = str(self.peers / "venv" / "bin" / "python")
        return Contender(f"{program} compiled" if compile else program, self.common | settings, flops, python)

    def product(self) -> Contender:
        """Return the matrix product that gives the rate."""
        size = 2048 if self.common["device"] == "cpu" else 8192
        settings = self.common | {"program": "product", "product_size": size}
        return Contender("matrix product", settings, 2 * size**3)

    def _write_data(self) -> None:
        tokens = np.random.default_rng(0).integers(self.shape.vocab_size, size=2**21, dtype="<u2")
        data = self.root / "data"
        for number, split in enumerate(("train", "valid")):
            config = TokenPartConfig(part=number, splits=[split])
            with write_artifact(data / "parts" / split, "token_part", config, {}) as draft:
                writer = ShardWriter(draft.folder, split, tokens.dtype, len(tokens))
                writer.add(tokens, "0", "random")
                (shard,) = writer.close()
            part = open_artifact(data / "parts" / split)
            with write_artifact(data / split, "tokens", TokensConfig(split=split), {"part": part}) as draft:
                write_json(draft.folder / SHARDS, [in_split(shard, part, "part", 0)])
                draft.metrics |= {"num_tokens": len(tokens), "num_documents": 1, "dtype": tokens.dtype.str}
        with write_artifact(data / "tokenizer", "tokenizer", TokenizerConfig(vocab_size=self.shape.vocab_size), {}):
            pass  # read only when a run ends, which none of these does
        for name in ("train.bin", "val.bin"):  # the names that nanoGPT looks for
            (data / name).symlink_to(data / "parts" / "train" / "train-00000.bin")
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": self.shape.vocab_size}))


def line_up(arguments: argparse.Namespace, field: Field) -> list[Contender]:
    """Return the contenders of a race; the first is the one that all others are compared with."""
    if arguments.race == "families":
        return [field.ours("floatlm", "floatlm"), field.ours("trilm", "trilm"), field.product()]
    if arguments.race == "levers":
        return levers(field)
    if arguments.race == "instruments":
        # one sequence of validation: measurements are made where a run validates, and only they are to be timed
        every = dict.fromkeys(("checkpoint_every_steps", "valid_every_steps"), arguments.steps)
        every |= {"valid_sequences": 1, "log_every_steps": 10}
        return [field.ours("without", "trilm"), field.ours("with", "trilm", **every), field.product()]
    programs = [(name, compile) for compile in (False, True) for name in ("nanogpt", "litgpt", "transformers")]
    peers = [field.peer(name, compile) for name, compile in programs]
    ours = [field.ours("openspectra", "floatlm"), field.ours("openspectra compiled", "floatlm", compile=True)]
    return [*ours, *peers, field.product()]


def levers(field: Field) -> list[Contender]:
    """Return our trainer without the levers, with each alone, with all; where they are at hand, nanoGPT plain and compiled.

    Attention as products is for CPUs. In float32 a run takes the compiler alone: that is what is together there, and there is no half-precision stream.
    """
    without = {"attention": "fused", "float32_stream": True}
    alone = {} if field.common["device"] == "cuda" else {"products": without | {"attention": "products"}}
    if field.common["precision"] != "32-true":
        alone |= {"half-precision stream": without | {"float32_stream": False}, "compiled": without | {"compile": True}}
    ours = [field.ours("without", "floatlm", **without)]
    ours += [field.ours(name, "floatlm", **settings) for name, settings in alone.items()]
    ours += [field.ours("together", "floatlm", compile=True), field.ours("together, trilm", "trilm", compile=True)]
    peers = [field.peer("nanogpt", compile) for compile in (False, True)] if (field.peers / "nanoGPT").is_dir() else []
    return [*ours, *peers, field.product()]


def race_of_sizes(arguments: argparse.Namespace, path: Path) -> None:
    """Train both families at each size, each alone on the machine; write a Markdown table, row by row.

    Compiled, as all runs of the paper are. A size that fails stands in the table as such.
    """
    header = ["model", "batch", "recompute", "ms per step", "tokens/s", "MFU", "GPU memory (GiB)", "start-up (s)"]
    lines = [
        f"{describe(arguments)}, one pass a step, {arguments.rounds} steps",
        "",
        *map(table_row, (header, ["---"] * len(header))),
    ]
    peak = peak_flops(arguments.device)
    for size in arguments.sizes.split(","):
        arguments.size = size
        for family in ("floatlm", "trilm"):
            with tempfile.TemporaryDirectory() as folder:
                field = Field(arguments, Path(folder))
                contender = field.ours(f"{family} {arguments.size}", family, compile=True)
                sequences, length = field.batch
                row = [contender.name, f"{sequences} x {length}", field.recompute]
                try:
                    race([contender], 1, arguments.rounds, Path(folder))
                except SystemExit as error:
                    print(error, file=sys.stderr)
                    row += ["failed"] + ["-"] * 4
                else:
                    (seconds,) = contender.seconds
                    share = f"{contender.flops / seconds / peak:.1%}" if peak else "-"
                    row += [f"{1000 * seconds:,.1f}", f"{sequences * length / seconds:,.0f}", share]
                    row += [f"{contender.memory / 2**30:.1f}", f"{contender.start_up_seconds:.0f}"]
            lines.append(table_row(row))
            path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


def table_row(cells: list[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def peak_flops(device: str) -> float | None:
    """Return the data sheet's rate of this GPU, where it is known."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in machine(device)), None)


def describe(arguments: argparse.Namespace) -> str:
    """Return day, machine, torch and precision."""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {machine(arguments.device)}, torch {torch.__version__}, {arguments.precision}"
    )


def report(contenders: list[Contender], arguments: argparse.Namespace) -> str:
    """Return the results as a Markdown table."""
    first, rate = contenders[0], contenders[-1]
    peak = peak_flops(arguments.device)
    header = ["contender", "ms per step", "steps/s, relative", "from .. to", "of the product rate", "start-up (s)"]
    rows = []
    for contender in contenders[:-1]:
        relative = ratios(first.seconds, contender.seconds)
        share = statistics.median(ratios(rate.seconds, contender.seconds)) * contender.flops / rate.flops
        row = [contender.name, f"{1000 * statistics.median(contender.seconds):,.1f}"]
        row += [f"{statistics.median(relative):.3f}", f"{min(relative):.2f} .. {max(relative):.2f}"]
        row += [f"{share:.0%}", f"{contender.start_up_seconds:.0f}"]
        if peak:
            row.append(f"{contender.flops / statistics.median(contender.seconds) / peak:.1%}")
        rows.append(row)
    header += ["MFU"] if peak else []
    lines = [header, ["---"] * len(header), *rows]
    about = f"{describe(arguments)}, "
    about += f"size {arguments.size}, batch {' x '.join(map(str, BATCHES[arguments.size]))} tokens, "
    about += f"{len(first.seconds)} rounds of {arguments.steps} steps, "
    about += f"matrix product {rate.flops / statistics.median(rate.seconds) / 1e9:,.0f} GFLOP/s"
    return "\n".join([about, "", *(f"| {' | '.join(line)} |" for line in lines), "", *verdicts(contenders)]) + "\n"


def verdicts(contenders: list[Contender]) -> Iterator[str]:
    """Yield our speed over that of the fastest peer, where there are peers."""
    by_name = {contender.name: contender for contender in contenders}
    for text, name, peers in COMPARISONS:
        if name in by_name and by_name.keys() >= set(peers):
            fastest = min((by_name[peer] for peer in peers), key=lambda peer: statistics.median(peer.seconds))
            ratio = statistics.median(ratios(fastest.seconds, by_name[name].seconds))
            yield f"{text}: {name} is {ratio:.2f} x as fast as {fastest.name}."


def ratios(first: list[float], second: list[float]) -> list[float]:
    """Return first / second, round by round."""
    return [a / b for a, b in zip(first, second, strict=True)]


def machine(device: str) -> str:
    """Return the name of what computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()} {'with' if has_bfloat16_products() else 'without'} bfloat16 products"


def has_bfloat16_products() -> bool:
    """Return whether this processor has instructions for them."""
    return bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()))


def default_precision(device: str) -> str:
    """Return bfloat16 where the hardware has products of it, else float32."""
    return "bf16-mixed" if device == "cuda" or has_bfloat16_products() else "32-true"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("race", choices=("peers", "levers", "families", "instruments", "sizes"))
    parser.add_argument("--peers", type=Path, default=HERE / "peers", help="what fetch_peers.sh has made")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=BATCHES, default="small")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a contender in each round")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="seconds after which no round begins, on a CPU"
    )
    parser.add_argument("--sizes", default=PAPER_SIZES, help="of the race `sizes`, with commas between")
    arguments = parser.parse_args()
    arguments.precision = arguments.precision or default_precision(arguments.device)
    if arguments.device == "cpu":  # two cores, on every machine
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(len(TWO_CORES))
    (HERE / "results").mkdir(exist_ok=True)
    if arguments.race == "sizes":
        race_of_sizes(arguments, HERE / "results" / f"sizes-{arguments.device}-{arguments.precision}.md")
        return
    with tempfile.TemporaryDirectory() as folder:
        contenders = line_up(arguments, Field(arguments, Path(folder)))
        race(contenders, arguments.rounds, arguments.steps, Path(folder), arguments.limit)
    text = report(contenders, arguments)
    name = f"{arguments.race}-{arguments.size}-{arguments.device}-{arguments.precision}"
    (HERE / "results" / f"{name}.md").write_text(text)
    rounds = {contender.name: contender.seconds for contender in contenders}
    numbers = json.dumps({"about": text.splitlines()[0], "seconds_per_step": rounds}, indent=1)
    (HERE / "results" / f"{name}.json").write_text(numbers + "\n")
    print(text)


if __name__ == "__main__":
    main()
