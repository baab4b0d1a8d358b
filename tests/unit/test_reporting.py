"""The page of a study: what it shows, what it admits to be missing, and that equal artifacts give equal bytes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reporting_study import FakeStudy, pretrain_config

from openspectra.artifacts import open_artifact
from openspectra.errors import DamagedArtifactError, OpenSpectraError
from openspectra.model_ids import ModelId
from openspectra.reporting import provenance, sections
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.drawing import round_ticks
from openspectra.reporting.load import load_results, read_table
from openspectra.reporting.page import write_report
from openspectra.reporting.statistics import document_losses
from openspectra.reporting.tables import paired_gaps

CONFIG = ReportConfig(study="made_up", title="<script>alert(1)</script> & more", seed=1, num_resamples=200)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    """An ordinary study with gaps: a QuantLM that was not evaluated, a FloatLM trained again after its evaluation."""
    study = FakeStudy(tmp_path_factory.mktemp("study") / "results")
    study.add_demo(sizes=("0.4M", "1.1M"), widths=(8, 4))
    study.add_pretrained("floatlm/2.6M")
    study.add_evaluation("floatlm/2.6M")
    study.add_pretrained("trilm/2.6M")
    study.add_evaluation("trilm/2.6M", tasks=("cloze",))
    study.add_quantized("2.6M", 8)
    study.add_pretrained("trilm/1.1M", seed=2)
    return study


@pytest.fixture(scope="module")
def report(study, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(CONFIG, list(study.artifacts.values()), folder)
    return folder


@pytest.fixture(scope="module")
def page(report) -> str:
    return (report / "index.html").read_text(encoding="utf-8")


def test_report_escapes_title(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page


def test_report_rebuilt_in_another_order_is_byte_identical(study, report, tmp_path):
    artifacts = [open_artifact(artifact.folder) for artifact in study.artifacts.values()]
    write_report(CONFIG, artifacts[::-1], tmp_path)
    names = sorted(path.name for path in report.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in names if (report / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_report_is_self_contained(page, study):
    assert str(study.root) not in page
    assert re.findall(r'(?:src|href)="(?!#|https://arxiv|[a-z_]+\.csv)[^"]*"', page) == []
    assert not re.search(r"url\((?!#)", page)


def test_report_ids_are_unique_and_links_lead_somewhere(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_lineage_leads_from_a_model_down_to_the_corpus(study):
    rows = {row.id: row for row in provenance.lineage(load_results(list(study.artifacts.values())).artifacts)}
    tokens = next(name for role, name, _ in rows["floatlm/0.4M"].parents if role == "tokens_train")
    assert tokens == "tokens/train"
    assert ("corpus", "corpus", rows["corpus"].short_hash) in rows[tokens].parents


def test_model_without_evaluation_is_missing_with_reason(report, page):
    row = table(report, "models.csv").loc["quantlm/2.6M-8bit"]
    assert np.isnan(row["test_loss"])
    assert row["missing"] == "not evaluated: no evaluation of this model was given"
    assert f"<li>quantlm/2.6M-8bit: {row['missing']}.</li>" in page


def test_model_absent_from_the_grid_is_missing_not_blank(report, page):
    row = table(report, "models.csv").loc["quantlm/2.6M-4bit"]
    assert np.isnan(row["num_parameters"])
    assert f"<li>quantlm/2.6M-4bit: {row['missing']}.</li>" in page


def test_evaluation_of_another_version_is_refused(report):
    models, gaps = table(report, "models.csv"), table(report, "gaps.csv")
    assert "another version of this model" in models.loc["trilm/1.1M", "missing"]
    assert np.isnan(gaps.loc["trilm/1.1M", "test_loss_difference"])


def test_task_that_a_model_lacks_is_missing_with_reason(page):
    assert "<li>trilm/2.6M: minimal_pairs is not in its evaluation.</li>" in page


def test_gaps_have_the_sign_of_the_losses(report):
    gaps = table(report, "gaps.csv")
    assert gaps.loc["trilm/0.4M", "test_loss_difference_low"] > 0
    assert gaps.loc["quantlm/0.4M-4bit", "test_loss_difference"] == pytest.approx(0.03, abs=0.02)
    assert gaps.loc["trilm/0.4M", ["steps", "baseline_warmup_steps", "tokens_per_step"]].tolist() == [1500, 60, 2048]


def test_findings_report_a_negative_gap_as_found(page):
    assert "TriLM 0.4M: test loss above its FloatLM twin" in page
    assert "TriLM 2.6M: test loss below its FloatLM twin" in page


def test_scores_keep_every_metric_in_long_format(report):
    scores = pd.read_csv(report / "scores.csv")
    assert list(scores.columns[:6]) == ["model_id", "family", "size", "bits", "task", "metric"]
    assert set(scores["metric"]) == {"acc", "acc_norm", "bits_per_byte"}
    assert scores.loc[scores["metric"] == "bits_per_byte", "stderr"].isna().all()
    assert scores.loc[scores["model_id"] == "trilm/0.4M", "bits"].unique().tolist() == [1.58]


def test_accuracy_column_names_its_chance_level(page):
    assert re.search(r"<span>minimal_pairs</span><small>acc, %\s+chance 50", page)


def test_damaged_scores_stop_the_report(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    study.add_pretrained("floatlm/0.4M")
    evaluation = study.add_evaluation("floatlm/0.4M")
    path = evaluation.folder / "documents.csv"
    path.write_text(path.read_text().replace("-", "+", 1))
    with pytest.raises(DamagedArtifactError, match=r"documents\.csv: its sha256 differs"):
        load_results(list(study.artifacts.values()))


def test_task_in_two_suites_keeps_both_scores(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    study.add_pretrained("floatlm/0.4M")
    study.add_evaluation("floatlm/0.4M", suite="few_shot", tasks=("cloze",))
    study.add_evaluation("floatlm/0.4M", suite="held_out", tasks=("cloze", "continuation"))
    results = load_results(list(study.artifacts.values()))
    assert list(results.main_metrics) == ["cloze (few_shot)", "cloze (held_out)", "continuation"]


def test_read_table_keeps_names_and_marks_what_is_no_number(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("# a comment\ntask,value\nNA,N/A\nnull,0.5\n")
    found = read_table(path, ("task", "value"), text=("task",))
    assert found["task"].tolist() == ["NA", "null"]
    assert np.isnan(found["value"][0])


def test_read_table_names_absent_column(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("task\ncloze\n")
    with pytest.raises(OpenSpectraError, match=r"scores\.csv: no column value; it has task"):
        read_table(path, ("task", "value"), text=("task",))


def test_recipes_lineage_and_gaps_name_the_teacher(tmp_path):
    study = FakeStudy(tmp_path)
    study.add_data()
    for model_id in ("floatlm/0.4M", "bilm/0.4M", "trilm/0.4M"):
        study.add_pretrained(model_id)
    study.add_distilled("bilm", "0.4M")
    for model_id in ("floatlm/0.4M", "bilm/0.4M", "bilm/0.4M+distilled"):
        study.add_evaluation(model_id)
    results = load_results(list(study.artifacts.values()))
    training = provenance.settings(results)[0]
    teachers = dict(zip(training.columns, dict(training.rows)[provenance.TEACHER], strict=True))
    assert teachers == {"FloatLM": "", "TriLM": "", "BiLM": "floatlm/0.4M, hidden states too"}
    (row,) = (row for row in provenance.lineage(results.artifacts) if row.id == "bilm/0.4M+distilled")
    assert ("teacher", "floatlm/0.4M", study.artifacts["floatlm/0.4M"].sha256[:12]) in row.parents
    found = {str(gap.model.id): gap for gap in paired_gaps(results, document_losses(results.documents, 100, 1))}
    assert str(found["bilm/0.4M+distilled"].baseline_id) == "floatlm/0.4M" and found["bilm/0.4M+distilled"].interval
    without = load_results([each for name, each in study.artifacts.items() if "distilled" not in name])
    assert provenance.TEACHER not in dict(provenance.settings(without)[0].rows)


def test_settings_show_rates_by_size(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    study.add_pretrained("trilm/0.4M", peak_lr=8e-3)
    study.add_pretrained("trilm/1.1M", peak_lr=4e-3)
    training = provenance.settings(load_results(list(study.artifacts.values())))[0]
    assert training.columns == ["TriLM"]
    assert ("Peak learning rate", ["0.4M: 8e-3; 1.1M: 4e-3"]) in training.rows
    assert ("Warm-up steps", [f"{pretrain_config('trilm/0.4M').warmup_steps}"]) in training.rows


def test_a_quantized_embedding_is_told_and_nothing_is_said_without(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    parents = study.add_pretrained("trilm/0.4M").manifest.parents
    results = load_results(list(study.artifacts.values()))
    assert sections.embedding_notes(results) == []
    assert "Quantized embedding" not in dict(provenance.settings(results)[0].rows)
    config = pretrain_config("tbt_w1a8/0.4M")
    config = config.model_copy(update={"shape": config.shape.model_copy(update={"quantized_embedding": True})})
    names = {role: role.replace("_", "/") for role in parents}
    study.add(config.model_id, "pretrain", config, names, lambda draft: None)
    results = load_results(list(study.artifacts.values()))
    assert (
        "at the bits of the family with 16 for the scale of each row: tbt_w1a8/0.4M."
        in sections.embedding_notes(results)[0]
    )
    assert dict(provenance.settings(results)[0].rows)["Quantized embedding"] == ["", "yes"]


@pytest.mark.parametrize("low, high", [(2.9e5, 9.1e5), (1.0e6, 4.0e9), (0.9, 1.2), (2e-3, 1.6e-2)])
def test_round_ticks_are_few_and_inside(low, high):
    ticks = round_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)


def test_command_line_modules_import_nothing_heavy():
    heavy = "{'pandas', 'matplotlib', 'mlflow', 'torch'} & set(sys.modules)"
    code = f"import sys, openspectra.tracking.sync, openspectra.identity; sys.exit(str({heavy} or ''))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip() == ""


def test_figures_leave_variants_out(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    study.add_pretrained("floatlm/0.4M")
    study.add_pretrained("floatlm/0.4M+seed2", seed=2)
    results = load_results(list(study.artifacts.values()))
    assert [model.id for model in results.study_models] == [ModelId("floatlm", "0.4M")]
    assert len(results.models) == 2


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / name, index_col="model_id")
