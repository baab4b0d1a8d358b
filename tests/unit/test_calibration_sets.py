"""QuantLMs of several calibration sets: their mean is what is counted and compared, and none of them vanishes."""

import numpy as np
import pandas as pd
import pytest
from reporting_study import FakeStudy

from openspectra.artifacts import open_artifact
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.findings import findings
from openspectra.reporting.load import load_results
from openspectra.reporting.page import write_report
from openspectra.reporting.statistics import document_losses
from openspectra.reporting.tables import paired_gaps

MEAN, SETS = "quantlm/0.4M-4bit", [f"quantlm/0.4M-4bit-c{number}" for number in range(3)]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    """A size whose 4-bit QuantLM was made from three calibration sets."""
    study = FakeStudy(tmp_path_factory.mktemp("study") / "results")
    study.add_demo(sizes=("0.4M",), widths=(8, 4))
    for number in (1, 2):
        study.add_quantized("0.4M", 4, number)
        study.add_evaluation(f"{MEAN}-c{number}")
    return study


@pytest.fixture(scope="module")
def results(study):
    return load_results(list(study.artifacts.values()))


def tables_of(study: FakeStudy, name: str) -> list[pd.DataFrame]:
    folders = [MEAN, *SETS[1:]]
    return [pd.read_csv(open_artifact(study.root / f"evaluation/{each}/held_out").file(name)) for each in folders]


def test_scores_are_means_over_the_sets_with_their_spread(study, results):
    each = tables_of(study, "scores.csv")
    own = results.scores[results.scores["model_id"] == MEAN].set_index(["task", "metric"])
    assert len(own) == len(each[0])
    for place in range(len(each[0])):
        rows = [table.iloc[place] for table in each]
        values = [row["value"] for row in rows]
        found = own.loc[(rows[0]["task"], rows[0]["metric"])]
        assert found["value"] == pytest.approx(np.mean(values))
        assert (found["num_sets"], found["spread"]) == (3, pytest.approx(np.std(values, ddof=1)))
        errors = pd.to_numeric([row["stderr"] for row in rows], errors="coerce")
        expected = np.sqrt(np.mean(errors) ** 2 + np.var(values, ddof=1) / 3)
        assert found["stderr"] == pytest.approx(expected, nan_ok=True)
    assert own["spread"].max() > 0
    for name, table in zip(SETS, each, strict=True):
        single = results.scores[results.scores["model_id"] == name]
        assert single["value"].tolist() == table["value"].tolist() and set(single["num_sets"]) == {1}


def test_test_loss_is_the_mean_over_the_sets(study, results):
    losses = document_losses(results.documents, 50, 1)
    each = [losses.loss(name).value for name in SETS]
    assert losses.loss(MEAN).value == pytest.approx(np.mean(each)) and len(set(each)) == 3
    documents = tables_of(study, "documents.csv")
    expected = [-table["log_likelihood"].sum() / table["num_tokens"].sum() for table in documents]
    assert each == pytest.approx(expected)


def test_sets_are_counted_once_and_shown(study, results, tmp_path):
    assert [str(model.id) for model in results.study_models if model.id.bits == 4] == [MEAN]
    assert [str(model.id) for model in results.single_sets] == SETS
    losses = document_losses(results.documents, 50, 1)
    text = " ".join(findings(results, losses, paired_gaps(results, losses)))
    assert "interval excludes zero for 1 of 1 models" in text and "of 4 models" in text and "-c" not in text
    write_report(
        ReportConfig(study="made_up", title="Sets", seed=1, num_resamples=50), list(study.artifacts.values()), tmp_path
    )
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "the mark is their mean and each dot is one of them" in page
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert {MEAN, *SETS} <= set(scores["model_id"])
    assert set(scores.loc[scores["model_id"] == MEAN, "num_sets"]) == {3}


def test_mean_needs_every_set(study):
    """A mean over those that are there would stand for three and be of two."""
    given = [artifact for name, artifact in study.artifacts.items() if name != f"evaluation/{SETS[2]}/held_out"]
    results = load_results(given)
    assert MEAN not in set(results.scores["model_id"]) | set(results.documents["model_id"])
    assert results.by_id[MEAN].missing == (f"no mean over calibration sets: {SETS[2]} is not evaluated",)
    assert {SETS[0], SETS[1]} <= set(results.scores["model_id"])


def test_one_set_is_left_as_it_is(study):
    results = load_results([artifact for name, artifact in study.artifacts.items() if "-c" not in name])
    assert results.single_sets == [] and not results.scores["model_id"].str.contains("-c").any()
    assert set(results.scores["num_sets"]) == {1} and results.scores["spread"].isna().all()
