"""Measures what a plan stands on, in two minutes at most: the start of a process, and how fast each model trains here.

As many processes measure at once as trainings share the machine, each with the threads of one, so that they hinder each
other as much as the study's jobs will. Steps are the model's own, forward, backward, clipping and AdamW, uncompiled, on
random tokens.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

from openspectra.errors import OpenSpectraError
from openspectra.resources import StudyResources
from openspectra.site import Site
from openspectra.speeds import Speeds, assumed_speeds
from openspectra.study import Study, load_study
from openspectra.training.config import PretrainConfig
from openspectra.work import training_flop
from openspectra.writing import write_atomically

SECONDS = 100.0
"""On the clock from the start of the processes; each model is given at least two steps."""
LEAST_SECONDS = 5.0
"""Of a model: what two of its steps may take in any case."""
MOST_PASSES = 4
"""Forward and backward passes of a measured step: of a larger batch the update counts as much more often."""


def calibrate(study: Study, study_file: Path, site: Site | None, out: Path) -> Speeds:
    """Return the speeds of this machine for a study's models, and write them to `out`.

    Raises `OpenSpectraError` where no model could be measured.
    """
    on_gpus = bool(site and site.gpus)
    threads = max(StudyResources(study, None).threads("pretrain_model", run) for run in study.pretrained.values())
    processes = 1 if on_gpus else max(1, (os.cpu_count() or 1) // threads)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "openspectra.calibration", str(study_file), "cuda" if on_gpus else "cpu"]
    running = [
        subprocess.Popen([*command, str(time.time())], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    answers = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise OpenSpectraError("--calibrate: a measurement failed; what it printed stands above. Plan without it.")
    found = [json.loads(answer) for answer in answers]
    measured = set.intersection(*(set(each["rates"]) for each in found))  # one may have had time for more than another
    rates = {model: mean(each["rates"][model] for each in found) for model in found[0]["rates"] if model in measured}
    if not rates:
        raise OpenSpectraError(
            "--calibrate: no model of the study is small enough to be measured here; plan without it."
        )
    largest = max(rates, key=lambda model: training_flop(study.pretrained[model]))
    when = time.strftime("%Y-%m-%d %H:%M")
    speeds = assumed_speeds(site).model_copy(
        update={
            "start": mean(each["start"] for each in found),
            "rate": rates[largest],
            "rates": rates,
            "stretch": mean(each["stretch"] for each in found),
            "measured": f"on {when} on {found[0]['device']}, {processes} at once with {threads} threads",
        }
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, speeds.model_dump_json(indent=2).encode())
    return speeds


def measure(study: Study, device: str, spawned: float) -> dict[str, Any]:
    """Return what a process measures that was started at Unix time `spawned`.

    On a CPU seconds are those of computing, and `stretch` is what one of them takes on the clock.
    """
    import openspectra.training.pretrain  # noqa: F401  all that a training loads

    start = time.time() - spawned if device == "cuda" else time.process_time()
    rates = dict(_rates(study.pretrained, device, spawned + SECONDS))
    stretch = 1.0 if device == "cuda" else (time.time() - spawned) / (time.process_time() / _threads())
    return {"start": start, "rates": rates, "stretch": stretch, "device": _name(device)}


def _rates(runs: dict[str, PretrainConfig], device: str, end: float) -> Iterable[tuple[str, float]]:
    """Yield model and operations per second, from the smallest on, of those that a share of the time suffices for."""
    pace = 0.0  # operations per second on the clock
    order = sorted(runs, key=lambda model: runs[model].shape.num_parameters)
    for number, model in enumerate(order):
        share = max(0.0, end - time.time()) / (len(order) - number)
        step, began = _Step(runs[model], device), time.time()
        if pace and 2 * step.flop / pace > max(share, LEAST_SECONDS):
            return  # larger ones take longer still
        try:
            rate, done = step.rate(share)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if "memory" not in str(error):
                raise
            return
        pace = step.flop * done / (time.time() - began)
        yield model, rate


class _Step:
    """One optimizer step of a training, or the first passes of it."""

    def __init__(self, run: PretrainConfig, device: str):
        self.run, self.device = run, device
        self.micro = min(8, run.global_batch_size)
        self.passes = min(MOST_PASSES, max(1, run.global_batch_size // self.micro))
        self.flop = 6.0 * run.shape.num_parameters * self.passes * self.micro * run.sequence_length

    def rate(self, seconds: float) -> tuple[float, int]:
        """Return operations per second, by 6 N D, and the steps done: as many as fit into `seconds`, at least two.

        The first one allocates, and is not counted in the rate.
        """
        import torch

        from openspectra.model.llama import Llama

        run, end = self.run, time.time() + seconds
        with torch.device(self.device):
            llama = Llama(run.shape, run.family, run.attention_form(self.device))
            batch = torch.randint(run.shape.vocab_size, (self.micro, run.sequence_length + 1))
        llama.reset_parameters(run.seed)
        optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-4, fused=True)
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(run.precision)
        began, done = self._now(), 0
        while done < 2 or time.time() < end:
            for _ in range(self.passes):
                with torch.autocast(self.device, half) if half else nullcontext():
                    loss = llama(batch[:, :-1], batch[:, 1:])
                loss.backward()
            torch.nn.utils.clip_grad_norm_(llama.parameters(), run.gradient_clip_norm).item()  # waits for a GPU, too
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            began = self._now() if done == 1 else began
        return self.flop * (done - 1) / (self._now() - began), done

    def _now(self) -> float:
        return time.monotonic() if self.device == "cuda" else time.process_time() / _threads()


def _threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


def _name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{os.cpu_count()} cores ({model})"


if __name__ == "__main__":
    print(json.dumps(measure(load_study(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3]))))
