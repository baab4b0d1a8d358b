"""Tokens per second of a TriLM on a CPU: llama.cpp with TQ2_0, TQ1_0 and F16 against float32 torch, at the paper's 99M.

Weights are random, which changes no speed. Needs the extra `gguf-run` (llama-cpp-python). All are ready at the same time
and take turns; a ratio is the median of the ratios within the rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import processor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from openspectra.export.gguf_file import write_gguf
from openspectra.export.llama_cpp import installed, open_file
from openspectra.export.loading import build
from openspectra.export.stored import Stored
from openspectra.model.config import LlamaShape
from openspectra.model.hugging_face import exported_weights
from openspectra.model.llama import Llama

SHAPE = LlamaShape(  # paper, model table: 99M
    vocab_size=50304, hidden_size=512, intermediate_size=1280, num_hidden_layers=16, num_attention_heads=8
)
PROMPT, NEW = 512, 64
"""Tokens read at once, and tokens read one at a time after another, shorter prompt."""
SHORT = 16
FORMATS = ("gguf-tq2_0", "gguf-tq1_0", "gguf-f16")


class Torch:
    """transformers' Llama in float32, with its cache of keys and values."""

    def __init__(self, source: Stored):
        self.model = build(source, Path(), "packed-2bit")

    @torch.no_grad()
    def read(self, ids: list[int], past=None):
        """Read tokens, and return the cache that holds them; logits of the last one are computed."""
        return self.model(torch.tensor([ids]), past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values


class LlamaCpp:
    """llama.cpp on a GGUF file."""

    def __init__(self, path: Path, num_threads: int):
        self.llama = open_file(path, num_threads, PROMPT + NEW)

    def read(self, ids: list[int], past=None) -> bool:
        """Read tokens, from the start or after those before."""
        if past is None:
            self.llama.reset()
        self.llama.eval(ids)
        return True


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def one_round(contender: Torch | LlamaCpp, ids: list[int]) -> tuple[float, float]:
    """Return tokens per second, one at a time and as a prompt."""
    prompt = PROMPT / seconds(lambda: contender.read(ids))
    past = contender.read(ids[:SHORT])

    def one_at_a_time() -> None:
        state = past
        for token in ids[SHORT : SHORT + NEW]:
            state = contender.read([token], state)

    return NEW / seconds(one_at_a_time), prompt


def main() -> None:
    """Run the rounds, print the table, write it and the numbers of every round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = Llama(SHAPE, "trilm")
    model.reset_parameters(1)
    source = Stored(SHAPE, "floatlm", 0, exported_weights(model, "float32"), 0, "")
    del model
    ids = np.random.default_rng(0).integers(0, SHAPE.vocab_size, PROMPT).tolist()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder, "tokenizer.json")
        save_tokenizer(tokenizer)
        contenders: dict[str, Torch | LlamaCpp] = {"torch float32": Torch(source)}
        for form in FORMATS:
            path = Path(folder, f"{form}.gguf")
            write_gguf(source, form, "trilm/99M", tokenizer, path)
            contenders[f"llama.cpp {form.removeprefix('gguf-').upper()}"] = LlamaCpp(path, arguments.threads)
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for number in range(arguments.rounds + 1):
            for name, contender in contenders.items():
                speeds = one_round(contender, ids)
                if number:  # the first fills caches
                    rounds[name].append(speeds)
    threads = f"{arguments.threads} threads" if arguments.threads > 1 else "1 thread"
    lines = [
        f"# Generation on a CPU: {SHAPE.num_parameters / 1e6:.1f}M parameters, random weights, {threads}",
        f"{processor()}; torch {torch.__version__}, llama-cpp-python {installed()}; {time.strftime('%Y-%m-%d')}; median of "
        f"{arguments.rounds} rounds, smallest to largest ratio. Prompt: {PROMPT} tokens at once, logits of the last.",
        table(rounds),
    ]
    text = "\n\n".join(lines) + "\n"
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "generation-99M-cpu.md").write_text(text, encoding="utf-8")
    (arguments.out / "generation-99M-cpu.json").write_text(json.dumps(rounds, indent=1) + "\n", encoding="utf-8")


def table(rounds: dict[str, list[tuple[float, float]]]) -> str:
    """Return a row per contender: tokens per second and the ratio to torch, one at a time and as a prompt."""
    rows = [
        "| | tokens/s, one at a time | ratio to torch | prompt tokens/s | ratio to torch |",
        "|---|---:|---:|---:|---:|",
    ]
    base = next(iter(rounds.values()))
    for name, found in rounds.items():
        cells = [name]
        for place in (0, 1):
            own, of_torch = ([each[place] for each in speeds] for speeds in (found, base))
            ratios = [a / b for a, b in zip(own, of_torch, strict=True)]
            cells += [
                f"{statistics.median(own):,.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def save_tokenizer(path: Path) -> None:
    """Write a tokenizer of bytes and one merge: the speed of a model does not depend on it, and llama.cpp wants one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<|endoftext|>", *alphabet, "th"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("t", "h")]))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


if __name__ == "__main__":
    main()
