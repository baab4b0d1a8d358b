"""Several seeds in the report: their spread beside the interval over documents, and no word of one training run."""

import numpy as np
import pytest
from reporting_study import FakeStudy

from openspectra.reporting import seeds
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.load import load_results
from openspectra.reporting.page import write_report
from openspectra.reporting.seeds import DIFFERENCE, TEST_LOSS, Spread
from openspectra.reporting.statistics import document_losses

CONFIG = ReportConfig(study="made-up", title="Made up", seed=1, num_resamples=200)
LABEL = "ne training run"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    made = FakeStudy(tmp_path_factory.mktemp("seeds"))
    made.add_demo(sizes=("0.4M", "1.1M"), widths=(4,))
    for seed in (2, 3):
        for family in ("floatlm", "trilm"):
            model_id = f"{family}/0.4M+seed{seed}"
            made.add_pretrained(model_id, seed=seed)
            made.add_evaluation(model_id)
    return made


def test_interval_over_seeds_is_that_of_a_mean_of_three():
    found = Spread("trilm/0.4M", TEST_LOSS, np.array([3.0, 3.1, 3.2])).over_seeds
    half = 4.302653 * 0.1 / np.sqrt(3)  # t for two degrees of freedom
    assert (found.value, found.low, found.high) == pytest.approx((3.1, 3.1 - half, 3.1 + half))


def test_spread_pairs_each_model_with_the_twin_of_its_seed(study):
    results = load_results(list(study.artifacts.values()))
    losses = document_losses(results.documents, 200, 1)
    table = seeds.seed_table(seeds.spreads_of(results, losses)).set_index(["model_id", "measure"])
    assert {model_id for model_id, _ in table.index} == {"floatlm/0.4M", "trilm/0.4M"}  # the other has one run
    names = ["", "+seed2", "+seed3"]
    gaps = [losses.loss(f"trilm/0.4M{name}").value - losses.loss(f"floatlm/0.4M{name}").value for name in names]
    row = table.loc["trilm/0.4M", DIFFERENCE]
    assert row["num_seeds"] == 3 and row["first_seed"] == pytest.approx(gaps[0], abs=1e-6)
    assert row["mean"] == pytest.approx(np.mean(gaps), abs=1e-6)
    assert row["spread"] == pytest.approx(np.std(gaps, ddof=1), abs=1e-6)
    own = losses.gap("trilm/0.4M", "floatlm/0.4M")
    assert (row["low_over_documents"], row["high_over_documents"]) == pytest.approx((own.low, own.high), abs=1e-6)
    assert ("floatlm/0.4M", DIFFERENCE) not in table.index and ("trilm/0.4M", "cloze") in table.index


def test_the_label_of_one_run_goes_where_it_is_no_longer_true(study, tmp_path):
    pages = {}
    for name in ("several", "one"):
        (tmp_path / name).mkdir()
        given = [each for key, each in study.artifacts.items() if name == "several" or "+seed" not in key]
        write_report(CONFIG, given, tmp_path / name)
        pages[name] = (tmp_path / name / "index.html").read_text()
    assert LABEL in pages["one"] and "Spread over seeds" not in pages["one"]
    assert LABEL not in pages["several"] and 'id="seeds"' in pages["several"]
    assert "Up to 3 training runs per model" in pages["several"]
    assert "TriLM 0.4M: test loss below that of its FloatLM in" in pages["several"]
    assert (tmp_path / "several/seeds.csv").is_file() and not (tmp_path / "one/seeds.csv").exists()
