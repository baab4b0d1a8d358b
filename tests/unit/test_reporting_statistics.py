"""Intervals: against normal theory, paired against unpaired, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from reporting_study import documents_of

from openspectra.reporting import statistics
from openspectra.reporting.statistics import document_losses, mean_accuracy, resample_totals


def documents(**losses: float) -> pd.DataFrame:
    """Return documents of equal difficulty for all models, the mean loss of each as given."""
    frames = [documents_of(loss, 400, seed=len(name)).assign(model_id=name) for name, loss in losses.items()]
    return pd.concat(frames, ignore_index=True)


def test_interval_agrees_with_normal_theory():
    generator = np.random.default_rng(3)
    nats_D = 300 + 50 * generator.standard_normal(500)
    rows = {
        "model_id": "floatlm/1M",
        "task": "text",
        "num_tokens": 100,
        "num_bytes": 300,
        "lost_bytes": 0,
        "log_likelihood": -nats_D,
    }
    table = pd.DataFrame(rows | {"document_id": [str(index) for index in range(500)]})
    loss = document_losses(table, 4000, seed=1).loss("floatlm/1M")
    half_width = 1.96 * nats_D.std() / 100 / np.sqrt(500)
    assert loss.value == pytest.approx(nats_D.mean() / 100)
    assert loss.high - loss.value == pytest.approx(half_width, rel=0.08)
    assert loss.value - loss.low == pytest.approx(half_width, rel=0.08)


def test_loss_weighs_documents_by_their_tokens():
    table = pd.DataFrame(
        {
            "model_id": "floatlm/1M",
            "task": "text",
            "document_id": ["a", "b"],
            "num_tokens": [1, 3],
            "num_bytes": [4, 12],
            "lost_bytes": [0, 0],
            "log_likelihood": [-8.0, -12.0],
        }
    )
    losses = document_losses(table, 10, seed=1)
    assert losses.loss("floatlm/1M").value == 5.0
    assert losses.bits_per_byte("floatlm/1M") == pytest.approx(20 / np.log(2) / 16)


def test_paired_interval_is_narrower_than_unpaired():
    losses = document_losses(documents(a=3.0, bb=3.1), 500, seed=1)
    first, second, gap = losses.loss("a"), losses.loss("bb"), losses.gap("bb", "a")
    assert gap.value == pytest.approx(second.value - first.value)
    assert gap.high - gap.low < 0.2 * (second.high - second.low)
    assert gap.excludes_zero


def test_gap_of_a_constant_has_no_width():
    table = documents(a=3.0)
    shifted = table.assign(model_id="b", log_likelihood=table["log_likelihood"] - 0.25 * table["num_tokens"])
    gap = document_losses(pd.concat([table, shifted]), 100, seed=1).gap("b", "a")
    assert (gap.low, gap.value, gap.high) == pytest.approx((0.25, 0.25, 0.25))


def test_interval_depends_on_seed_only():
    table = documents(a=3.0, bb=3.1)
    again = table.sample(frac=1, random_state=5)
    assert document_losses(table, 50, seed=1).loss("a") == document_losses(again, 50, seed=1).loss("a")
    assert document_losses(table, 50, seed=1).loss("a") != document_losses(table, 50, seed=2).loss("a")


def test_resampling_in_chunks_draws_the_same(monkeypatch):
    values = np.arange(60.0).reshape(30, 2)
    whole = resample_totals(values, 25, seed=4)
    monkeypatch.setattr(statistics, "CHUNK_ENTRIES", 100)
    assert resample_totals(values, 25, seed=4) == pytest.approx(whole)


def test_model_scored_on_other_documents_is_excluded_with_reason():
    table = documents(a=3.0, bb=3.1, ccc=3.2)
    losses = document_losses(table.drop(index=table[table["model_id"] == "bb"].index[0]), 50, seed=1)
    assert losses.gap("bb", "a") is None
    assert losses.excluded == {"bb": "scored on other test documents than most models"}


def test_one_document_gives_no_interval():
    loss = document_losses(documents(a=3.0).head(1), 50, seed=1).loss("a")
    assert (loss.low, loss.high, loss.excludes_zero) == (None, None, False)


def test_mean_accuracy_needs_every_task():
    rows = [("a", "cloze", 0.4, 0.03), ("a", "pairs", 0.6, 0.04), ("b", "cloze", 0.9, 0.01)]
    scores = pd.DataFrame(rows, columns=["model_id", "task", "value", "stderr"]).assign(metric="acc")
    mean = mean_accuracy(scores, {"cloze": "acc", "pairs": "acc"})
    assert mean["model_id"].tolist() == ["a"]
    assert mean.loc[0, "value"] == pytest.approx(0.5)
    assert mean.loc[0, "stderr"] == pytest.approx(0.025)
