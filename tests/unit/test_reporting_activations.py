"""What low-bit activations cost, next to low-bit weights: each part recomputed by hand from the scored documents."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reporting_study import FakeStudy

from openspectra.reporting import activations, duels, levels
from openspectra.reporting.config import PUBLISHED, PUBLISHED_TBT, ReportConfig
from openspectra.reporting.conformance import NOT_COMPARABLE
from openspectra.reporting.load import Results, load_results, read_curve
from openspectra.reporting.page import write_report
from openspectra.reporting.statistics import document_losses

ROOT = Path(__file__).parents[2]
CONFIG = ReportConfig(study="made_up", title="low bits", seed=1, num_resamples=200)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    study = FakeStudy(tmp_path_factory.mktemp("study") / "results", num_documents=20, num_points=5)
    study.add_low_bit_activations()
    return study


@pytest.fixture(scope="module")
def results(study) -> Results:
    return load_results(list(study.artifacts.values()))


@pytest.fixture(scope="module")
def losses(results):
    return document_losses(results.documents, CONFIG.num_resamples, CONFIG.seed)


@pytest.fixture(scope="module")
def report(study, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(CONFIG, list(study.artifacts.values()), folder, paper=ROOT / PUBLISHED)
    return folder


@pytest.fixture(scope="module")
def table(report) -> pd.DataFrame:
    return pd.read_csv(report / "activations.csv").set_index("model_id")


def only(results: Results, *families: str) -> Results:
    return replace(results, models=[model for model in results.models if model.id.family in families])


def nats(study: FakeStudy, model_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Return nats and tokens of every document, by its name."""
    documents = pd.read_csv(study.artifacts[f"evaluation/{model_id}/held_out"].folder / "documents.csv")
    documents = documents.sort_values("document_id")
    return -documents["log_likelihood"].to_numpy(), documents["num_tokens"].to_numpy()


@pytest.mark.parametrize("width", ["w2", "w1"])
def test_parts_are_the_differences_of_losses_and_add_up(study, table, width):
    def loss(model_id: str) -> float:
        sums, tokens = nats(study, f"{model_id}/0.4M")
        return sums.sum() / tokens.sum()

    for bits in ("a8", "a2" if width == "w2" else "a1"):
        row = table.loc[f"tbt_{width}{bits}/0.4M"]
        assert row["of_weights"] == pytest.approx(loss(f"tbt_{width}a16") - loss("floatlm"), abs=1e-6)
        assert row["of_activations"] == pytest.approx(loss(f"tbt_{width}{bits}") - loss(f"tbt_{width}a16"), abs=1e-6)
        assert row["minus_floatlm"] == pytest.approx(row["of_weights"] + row["of_activations"], abs=2e-6)
    alone = table.loc[f"tbt_{width}a16/0.4M"]
    assert alone["of_weights"] == alone["minus_floatlm"] and np.isnan(alone["of_activations"])


def test_intervals_draw_the_same_documents_for_both(study, table):
    first, tokens = nats(study, "tbt_w2a2/0.4M")
    second, _ = nats(study, "tbt_w2a16/0.4M")
    draws = np.random.default_rng(CONFIG.seed).multinomial(20, np.full(20, 1 / 20), CONFIG.num_resamples)
    low, high = np.quantile(draws @ (first - second) / (draws @ tokens), [0.025, 0.975])
    row = table.loc["tbt_w2a2/0.4M"]
    assert row[["of_activations_low", "of_activations_high"]].tolist() == pytest.approx([low, high], abs=1e-6)


def test_bits_are_those_of_the_families(table):
    bits = table[["weight_bits", "activation_bits"]].apply(tuple, axis=1)
    assert bits["floatlm/0.4M"] == (16, 16) and bits["trilm/0.4M"] == (1.58, 16) and bits["bitnet/0.4M"] == (1.58, 8)
    assert bits["tbt_w2a2/0.4M"] == (1.58, 2) and bits["tbt_w1a8/0.4M"] == (1, 8) and bits["bilm/0.4M"] == (1, 16)


