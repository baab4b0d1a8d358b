"""Twins of the paper's figures that no other section has."""

import math

import numpy as np
import pandas as pd
import pytest
from reporting_study import FakeStudy

from openspectra.artifacts import write_csv
from openspectra.evaluation.config import EvaluateConfig
from openspectra.evaluation.scores import SCORE_COLUMNS
from openspectra.reporting.load import load_results
from openspectra.reporting.more_figures import more_section, schedule_table
from openspectra.reporting.scaling_figures import Score, score_panels
from openspectra.reporting.statistics import document_losses
from openspectra.reporting.weights import float_weights

FIGURES = {
    *("size_by_parameters", "speed_by_parameters", "stereotypes_by_parameters", "stereotypes_by_bits"),
    *("schedules_trilm_0.4M", "gradients_0.4M", "gradients_1.1M", "weights", "entropy"),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    made = FakeStudy(tmp_path_factory.mktemp("more"))
    made.add_demo(sizes=("0.4M", "1.1M"), widths=(4,))
    for variant in ("only-lr-drop", "only-decay-stop", "none"):
        made.add_pretrained(f"trilm/0.4M+{variant}")
        made.add_evaluation(f"trilm/0.4M+{variant}")
    row = {"task": "crows_pairs_english", "metric": "pct_stereotype", "filter": "none", "value": 0.6, "stderr": 0.01}
    row |= {"num_samples": 1508, "chance": None}
    config = EvaluateConfig(tasks=["crows_pairs_english"], batch_size=1, dtype="float32")
    for name in ("floatlm/0.4M", "trilm/0.4M", "trilm/1.1M"):
        made.add(
            f"evaluation/{name}/toxicity", "evaluate", config, {"model": name},
            lambda draft: write_csv(draft.folder / "scores.csv", SCORE_COLUMNS, [row]),
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def results(study):
    return load_results(list(study.artifacts.values()))


def test_every_figure_is_there_and_none_is_left_empty(results):
    section = more_section(results, document_losses(results.documents, 20, 1))
    assert {drawing.name for drawing in section.drawings} == FIGURES
    assert set(section.tables) == {"schedules.csv", "gradients.csv", "weights.csv"}


def test_where_all_models_have_one_size_nothing_is_drawn_against_it():
    points = [("floatlm", 4e5, 6e6, 60.0), ("trilm", 4e5, 4e6, 62.0)]
    table = pd.DataFrame(points, columns=["kind", "parameters", "bits", "value"]).assign(is_set=False)
    table = table.assign(low=table["value"] - 1, high=table["value"] + 1)
    drawings = score_panels(Score("stereotypes", "Stereotypes", "%", table))
    assert [drawing.name for drawing in drawings] == ["stereotypes_by_bits"]


def test_schedules_stand_in_the_order_of_the_paper(results):
    table = schedule_table(results, document_losses(results.documents, 20, 1))
    names = ["both interventions", "only the peak drops", "only decay ends", "neither"]
    assert (
        list(table["schedule"]) == names and table["test_loss"].notna().all() and table["mean_accuracy"].notna().all()
    )


def test_entropy_is_that_of_the_gaussian_the_weights_were_drawn_from(results):
    (small, _) = float_weights(results)
    assert str(small.model.id) == "floatlm/0.4M" and small.num_weights == 64 * 64
    assert small.deviation == pytest.approx(0.02, rel=0.05) and abs(small.kurtosis) < 0.3
    assert small.differential_bits == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * 0.02**2), abs=0.1)
    assert 0 < small.shannon_bits < 8 and np.isclose(small.shares.sum(), 1, atol=1e-3)


def test_a_study_without_ablation_or_tasks_has_only_what_it_has(study, tmp_path):
    given = [each for name, each in study.artifacts.items() if "+" not in name and "toxicity" not in name]
    results = load_results(given)
    section = more_section(results, document_losses(results.documents, 20, 1))
    assert {drawing.name for drawing in section.drawings} == {
        name for name in FIGURES if not name.startswith(("schedules", "stereotypes"))
    }
