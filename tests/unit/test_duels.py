"""Paired comparisons: errors over documents, Holm's correction, and who meets whom at equal parameters and bits."""

import numpy as np
import pandas as pd
import pytest
from reporting_study import CHANCE, FakeStudy

from openspectra.reporting import sections
from openspectra.reporting.duels import (
    EQUAL_PARAMETERS,
    LINEAR_BITS,
    TEST_LOSS,
    TOTAL_BITS,
    bits_of,
    corrected,
    duel_table,
    duels,
    paired_difference,
)
from openspectra.reporting.load import load_results
from openspectra.reporting.statistics import document_losses
from openspectra.reporting.tables import model_table


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    study = FakeStudy(tmp_path_factory.mktemp("duels") / "results", num_points=4)
    study.add_demo(sizes=("0.4M", "1.1M", "2.6M"), widths=(8, 4))
    for number in (1, 2):
        study.add_quantized("0.4M", 4, number)
        study.add_evaluation(f"quantlm/0.4M-4bit-c{number}")
    return load_results(list(study.artifacts.values()))


@pytest.fixture(scope="module")
def table(results):
    return duel_table(results, duels(results))


def test_intervals_and_p_values_hold_where_items_of_a_document_belong_together():
    """Ten items a document, most of their noise common: errors over items would reject far too often."""
    generator, rejected, covered, of_items = np.random.default_rng(0), 0, 0, 0
    for _ in range(400):
        noise = generator.standard_normal((30, 1)) + 0.3 * generator.standard_normal((30, 10))
        value, low, high, p_value = paired_difference((noise + 0.5).sum(axis=1), np.full(30, 10.0))
        covered += low <= 0.5 <= high
        rejected += paired_difference(noise.sum(axis=1), np.full(30, 10.0))[3] < 0.05
        of_items += paired_difference(noise.reshape(-1), np.ones(300))[3] < 0.05
        assert low < value < high and 0 <= p_value <= 1
    assert 0.92 <= covered / 400 <= 0.98 and 0.02 <= rejected / 400 <= 0.08
    assert of_items / 400 > 0.3


def test_difference_weighs_documents_by_their_tokens():
    value, *_ = paired_difference(np.array([10.0, 0.0]), np.array([100.0, 300.0]))
    assert value == 10 / 400
    assert np.isnan(paired_difference(np.array([1.0]), np.array([2.0]))[1:]).all()
    assert paired_difference(np.array([2.0, 4.0]), np.array([1.0, 2.0])) == (2.0, 2.0, 2.0, 0.0)
    assert paired_difference(np.zeros(3), np.ones(3)) == (0.0, 0.0, 0.0, 1.0)


def test_correction_is_holms():
    found = corrected(pd.Series([0.01, 0.04, np.nan, 0.03, 0.005], index=list("abcde")))
    assert found.drop("c").to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "d": 0.06, "e": 0.02})
    assert np.isnan(found["c"])
    assert corrected(pd.Series([0.6, 0.9])).tolist() == [1, 1]


def test_opponents_are_the_smallest_with_at_least_as_many_bits(results):
    found = duels(results)
    equal = {(str(duel.model.id), str(duel.opponent.id)) for duel in found if duel.basis == EQUAL_PARAMETERS}
    assert equal == {(f"trilm/{size}", f"floatlm/{size}") for size in ("0.4M", "1.1M", "2.6M")}
    for basis in (TOTAL_BITS, LINEAR_BITS):
        for model in (model for model in results.study_models if model.id.family == "trilm"):
            for kind in ("floatlm", "quantlm-8bit", "quantlm-4bit"):
                others = {
                    bits_of(each, basis): each for each in results.study_models if each.id.kind == kind
                }  # fmt: skip
                enough = sorted(bits for bits in others if bits >= bits_of(model, basis))
                own = [
                    duel
                    for duel in found
                    if (duel.basis, duel.model.id, duel.opponent.id.kind) == (basis, model.id, kind)
                ]
                assert len(own) == bool(enough)
                for duel in own:
                    assert duel.opponent is others[enough[0]]
                    assert duel.excess == pytest.approx(enough[0] / bits_of(model, basis) - 1)
    excess = {duel.basis: duel.excess for duel in found if duel.basis != EQUAL_PARAMETERS}
    assert all(value >= 0 for value in excess.values()) and excess[TOTAL_BITS] != excess[LINEAR_BITS]


