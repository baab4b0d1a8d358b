"""Sweeps of peak rates: the table, the choice, and that nothing of the test split is in it."""

import math
from pathlib import Path

import pandas as pd
import pytest
from reporting_study import FakeStudy

from openspectra.errors import OpenSpectraError
from openspectra.model_ids import ModelId
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.page import write_report
from openspectra.reporting.sweep import budget, choices, departures, read_rates, sweep_table
from openspectra.reporting.tables import write_csv
from openspectra.strict_yaml import read_yaml
from openspectra.study import Study

TINY = Path(__file__).parents[2] / "studies" / "tiny.yaml"
CONFIG = ReportConfig(study="rates", title="Rates", seed=1, num_resamples=10)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> FakeStudy:
    study = FakeStudy(tmp_path_factory.mktemp("sweep") / "results")
    study.add_sweep()
    study.add_pretrained("trilm/0.4M+lr3e-2", 3e-2, valid_loss=9.0)
    return study


def written(artifacts: list, folder: Path) -> pd.DataFrame:
    """Return the table of a sweep, written to `rates.csv` as its report writes it."""
    table = sweep_table(artifacts)
    write_csv(table, folder / "rates.csv")
    return table


def test_sweep_table_picks_the_minimum(sweep, tmp_path):
    table = written(list(sweep.artifacts.values())[::-1], tmp_path)
    assert table["peak_lr"][:4].tolist() == [2e-3, 4e-3, 8e-3, 1.6e-2]
    floatlm, trilm = choices(read_rates(tmp_path / "rates.csv"))
    assert (floatlm.family, floatlm.size, floatlm.peak_lr, floatlm.edge) == ("floatlm", "0.4M", 4e-3, None)
    assert (trilm.peak_lr, trilm.num_rates, trilm.num_diverged) == (1.6e-2, 5, 1)


def test_choice_at_the_edge_is_said(sweep, tmp_path):
    artifacts = [artifact for name, artifact in sweep.artifacts.items() if "lr3e-2" not in name]
    trilm = choices(written(artifacts, tmp_path))[1]
    assert trilm.edge == "highest"


def test_loss_no_better_than_guessing_counts_as_diverged(sweep, tmp_path):
    table = written(list(sweep.artifacts.values()), tmp_path)
    assert table.loc[table["diverged"], "peak_lr"].tolist() == [3e-2]


def test_run_without_loss_is_never_chosen(tmp_path):
    (tmp_path / "rates.csv").write_text("family,size,peak_lr,valid_loss\nfloatlm,1M,1e-3,\nfloatlm,1M,2e-3,3.5\n")
    chosen = choices(read_rates(tmp_path / "rates.csv"))[0]
    assert (chosen.peak_lr, chosen.num_diverged) == (2e-3, 1)


def test_every_rate_diverged_is_no_choice(tmp_path):
    (tmp_path / "rates.csv").write_text("family,size,peak_lr,valid_loss\nfloatlm,1M,1e-3,inf\n")
    assert choices(read_rates(tmp_path / "rates.csv"))[0].valid_loss == math.inf


def test_study_reads_the_rate_that_the_report_rings(sweep, tmp_path):
    written(list(sweep.artifacts.values()), tmp_path)
    data = read_yaml(TINY)
    data["sizes"] = {"0.4M": data["sizes"].popitem()[1]}
    for family in data["families"].values():
        family["peak_lr"] = {"table": str(tmp_path / "rates.csv")}
    chosen = choices(read_rates(tmp_path / "rates.csv"))
    assert Study.model_validate(data).rates == {(each.family, each.size): [each.peak_lr] for each in chosen}


def test_unreadable_rate_names_file_and_column(tmp_path):
    (tmp_path / "rates.csv").write_text("family,size,peak_lr,valid_loss\nfloatlm,1M,fast,3.5\n")
    with pytest.raises(OpenSpectraError, match=r"rates\.csv: peak_lr: every row needs a number"):
        read_rates(tmp_path / "rates.csv")


def test_sweep_report_has_rates_and_nothing_of_the_test_split(sweep, tmp_path):
    metrics = write_report(CONFIG, list(sweep.artifacts.values()), tmp_path)
    assert metrics["chosen_peak_lr"] == {"floatlm/0.4M": 4e-3, "trilm/0.4M": 1.6e-2}
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".html", ".svg"}
    assert {path.name for path in tmp_path.glob("*.csv")} == {"rates.csv", "ternary.csv"}
    assert "the test split was not read" in (tmp_path / "index.html").read_text()


def test_report_shows_a_dated_table_and_departures_from_it(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    study.add_pretrained("floatlm/0.4M", peak_lr=4e-3)
    rates = tmp_path / "rates.csv"
    rates.write_text(
        "# make rates, 2 cores\nfamily,size,peak_lr,valid_loss,date,machine\n"
        "floatlm,0.4M,2e-3,3.4,2025-11-20,2 cores <b>\nfloatlm,0.4M,8e-3,3.3,2025-11-20,2 cores <b>\n"
    )
    write_report(CONFIG, list(study.artifacts.values()), tmp_path, rates)
    page = (tmp_path / "index.html").read_text()
    assert "<li>make rates, 2 cores</li>" in page
    assert "Sweep date: 2025-11-20." in page
    assert "Sweep machine: 2 cores &lt;b&gt;." in page
    assert "at the highest rate of the grid: the optimum may lie outside" in page
    assert "floatlm/0.4M was trained at 4e-3, not at 8e-3" in page


def test_departures_name_models_without_a_row(tmp_path):
    (tmp_path / "rates.csv").write_text("family,size,peak_lr,valid_loss\nfloatlm,1M,1e-3,3.5\n")
    table = read_rates(tmp_path / "rates.csv")
    trained = {ModelId("floatlm", "1M"): 1e-3, ModelId("trilm", "1M"): 2e-3}
    assert list(departures(table, trained)) == ["trilm/1M was trained at 2e-3; the sweep has no row for it."]


def test_budget_says_whether_runs_can_be_compared(tmp_path):
    lines = [
        "family,size,peak_lr,valid_loss,steps,tokens_per_step",
        "floatlm,1M,1e-3,3.5,100,8",
        "trilm,1M,1e-3,3.5,100,8",
    ]
    (tmp_path / "rates.csv").write_text("\n".join(lines))
    assert budget(read_rates(tmp_path / "rates.csv")) == "Every run had the same budget of 800 tokens."
    (tmp_path / "rates.csv").write_text("\n".join([*lines, "trilm,1M,2e-3,3.5,100,16"]))
    assert "Budgets differ, from 800 to 1,600 tokens" in budget(read_rates(tmp_path / "rates.csv"))
