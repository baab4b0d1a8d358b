"""llama.cpp, where `llama-cpp-python` is installed: a GGUF file run by the program that it is made for."""

import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from openspectra.export.certificate import require_finite

PACKAGE = "llama-cpp-python"
SPEED_TOKENS = 64


def installed() -> str | None:
    """Return the version of llama-cpp-python, None where it is not there."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def open_file(path: Path, num_threads: int, context: int, all_logits: bool = False, seed: int = 0):
    """Return the model of a file, as `llama_cpp.Llama`."""
    from llama_cpp import Llama

    warnings.filterwarnings("ignore", category=ResourceWarning)  # it leaves /dev/null open
    threads = {"n_threads": num_threads, "n_threads_batch": num_threads}
    return Llama(str(path), n_ctx=context, n_batch=context, logits_all=all_logits, seed=seed, verbose=False, **threads)


@torch.no_grad()
def agreement(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sequences: np.ndarray, num_threads: int
) -> dict[str, Any]:
    """Return how llama.cpp agrees with the model that a file was made from: token ids of the same text, highest logits.

    And its speed, a fact of this machine: tokens per second, one at a time and as a prompt.
    """
    llama = open_file(path, num_threads, sequences.shape[1] - 1, all_logits=True)
    agreeing = same_ids = 0
    difference, prompt_seconds = 0.0, 0.0
    for row in sequences:
        text = tokenizer.decode(row.tolist())
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        same_ids += llama.tokenize(text.encode(), add_bos=False, special=False) == own
        ids = row[:-1]
        llama.reset()
        started = time.perf_counter()
        llama.eval(ids.tolist())
        prompt_seconds += time.perf_counter() - started
        theirs = torch.from_numpy(np.array(llama.scores[: len(ids)]))
        require_finite(theirs, f"llama.cpp with {path}")
        ours = model(torch.from_numpy(ids)[None]).logits[0].float()
        difference = max(difference, float((ours - theirs).abs().max()))
        agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    count = sequences.shape[0] * (sequences.shape[1] - 1)
    llama.reset()
    started = time.perf_counter()
    for token in sequences[0][: min(SPEED_TOKENS, sequences.shape[1] - 1)].tolist():
        llama.eval([token])
    seconds = (time.perf_counter() - started) / min(SPEED_TOKENS, sequences.shape[1] - 1)
    return {
        "version": f"{PACKAGE} {installed()}",
        "num_texts": len(sequences),
        "num_texts_with_equal_ids": same_ids,
        "argmax_agreement": agreeing / count,
        "largest_logit_difference": difference,
        "tokens_per_second": 1 / seconds,
        "prompt_tokens_per_second": count / prompt_seconds,
        "threads": num_threads,
    }