def test_other_families_are_compared_with_floatlm_and_not_taken_apart(table):
    parts = ["of_weights", "of_activations", "minus_undistilled"]
    assert table.loc[["floatlm/0.4M", "trilm/0.4M", "bilm/0.4M", "bitnet/0.4M"], parts].isna().all(axis=None)
    assert table["minus_floatlm"].isna().tolist() == [name == "floatlm/0.4M" for name in table.index]


def test_distilled_model_stands_beside_its_undistilled_twin(study, table):
    (first, tokens), (second, _) = nats(study, "tbt_w2a2/0.4M+distilled"), nats(study, "tbt_w2a2/0.4M")
    row = table.loc["tbt_w2a2/0.4M+distilled"]
    assert row["minus_undistilled"] == pytest.approx((first - second).sum() / tokens.sum(), abs=1e-6)
    assert row["minus_floatlm"] == pytest.approx(
        row["minus_undistilled"] + table.loc["tbt_w2a2/0.4M", "minus_floatlm"], abs=2e-6
    )


def test_steps_change_one_thing_each_and_are_scored_on_every_task(report, table):
    scored = pd.read_csv(report / "activation_duels.csv")
    pairs = set(scored[["basis", "model_id", "opponent_id"]].itertuples(index=False, name=None))
    weights = {(activations.WEIGHTS, f"tbt_{width}a16/0.4M", "floatlm/0.4M") for width in ("w2", "w1")}
    widths = (("w2", "a8"), ("w2", "a2"), ("w1", "a8"), ("w1", "a1"))
    rounded = {(activations.ACTIVATIONS, f"tbt_{w}{a}/0.4M", f"tbt_{w}a16/0.4M") for w, a in widths}
    assert pairs == weights | rounded | {(activations.TEACHER, "tbt_w2a2/0.4M+distilled", "tbt_w2a2/0.4M")}
    assert set(scored["measure"]) == {duels.TEST_LOSS, "cloze", "continuation", "minimal_pairs"}
    own = scored[(scored["model_id"] == "tbt_w1a1/0.4M") & (scored["measure"] == duels.TEST_LOSS)].iloc[0]
    assert own["difference"] == pytest.approx(table.loc["tbt_w1a1/0.4M", "of_activations"], abs=1e-6)


def test_sentences_say_which_part_is_the_larger_and_what_a_teacher_changes(results, losses, table):
    said = activations.sentences(activations.parts_of(results, losses))
    first = next(text for text in said if text.startswith("TBT W2A2 0.4M: "))
    weights, rest = (table.loc["tbt_w2a2/0.4M", f"of_{part}"] for part in ("weights", "activations"))
    assert f" nats/token: +{weights:.4f} (" in first and f" by its weights and +{rest:.4f} (" in first
    larger = [text for text in said if text.startswith("Of the two")]
    assert larger[0].startswith("Of the two the weights cost more in TBT W2A8 0.4M, TBT W1A8 0.4M (")
    assert larger[1].startswith("Of the two the activations cost more in TBT W2A2 0.4M, TBT W1A1 0.4M (")
    gain = -table.loc["tbt_w2a2/0.4M+distilled", "minus_undistilled"]
    assert said[-1].startswith(
        "TBT W2A2 0.4M, distilled: test loss differs from that of the same model without a teacher"
    )
    assert f" by \u2212{gain:.4f} (" in said[-1] and gain > 0


def test_part_without_its_family_is_missing_with_the_reason(results, losses):
    others = only(results, "floatlm", "tbt_w2a2", "tbt_w1a16")
    found = {str(each.model.id): each for each in activations.parts_of(others, losses)}
    assert found["tbt_w2a2/0.4M"].of_weights is None
    view = activations.parts_view(list(found.values()), losses)
    assert "tbt_w2a2/0.4M: there is no tbt_w2a16/0.4M to compare with." in view.reasons


def test_study_without_such_families_has_no_section(results, losses):
    others = only(results, "floatlm", "trilm", "bilm", "bitnet")
    section = activations.activations_section(others, losses, ROOT / PUBLISHED_TBT)
    assert not (section.notes or section.parts or section.tables)