def test_every_measure_is_compared_on_the_items_of_both(results, table):
    assert set(table["measure"]) == {TEST_LOSS, *CHANCE}
    assert (table.loc[table["measure"] != TEST_LOSS, ["num_items", "num_documents"]] == [60, 20]).all(axis=None)
    row = table[(table["basis"] == EQUAL_PARAMETERS) & (table["model_id"] == "trilm/1.1M")].set_index("measure")
    own = results.documents.set_index(["model_id", "document_id"])
    losses = {
        name: -own.loc[name, "log_likelihood"].sum() / own.loc[name, "num_tokens"].sum()
        for name in ("trilm/1.1M", "floatlm/1.1M")
    }
    assert row.loc[TEST_LOSS, "difference"] == pytest.approx(losses["trilm/1.1M"] - losses["floatlm/1.1M"], abs=1e-6)
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()
    assert (table["p_corrected"] >= table["p_value"] * (1 - 1e-3)).all()


def test_calibration_sets_are_compared_as_their_mean(results, table):
    rows = table[(table["opponent_id"] == "quantlm/0.4M-4bit") & (table["measure"] == "cloze")]
    assert len(rows)
    items = {}
    for name in ("trilm/0.4M", "quantlm/0.4M-4bit-c0", "quantlm/0.4M-4bit-c1", "quantlm/0.4M-4bit-c2"):
        evaluation = results.by_id[name].evaluations[0]
        scores = pd.read_parquet(evaluation.file("items.parquet"))
        items[name] = scores.loc[scores["task"] == "cloze", "acc"].mean()
    mine = items.pop("trilm/0.4M")
    assert rows.iloc[0]["difference"] == pytest.approx(mine - np.mean(list(items.values())), abs=1e-6)


def test_sections_show_duels_and_five_sizes_make_a_law(tmp_path):
    study = FakeStudy(tmp_path / "results", num_points=4)
    study.add_data()
    for size in ("99M", "190M", "390M", "560M", "830M", "1.1B"):
        for family in ("floatlm", "trilm"):
            study.add_pretrained(f"{family}/{size}")
            study.add_evaluation(f"{family}/{size}")
    results = load_results(list(study.artifacts.values()))
    shown = sections.duels_section(results)
    assert [part.title for part in shown.parts] == [
        "At equal parameters",
        "At equal bits in all",
        "At equal bits without embedding and head",
    ]
    assert all("more" in row.cells[0].detail for part in shown.parts[1:] for row in part.rows)
    losses = document_losses(results.documents, 20, 1)
    scaling = sections.scaling_section(results, model_table(results, losses))
    figure, laws = scaling.parts[-2:]
    assert [drawing.name for drawing in figure.drawings] == ["law_ours", "law_paper"]
    assert [row.cells[-1].text for row in laws.rows] == ["159, 0.26, 1.67", "185, 0.26, 1.76"]
    assert all(row.cells[5].detail for row in laws.rows)  # the largest is held out: six sizes
    too_few = ("830M", "560M", "1.1B")
    few = load_results(
        [each for each in study.artifacts.values() if not any(size in str(each.folder) for size in too_few)]
    )
    scaling = sections.scaling_section(few, model_table(few, losses))
    needs = "a fit needs 5 sizes, 6 where the largest is held out"
    assert scaling.notes == [f"No scaling law is fitted: {needs}; here: FloatLM 3, TriLM 3."]
