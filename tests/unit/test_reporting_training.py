"""What the report says of training: gaps between twins, discrete weights, spikes; numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reporting_study import FakeStudy

from openspectra.data.config import TokensConfig
from openspectra.errors import DamagedArtifactError
from openspectra.reporting import sections, training_figures
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.load import Results, load_results
from openspectra.reporting.page import write_report
from openspectra.reporting.statistics import mean_intervals
from openspectra.reporting.tables import valid_by_source
from openspectra.reporting.ternary import largest_matrices, latent_shares, ternary_table
from openspectra.reporting.ternary_figures import latent_histograms, sparsity_profile
from openspectra.reporting.twins import twin_trajectories
from openspectra.tracking.contents import curves_of

CONFIG = ReportConfig(study="made_up", title="Training", seed=1, num_resamples=200)


@pytest.fixture
def study(tmp_path) -> FakeStudy:
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    return study


def validations(losses_by_tokens: dict[int, list[float]]) -> dict[str, pd.DataFrame]:
    """Return the records of a run validated at these tokens seen, with these losses by sequence."""
    losses = pd.DataFrame(list(losses_by_tokens.values()))
    tokens = list(losses_by_tokens)
    valid = pd.DataFrame({"step": range(1, len(tokens) + 1), "tokens_seen": tokens, "valid_loss": losses.mean(axis=1)})
    return {"valid.csv": valid, "valid_losses.npy": losses}


def matrix(step: int, layer: str, num_weights: int, sparsity: float, flip_rate: float, scale: float, *latents: float):
    """Return a row of `ternary.csv`; of the histogram four bins: below -0.5, from -0.5, from 0, from 0.5."""
    columns = ("latents_below", "latents_from_-0.5", "latents_from_0", "latents_from_0.5")
    means = {"num_weights": num_weights, "sparsity": sparsity, "flip_rate": flip_rate, "scale": scale}
    return {"step": step, "tokens_seen": 8 * step, "layer": layer, **means, **dict(zip(columns, latents, strict=True))}


TERNARY = pd.DataFrame(
    [
        matrix(0, "model.layers.0.self_attn.q_proj", 1, 0.25, 0.0, 1.0, 0.5, 0.5, 0.0, 0.0),
        matrix(0, "model.layers.0.mlp.up_proj", 2, 0.5, 0.0, 1.0, 0.0, 0.5, 0.5, 0.0),
        matrix(0, "model.layers.1.self_attn.q_proj", 1, 0.75, 0.0, 3.0, 0.5, 0.0, 0.0, 0.5),
        matrix(0, "model.layers.1.mlp.up_proj", 4, 0.5, 0.0, 1.0, 0.0, 0.5, 0.5, 0.0),
        matrix(9, "model.layers.0.self_attn.q_proj", 1, 0.0, 0.5, 2.0, 1.0, 0.0, 0.0, 0.0),
        matrix(9, "model.layers.0.mlp.up_proj", 2, 0.5, 0.25, 2.0, 1.0, 0.0, 0.0, 0.0),
        matrix(9, "model.layers.1.self_attn.q_proj", 1, 1.0, 0.5, 2.0, 0.0, 0.0, 0.0, 1.0),
        matrix(9, "model.layers.1.mlp.up_proj", 4, 0.25, 0.25, 2.0, 0.0, 0.0, 0.0, 1.0),
    ]
)
"""Two layers of two matrices. Sparsity: (0.25 + 1 + 0.75 + 2) / 8 = 0.5 at the start, (0 + 1 + 1 + 1) / 8 at the end."""


def report_of(study: FakeStudy, folder: Path) -> Path:
    folder.mkdir()
    write_report(CONFIG, list(study.artifacts.values()), folder)
    return folder


def results_of(study: FakeStudy) -> Results:
    return load_results(list(study.artifacts.values()))


def test_losses_that_are_no_array_of_numbers_are_one_line(study, tmp_path):
    records = validations({1024: [9, 9], 2048: [3, 5]})
    records["valid_losses.npy"] = records["valid_losses.npy"].astype(object)
    study.add_pretrained("floatlm/0.4M", records=records)
    study.add_pretrained("trilm/0.4M", records=validations({1024: [9, 9], 2048: [4, 6]}))
    with pytest.raises(
        DamagedArtifactError, match="valid_losses.npy: not an array of losses .* train floatlm/0.4M anew"
    ):
        report_of(study, tmp_path / "report")


def test_gaps_over_training_are_paired_at_equal_tokens_seen(study, tmp_path):
    study.add_pretrained("floatlm/0.4M", records=validations({1024: [9, 9], 2048: [3, 5], 4096: [2, 4]}))
    study.add_pretrained("trilm/0.4M", records=validations({2048: [3.25, 5.25], 3072: [1, 1], 4096: [2, 5]}))
    table = report_of(study, tmp_path / "report") / "gaps_over_training.csv"
    # A constant difference has no width; of the differences 0 and 1 a resample's mean is 0 or 1 in a quarter each.
    assert table.read_text() == (
        "size,family,tokens_seen,gap,low,high,num_sequences\n"
        "0.4M,trilm,2048,0.25,0.25,0.25,2\n"
        "0.4M,trilm,4096,0.5,0.0,1.0,2\n"
    )


def test_gap_of_a_loss_that_is_no_number_is_missing(study):
    study.add_pretrained("floatlm/0.4M", records=validations({1024: [np.inf, 3], 2048: [3, 3]}))
    study.add_pretrained("bilm/0.4M", records=validations({1024: [np.inf, 4], 2048: [4, 4]}))
    (trajectory,) = twin_trajectories(results_of(study), 10, seed=1)
    assert np.isnan(trajectory.points["gap"][0])
    assert trajectory.points.loc[1, ["gap", "low", "high"]].tolist() == [1, 1, 1]


def test_one_sequence_gives_no_interval():
    (interval,) = mean_intervals(np.array([[0.5]]), 10, seed=1)
    assert (interval.value, interval.low, interval.high) == (0.5, None, None)


def test_twins_without_common_tokens_say_so(study, tmp_path):
    study.add_pretrained("floatlm/0.4M", records=validations({1024: [3, 3]}))
    study.add_pretrained("trilm/0.4M", records=validations({1000: [3, 3]}))
    folder = report_of(study, tmp_path / "report")
    text = "Missing: trilm/0.4M, its validations and those of floatlm/0.4M are at no equal number of tokens seen."
    assert text in (folder / "index.html").read_text()
    assert not (folder / "gaps_over_training.csv").exists()


def test_model_without_twin_says_so(study):
    study.add_pretrained("trilm/0.4M")
    (trajectory,) = twin_trajectories(results_of(study), 10, seed=1)
    assert trajectory.missing == "there is no floatlm/0.4M to compare with"


def test_twin_validated_on_another_split_is_refused(study):
    study.add_pretrained("floatlm/0.4M")
    parents = {"corpus": "corpus", "tokenizer": "tokenizer"}
    study.add("tokens/valid", "tokens", TokensConfig(split="valid"), parents, lambda draft: None)
    study.add_pretrained("trilm/0.4M")
    (trajectory,) = twin_trajectories(results_of(study), 10, seed=1)
    assert trajectory.missing == "floatlm/0.4M was validated on other sequences"


def test_batch_steps_and_warmup_stand_beside_the_gaps(study):
    for name in ("floatlm/0.4M", "trilm/0.4M", "bilm/0.4M"):
        study.add_pretrained(name)
    results = results_of(study)
    groups = sections.training_section(results, CONFIG).parts
    (group,) = [group for group in groups if group.title == "Gap between twins over training"]
    assert group.notes == [
        "All pairs (model | FloatLM): tokens per step 2,048 | 2,048, steps 1,500 | 1,500, warm-up steps 60 | 60."
    ]


def test_ternary_means_count_matrices_by_their_weights(study, tmp_path):
    study.add_pretrained("trilm/0.4M", records={"ternary.csv": TERNARY})
    table = report_of(study, tmp_path / "report") / "ternary.csv"
    assert table.read_text() == (
        "model_id,step,tokens_seen,sparsity,flip_rate,scale\n"
        "trilm/0.4M,0,0,0.5,,1.25\n"  # no measurement before the first, so no flip rate
        "trilm/0.4M,9,72,0.375,0.3125,2.0\n"
    )


def test_latent_shares_count_matrices_of_a_kind_by_their_weights(study):
    study.add_pretrained("trilm/0.4M", records={"ternary.csv": TERNARY})
    (matrices,) = largest_matrices(results_of(study))
    assert matrices.kinds == ["q_proj", "up_proj"]
    assert latent_shares(matrices.start) == (
        [-1, -0.5, 0, 0.5, 1],
        {"q_proj": [0.5, 0.25, 0, 0.25], "up_proj": [0, 0.5, 0.5, 0]},
    )
    assert latent_shares(matrices.end)[1]["up_proj"] == [pytest.approx(1 / 3), 0, 0, pytest.approx(2 / 3)]


def test_matrices_are_those_of_the_largest_size_that_measures_them(study):
    for name in ("trilm/0.4M", "trilm/1.1M", "bilm/1.1M", "floatlm/2.6M"):
        study.add_pretrained(name)
    found = largest_matrices(results_of(study))
    assert [str(matrices.model.id) for matrices in found] == ["trilm/1.1M", "bilm/1.1M"]


def test_rounding_borders_stand_where_there_is_a_zero_state_only(study):
    study.add_pretrained("trilm/0.4M")
    study.add_pretrained("bilm/0.4M")
    found = largest_matrices(results_of(study))
    drawings = {drawing.name: drawing.svg for drawing in latent_histograms(found)}
    assert {name: svg.count("stroke-dasharray") for name, svg in drawings.items()} == {
        "latents_trilm": 2,
        "latents_bilm": 0,
    }
    (profile,) = sparsity_profile(found)
    assert "TriLM" in profile.svg and "BiLM" not in profile.svg


def test_loss_spikes_are_counted_and_marked_on_the_training_curve(study, tmp_path, monkeypatch):
    train = pd.DataFrame({"step": [100, 200], "tokens_seen": [800, 1600], "train_loss": [4.0, 3.0]})
    spikes = pd.DataFrame({"step": [125], "tokens_seen": [1000], "train_loss": [9.0]})
    study.add_pretrained("floatlm/0.4M", records={"train.csv": train, "spikes.csv": spikes})
    study.add_pretrained("trilm/0.4M")
    folder = report_of(study, tmp_path / "report")
    models = pd.read_csv(folder / "models.csv", index_col="model_id")
    assert models["num_loss_spikes"].to_dict() == {"floatlm/0.4M": 1, "trilm/0.4M": 0}
    assert "Loss spikes: floatlm/0.4M 1; none in the others." in (folder / "index.html").read_text()
    monkeypatch.setattr(training_figures, "to_drawing", lambda figure, name, alt: figure)
    (figure,) = training_figures.loss_curves(results_of(study))
    crosses = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert crosses == [[[1000, 3.75]]]  # a quarter of the way from (800, 4) to (1600, 3)


def test_tracking_takes_the_means_of_a_model_and_nothing_by_layer(study):
    train = pd.DataFrame({"step": [9], "tokens_seen": [72], "train_loss": [4.0]})
    model = study.add_pretrained("trilm/0.4M", records={"ternary.csv": TERNARY, "train.csv": train})
    curves = curves_of(model)
    found = {key: value for key, value in curves.items() if key[1] in (0, 9)}
    assert found == {
        ("train_loss", 9): 4.0,
        ("tokens_seen", 0): 0,
        ("sparsity", 0): 0.5,
        ("scale", 0): 1.25,
        ("tokens_seen", 9): 72,
        ("sparsity", 9): 0.375,
        ("flip_rate", 9): 0.3125,
        ("scale", 9): 2.0,
    }
    assert {name for name, _ in curves} == {"train_loss", "valid_loss", "tokens_seen", "sparsity", "flip_rate", "scale"}


def test_tracking_takes_no_curves_from_the_tables_of_a_report(study):
    study.add_pretrained("trilm/0.4M", records={"ternary.csv": TERNARY})
    means = ternary_table(results_of(study))
    report = study.add(
        "report", "report", CONFIG, {}, lambda draft: means.to_csv(draft.folder / "ternary.csv", index=False)
    )
    assert curves_of(report) == {}


def test_validation_loss_by_source_is_a_table_of_the_report(study, tmp_path):
    rows = [
        {"step": step, "tokens_seen": step * 2048, "source": source, "valid_loss": loss + 1 / step, "num_tokens": 512}
        for step in (750, 1500)
        for source, loss in (("arxiv", 2.0), ("c4", 3.0))
    ]
    given = dict(study.artifacts)
    study.add_pretrained("bilm/0.4M", records={"valid_sources.csv": pd.DataFrame(rows)})
    table = valid_by_source(load_results(list(study.artifacts.values())))
    study.artifacts = given
    assert set(table["model_id"]) == {"bilm/0.4M"} and table["source"].tolist() == ["arxiv", "c4"]
    assert table["valid_loss"].tolist() == [2.0 + 1 / 1500, 3.0 + 1 / 1500]