def test_levels_are_means_over_the_blocks(report):
    table = pd.read_csv(report / "levels.csv").set_index(["model_id", "step", "place"])
    assert len(table) == 3 * 2 * 8  # models, validations, places of a block
    assert table.loc[("tbt_w1a1/0.4M", 500, "down"), "scale"] == pytest.approx(
        2 * (2 - 1 / 3)
    )  # of 1, 2 and 3 times it
    last = table.loc[("tbt_w2a2/0.4M", 1500, "probabilities")]
    assert last["scale"] == pytest.approx(2) and last["share_of_2"] == pytest.approx(0.005)


def test_hardly_used_levels_are_named(results):
    _, sentence = levels.sentences(levels.levels_table(results))
    assert "tbt_w2a2/0.4M probabilities: 2 (0.50 %)" in sentence and "tbt_w1a1" not in sentence


def test_scales_at_their_floor_are_named(results):
    table = levels.levels_table(results)
    assert levels.sentences(table)[0].endswith("next to nothing passes: none.")
    place = (table["model_id"] == "tbt_w1a1/0.4M") & (table["place"] == "value") & (table["step"] == 1500)
    table.loc[place, "blocks_at_floor"] = 2
    assert levels.sentences(table)[0].endswith(": tbt_w1a1/0.4M value (2 of its blocks).")


def test_blocks_whose_learned_scale_is_below_the_floor_are_counted(study, results):
    rows = read_curve(results.by_id["tbt_w1a1/0.4M"], "levels.csv")
    assert levels.means_over_blocks(rows)["blocks_at_floor"].tolist() == [0] * 16
    rows.loc[
        (rows["step"] == 1500) & rows["place"].isin(["model.layers.0.mlp.down", "model.layers.2.mlp.down"]), "scale"
    ] = (-0.1, 1e-5)
    means = levels.means_over_blocks(rows).set_index(["step", "place"])["blocks_at_floor"]
    assert means[1500, "down"] == 2 and means.sum() == 2


@pytest.mark.parametrize(
    ("family", "place", "expected"),
    [
        ("tbt_w2a2", "down", (-1, 0, 1)),
        ("tbt_w2a2", "probabilities", (0, 1, 2)),
        ("tbt_w1a1", "query", (-1, 1)),
        ("tbt_w1a1", "probabilities", (0, 1)),
    ],
)
def test_levels_of_a_place(family, place, expected):
    assert levels.levels_of(family, place) == expected


def test_published_numbers_are_never_comparable(report):
    ours = pd.read_csv(report / "activations_published.csv", keep_default_na=False)
    assert len(ours) == len(pd.read_csv(ROOT / PUBLISHED_TBT))
    assert set(ours["verdict"]) == {NOT_COMPARABLE} and set(ours["ours"]) == {""}
    row = ours[(ours["paper_model"] == "TBT, E2 W2 A2") & (ours["metric"] == "rouge1")].iloc[0]
    assert (row["paper"], row["our_model"]) == (36.21, "tbt_w2a2/0.4M")
    assert (
        row["differs_in"] == "architecture (BART-base, an encoder and decoder of 140M), start (pretrained), task (xsum)"
    )
    nearest = ours.groupby("paper_model")["our_model"].first()
    assert nearest["BART-base, E32 W32 A32"] == "floatlm/0.4M" and nearest["DQ-BART, E8 W8 A8"] == ""


def test_page_shows_the_section_with_its_figures(report):
    page = (report / "index.html").read_text(encoding="utf-8")
    assert '<section id="activations">' in page and "The numbers of arXiv 2306.01841" in page
    drawn = {path.name for path in report.glob("activation*.svg")}
    assert drawn == {
        "activations_loss_0.4M.svg",
        "activations_difference_0.4M.svg",
        "activation_scales_tbt_w2a2.svg",
        "activation_scales_tbt_w2a2_distilled.svg",
        "activation_scales_tbt_w1a1.svg",
    }
