"""QuantLMs beside plain rounding on the page, and the loss they add over training."""

import pytest
from reporting_study import PENALTY, FakeStudy

from openspectra.reporting.load import load_results
from openspectra.reporting.quantization import quantization_section, quantization_table
from openspectra.reporting.section import FigureGroup, View


@pytest.fixture
def study(tmp_path) -> FakeStudy:
    study = FakeStudy(tmp_path, num_documents=4, num_points=4)
    study.add_data()
    for size in ("0.4M", "1.1M"):
        study.add_pretrained(f"floatlm/{size}")
        for bits in (8, 3):
            study.add_quantized(size, bits)
    return study


def results_of(study: FakeStudy):
    return load_results(list(study.artifacts.values()))


def test_every_width_stands_beside_plain_rounding(study):
    section = quantization_section(results_of(study))
    (view,) = section.parts
    assert isinstance(view, View)
    assert [row.name for row in view.rows] == [
        f"quantlm/{size}-{bits}bit" for size in ("0.4M", "1.1M") for bits in (8, 3)
    ]
    kl, rounded, ratio, added, *_, retries = view.rows[1].cells
    assert (kl.text, rounded.text, ratio.text, added.text, retries.text) == ("0.12", "0.48", "4.0", "+0.1200", "0")
    assert not section.drawings and list(section.tables) == ["quantization.csv"]


def test_calibration_sets_are_one_row_with_mean_and_spread(study):
    for number in (1, 2):
        study.add_quantized("0.4M", 3, number)
    section = quantization_section(results_of(study))
    row = section.parts[-1].rows[1]
    assert row.cells[0].sort == pytest.approx(PENALTY[3] + 0.0001) and row.cells[0].detail == "± 0.0001"
    assert len(section.tables["quantization.csv"]) == 6


def test_checkpoints_are_drawn_over_training_and_are_no_models(study):
    before = [str(model.id) for model in results_of(study).models]
    for step in (750, 150):
        study.add_quantized("1.1M", 3, step=step)
    results = results_of(study)
    assert [str(model.id) for model in results.models] == before
    rows = quantization_table(results).set_index("model_id")
    assert list(rows.index)[-3:] == ["quantlm/1.1M-3bit", "quantlm/1.1M@150-3bit", "quantlm/1.1M@750-3bit"]
    assert rows["added_loss"].tolist()[-3:] == pytest.approx([0.12, 0.012, 0.06])
    figures, view = quantization_section(results).parts
    assert isinstance(figures, FigureGroup) and len(view.rows) == 4
    (drawing,) = figures.drawings
    assert drawing.name == "quantization_1.1M" and "QuantLM 3-bit" in drawing.svg and "QuantLM 8-bit" not in drawing.svg


def test_a_study_without_quantlms_has_no_such_section(tmp_path):
    study = FakeStudy(tmp_path, num_documents=4, num_points=4)
    study.add_data()
    study.add_pretrained("floatlm/0.4M")
    assert quantization_section(results_of(study)).parts == []
