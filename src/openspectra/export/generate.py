"""Text from a model, in whatever format its folder is, token by token as they come."""

import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from openspectra.artifacts import Artifact
from openspectra.errors import ConfigError

logger = logging.getLogger("openspectra.export")
REPLACEMENT = "\ufffd"
"""What the bytes of an unfinished character decode to."""


class Sampling(NamedTuple):
    """How the next token is chosen."""

    num_tokens: int
    temperature: float
    """0: the most likely token, always."""
    top_k: int
    """0: all tokens."""
    top_p: float
    seed: int


def generate(folder: Path, prompt: str, sampling: Sampling, write: Callable[[str], None]) -> None:
    """Write the prompt and what follows it, piece by piece; log tokens per second at the end.

    GGUF runs in llama.cpp where `llama-cpp-python` is installed, everything else in torch, dequantized. Raises `ConfigError`
    for a prompt that leaves no room or is no text.
    """
    from openspectra.export import llama_cpp
    from openspectra.export.loading import (
        build,
        format_of,
        load_tokenizer,
        malformed_in_one_line,
        open_model,
        read_stored,
    )

    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ConfigError(["PROMPT: holds bytes that are no UTF-8; give text."])
    artifact = open_model(folder)
    # without gptqmodel's banner
    with malformed_in_one_line(artifact.folder), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        form = format_of(artifact)
        stored = read_stored(artifact.folder, form)
    tokenizer = load_tokenizer(artifact.folder)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [stored.end_of_text]
    context = stored.shape.max_position_embeddings
    if len(ids) >= context:
        raise ConfigError([f"PROMPT: {len(ids):,} tokens where {folder} reads {context:,} at most; shorten it."])
    sampling = sampling._replace(num_tokens=min(sampling.num_tokens, context - len(ids)))
    version = llama_cpp.installed() if form.startswith("gguf") else None
    if version:
        engine = f"llama-cpp-python {version}"
        tokens = _by_llama_cpp(artifact, ids, context, stored.end_of_text, sampling)
    else:
        engine = f"torch {metadata.version('torch')}, float32"
        with malformed_in_one_line(artifact.folder):
            model = build(stored, artifact.folder, form)
        tokens = _by_transformers(model, ids, sampling)
    write(prompt)
    moments = [time.perf_counter()]
    with closing(tokens):  # a reader that goes away, or Ctrl-C, ends the computing first
        for piece in _pieces(tokens, tokenizer, stored.end_of_text, moments):
            write(piece)
    write("\n")
    count, first, rest = len(moments) - 1, moments[1] - moments[0], moments[-1] - moments[1]
    speed = f"{(count - 1) / rest:,.1f} tokens/s after the first" if count > 1 else "too few for a speed"
    logger.info(
        "%d tokens: %s; %d tokens of prompt and the first in %.2f s (%s)", count, speed, len(ids), first, engine
    )


def _pieces(tokens: Iterator[int], tokenizer, end_of_text: int, moments: list[float]) -> Iterator[str]:
    """Yield the text of tokens, a whole character at least each time; note when each token came."""
    new: list[int] = []
    shown = text = ""
    for token in tokens:
        moments.append(time.perf_counter())
        if token == end_of_text:
            break
        new.append(token)
        text = tokenizer.decode(new)
        if not text.endswith(REPLACEMENT):
            yield text[len(shown) :]
            shown = text
    if len(text) > len(shown):  # ended within a character
        yield text[len(shown) :]


def _by_transformers(model, ids: list[int], sampling: Sampling) -> Generator[int]:
    """Yield the new tokens of transformers' `generate`, which runs in a thread of its own."""
    from queue import Queue
    from threading import Event, Thread

    import torch
    from transformers import GenerationConfig

    from openspectra.device import device

    tokens: Queue[int | BaseException | None] = Queue()
    is_left = Event()

    class Streamer:
        """Takes the prompt first, then each new token."""

        seen_prompt = False

        def put(self, value: torch.Tensor) -> None:
            if is_left.is_set():
                raise InterruptedError("nobody takes the tokens any more")
            if self.seen_prompt:
                tokens.put(int(value.flatten()[0]))
            self.seen_prompt = True

        def end(self) -> None:
            tokens.put(None)

    chosen = {"do_sample": False} if sampling.temperature == 0 else _draw(sampling)
    ends = model.config.eos_token_id
    settings = GenerationConfig(max_new_tokens=sampling.num_tokens, eos_token_id=ends, pad_token_id=ends, **chosen)
    input_ids = torch.tensor([ids], device=device())
    model.to(device())
    model.generation_config = settings

    def run() -> None:
        torch.manual_seed(sampling.seed)
        try:
            model.generate(input_ids, attention_mask=torch.ones_like(input_ids), streamer=Streamer())
        except BaseException as error:  # told by who waits for the tokens
            tokens.put(error)

    thread = Thread(target=run)
    try:
        thread.start()
        while (token := tokens.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            yield token
    finally:  # torch aborts a process that ends while it computes
        is_left.set()
        if thread.ident:
            thread.join()


def _draw(sampling: Sampling) -> dict[str, float | int | bool]:
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }


def _by_llama_cpp(
    artifact: Artifact, ids: list[int], context: int, end_of_text: int, sampling: Sampling
) -> Generator[int]:
    """Yield the new tokens of llama.cpp."""
    from openspectra.export.llama_cpp import open_file
    from openspectra.export.loading import gguf_path

    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
    llama = open_file(gguf_path(artifact.folder), threads, context, seed=sampling.seed)
    settings = {"temp": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": 0.0}
    found = llama.generate(ids, repeat_penalty=1.0, **settings)
    for token, _ in zip(found, range(sampling.num_tokens), strict=False):
        yield token
        if token == end_of_text:
            return
