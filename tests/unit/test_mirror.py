"""Files laid out as data sets of the hub: lm-eval's own tasks and groups read them, and what is other is named."""

# ruff: noqa: F811  (fixtures of test_harness are parameters here)

import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from benchmark_hub import arc_row, mmlu_row, mmlu_subjects, page_row, sciq_row
from test_harness import make_model, one_thread, project, rows_of, texts  # noqa: F401

from openspectra.artifacts import open_artifact
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.evaluation.config import EvaluateConfig
from openspectra.evaluation.harness import evaluate, load_tasks
from openspectra.evaluation.mirror import _name_and_split, mirror


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of `datasets`, and no network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for constant in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(constant, True)  # read from the environment at import, perhaps by another test
    return tmp_path / "cache"


def write(path: Path, make_row, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(path.name)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([make_row(rng, n) for n in range(count)]), path)


@pytest.mark.parametrize(
    ("path", "name", "split"),
    [
        ("arc_easy/test", "arc_easy", "test"),
        ("mmlu/dev/high_school_us_history", "mmlu/high_school_us_history", "dev"),
        ("truthfulqa/multiple_choice_validation", "truthfulqa/multiple_choice", "validation"),
        ("notes/readme", "notes/readme", None),
    ],
)
def test_a_path_says_of_what_a_file_is(path, name, split):
    assert _name_and_split(Path(path)) == (name, split)


@pytest.mark.slow
def test_tasks_and_the_group_of_mmlu_run_from_files(cache, texts, tmp_path):
    folder = tmp_path / "files"
    for split in ("test", "validation", "train"):
        write(folder / f"arc_easy/{split}.parquet", arc_row, 3)
    write(folder / "sciq/validation.parquet", sciq_row, 4)
    for subject in mmlu_subjects():
        for split in ("test", "dev"):
            write(folder / f"mmlu/{split}/{subject.removesuffix('_continuation')}.parquet", mmlu_row, 1)
    write(folder / "wikitext/test.parquet", page_row, 2)
    write(folder / "zebra/test.parquet", arc_row, 1)
    told = mirror(folder)
    num_subjects = len(mmlu_subjects())
    assert told == [
        "arc_easy: 3 items of test (the hub has 2,376)",
        f"mmlu: {num_subjects} items of test (the hub has 14,042)",
        "sciq: 4 items of validation (validation in place of test; no train: zero-shot only)",
        "wikitext: 2 items of test (the hub has 62; no validation, no train: zero-shot only)",
        "zebra/test.parquet: left out, no task of lm-eval reads it",
        f"laid out in {cache}",
    ]
    config = EvaluateConfig(tasks=["arc_easy", "sciq", "mmlu_continuation"], batch_size=8, dtype="float32")
    out = tmp_path / "evaluation"
    out.mkdir()
    evaluate(config, make_model(tmp_path / "model", texts), out)
    splits = {row["task"]: (row["split"], row["num_items"]) for row in rows_of(out / "data.csv")}
    assert splits["arc_easy"] == ("test", "3") and splits["sciq"] == ("validation", "4")
    assert len(splits) == 2 + num_subjects
    scores = {(row["task"], row["metric"]): row["num_samples"] for row in rows_of(out / "scores.csv")}
    assert scores["mmlu_continuation", "acc"] == str(num_subjects) and ("stem", "acc") in {
        (task.rpartition("::")[2], metric) for task, metric in scores
    }

    with pytest.raises(ConfigError, match="sciq: its data were laid out of files without train"):
        evaluate(
            config.model_copy(update={"tasks": ["sciq"], "num_fewshot": 1}), open_artifact(tmp_path / "model"), out
        )

    corpora = ["wikitext", "paloma_ptb", "slimpajama_validation"]
    config = config.model_copy(update={"tasks": corpora, "skip_missing": True})
    (tmp_path / "corpora").mkdir()
    evaluate(config, open_artifact(tmp_path / "model"), tmp_path / "corpora")
    assert {row["task"] for row in rows_of(tmp_path / "corpora/documents.csv")} == {"wikitext"}
    reasons = {row["task"]: row["reason"] for row in rows_of(tmp_path / "corpora/missing.csv")}
    assert list(reasons) == corpora[1:]
    with pytest.raises(OpenSpectraError, match="paloma_ptb: its data are not in the cache"):
        load_tasks(corpora)

    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}
    assert mirror(folder) == told  # a second time nothing is written
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")} == before
    (laid,) = (cache / "allenai___sciq/default/0.0.0").glob("mirror-*")
    laid.rename(laid.with_name("a" * 40))  # as what the hub gave is called
    assert "sciq: left as it is: the cache holds what the hub gave" in mirror(folder)


def test_files_that_are_no_task_s_or_cannot_be_read_are_named(cache, tmp_path):
    with pytest.raises(ConfigError, match="holds no file `<task>/<split>.parquet`"):
        mirror(tmp_path)
    path = tmp_path / "arc_easy/test.parquet"
    path.parent.mkdir()
    path.write_text("not parquet")
    with pytest.raises(ConfigError, match="arc_easy/test.parquet: cannot be read"):
        mirror(tmp_path)
