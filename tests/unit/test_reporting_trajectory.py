"""Scores against tokens seen: evaluated checkpoints beside the models they lead to."""

import pytest
from reporting_study import FakeStudy, pretrain_config

from openspectra.reporting.config import ReportConfig
from openspectra.reporting.load import load_results
from openspectra.reporting.page import write_report
from openspectra.reporting.trajectory import TEST_LOSS, trajectory_table

CONFIG = ReportConfig(study="made-up", title="Made up", seed=1, num_resamples=50)
TASKS = ("cloze", "continuation")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    made = FakeStudy(tmp_path_factory.mktemp("trajectory"))
    made.add_data()
    for family in ("floatlm", "trilm"):
        made.add_pretrained(f"{family}/0.4M")
        made.add_evaluation(f"{family}/0.4M", tasks=TASKS)
    for step in (8, 64):
        made.add_checkpoint("trilm/0.4M", step)
        made.add_evaluation(f"trilm/0.4M@{step}", tasks=TASKS)
    return made


def test_points_are_the_checkpoints_and_the_model_by_tokens_seen(study):
    results = load_results(list(study.artifacts.values()))
    assert [str(model.id) for model in results.models] == ["floatlm/0.4M", "trilm/0.4M"]
    assert not results.scores["model_id"].str.contains("@").any()
    table = trajectory_table(results, CONFIG)
    config = pretrain_config("trilm/0.4M")
    steps = [8, 64, config.max_steps]
    for measure in (TEST_LOSS, *TASKS):
        rows = table[table["measure"] == measure]
        assert list(rows["tokens_seen"]) == [step * config.tokens_per_step for step in steps]
        assert list(rows["checkpoint_id"]) == ["trilm/0.4M@8", "trilm/0.4M@64", "trilm/0.4M"]
        assert (rows["low"] < rows["value"]).all() and (rows["value"] < rows["high"]).all()
    scores = study.artifacts["evaluation/trilm/0.4M@8/held_out"].rows("scores.csv")
    expected = next(float(row["value"]) for row in scores if row["task"] == "cloze" and row["metric"] == "acc")
    assert table[(table["measure"] == "cloze")]["value"].iloc[0] == pytest.approx(expected, abs=1e-6)


def test_the_page_draws_them_and_has_no_such_section_without(study, tmp_path):
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        given = [each for key, each in study.artifacts.items() if name == "with" or "@" not in key]
        write_report(CONFIG, given, tmp_path / name)
    page = (tmp_path / "with/index.html").read_text()
    assert 'id="trajectory"' in page and "over_training_test_loss_0_4M" in page
    assert (tmp_path / "with/over_training_cloze_0_4M.svg").is_file()
    assert 'id="trajectory"' not in (tmp_path / "without/index.html").read_text()
    assert "trilm/0.4M@8" not in (tmp_path / "with/models.csv").read_text()
