"""Live tracking: points per second from a metrics file into MLflow on SQLite, and what a training step pays for its curves.

`python benchmarks/tracking.py [--points N]`. The second part drives the very callback of the training loop, with the
rows of a TriLM of 182 matrices, over steps that do nothing: what it takes is what training is slower by.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from machine import processor

from openspectra.tracking.live import Training, send
from openspectra.tracking.store import tracking_store
from openspectra.training.curves import Curves
from openspectra.training.metrics_file import METRICS_FILE, MetricsFile

POINTS_PER_ROW = 4
STEPS, LOG_EVERY, VALIDATE_EVERY, MATRICES = 20_000, 10, 500, 182


def points_per_second(folder: Path, num_points: int) -> tuple[float, float]:
    """Return the points per second of one run, from the first byte of its file on, an empty store made before.

    By the clock, and by this process's own time, which other work on the machine does not change.
    """
    from mlflow import MlflowClient

    training = Training(folder / "trilm/99M/checkpoints" / ("0" * 16))
    training.folder.mkdir(parents=True)
    identity = {"config": {"model_id": "trilm/99M"}, "parents": {}, "stage_version": 1}
    (training.folder / "run.json").write_text(json.dumps(identity))
    file, rng = MetricsFile(training.folder / METRICS_FILE), random.Random(1)
    file.start(0)
    names = ("train_loss", "learning_rate", "gradient_norm", "tokens_seen")[:POINTS_PER_ROW]
    file.add([(step, {name: rng.random() for name in names}) for step in range(num_points // POINTS_PER_ROW)])
    uri = f"sqlite:///{folder}/mlflow.db"
    with tracking_store(uri):
        client = MlflowClient(uri)
        experiment_id = client.create_experiment("benchmark")
        started, used = time.perf_counter(), time.process_time()
        send(client, experiment_id, training, [], {})
        seconds, busy = time.perf_counter() - started, time.process_time() - used
        (run,) = client.search_runs([experiment_id])
        assert len(client.get_metric_history(run.info.run_id, names[0])) == num_points // POINTS_PER_ROW
    return num_points / seconds, num_points / busy


def microseconds_per_step(folder: Path) -> float:
    """Return the mean CPU time that the curves of a run take per step, its rows included."""
    tables = {"train": [], "valid": [], "ternary": []}
    config = SimpleNamespace(max_steps=STEPS, tokens_per_step=1)
    module = SimpleNamespace(step=0, config=config, records=SimpleNamespace(tables=tables))
    curves = Curves(folder / METRICS_FILE)
    curves.on_train_start(None, module)
    spent = 0.0  # seconds of CPU
    for step in range(1, STEPS + 1):
        module.step, row = step, {"step": step, "tokens_seen": step}
        if step % LOG_EVERY == 0:
            tables["train"].append(row | {"train_loss": 1 / step, "learning_rate": 1e-3, "gradient_norm": 0.5})
        if step % VALIDATE_EVERY == 0:
            tables["valid"].append(row | {"valid_loss": 1 / step})
            means = {"num_weights": 10, "sparsity": 0.3, "flip_rate": 0.01, "scale": 0.1}
            tables["ternary"] += [row | {"layer": f"layers.{number}"} | means for number in range(MATRICES)]
        started = time.process_time()
        curves.on_train_batch_end(None, module, None, None, step)
        spent += time.process_time() - started
    return 1e6 * spent / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=40_000)
    num_points = parser.parse_args().points
    with tempfile.TemporaryDirectory() as folder:
        (speed, busy), cost = points_per_second(Path(folder), num_points), microseconds_per_step(Path(folder))
    print(
        f"{speed:,.0f} points per second into SQLite, {busy:,.0f} per second of CPU ({num_points:,} points of one run)"
    )
    print(f"{cost:.0f} microseconds per training step for its curves ({STEPS:,} steps, a row every {LOG_EVERY},")
    print(f"{MATRICES} matrices every {VALIDATE_EVERY})")
    print(processor())


if __name__ == "__main__":
    main()
