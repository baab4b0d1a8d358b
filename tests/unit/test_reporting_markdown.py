"""The tables of a report as Markdown: README's are those of the run whose CSV files lie in `resources/demo`."""

from pathlib import Path

import pandas as pd
import pytest
from reporting_study import FakeStudy, pretrain_config

from openspectra.errors import OpenSpectraError
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.markdown import BEGIN, DIFFERENCE, END, _gaps, tables, with_tables
from openspectra.reporting.page import write_report

ROOT = Path(__file__).parents[2]


def test_readme_shows_the_tables_of_the_committed_run():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_tables(readme, tables(ROOT / "resources/demo"), "README.md")


def test_tables_show_every_model_and_every_gap_and_what_is_missing(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_demo(sizes=("0.4M", "1.1M"), widths=(8,))
    study.add_pretrained("floatlm/2.6M")
    config = ReportConfig(study="made_up", title="Tables", seed=1, num_resamples=50)
    write_report(config, list(study.artifacts.values()), tmp_path)
    lines = tables(tmp_path).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ")[1:] for line in lines}
    assert lines[0].startswith("Test split: 40 documents. cloze: 200 items, chance 25\u00a0%.")
    assert "both members trained 1,500 steps of 2,048 tokens, 60 of them warm-up" in "\n".join(lines)
    parameters = pretrain_config("floatlm/0.4M").shape.num_parameters
    assert rows["floatlm/0.4M"][0] == f"{parameters:,}" and rows["floatlm/0.4M"][4].endswith(" ± 3")
    assert rows["floatlm/2.6M"][2:] == ["missing"] * 5
    assert rows["TriLM"][0].startswith("+0.0") and rows["TriLM"][2] == "missing"
    assert [row for row in rows if row.startswith("quantlm")] == [
        "quantlm/0.4M-8bit",
        "quantlm/1.1M-8bit",
        "quantlm/2.6M-8bit",
    ]


def test_a_file_without_markers_is_left_alone():
    assert with_tables(f"a\n{BEGIN}\nold\n{END}\nb", "new", "README.md") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(OpenSpectraError, match=r"README\.md: no place for the tables"):
        with_tables("a\nb", "new", "README.md")


def test_gap_of_a_quantized_model_is_the_mean_of_its_calibration_sets():
    rows = [
        {
            "model_id": "floatlm/1M",
            "size": "1M",
            f"{DIFFERENCE}": 0.0,
            f"{DIFFERENCE}_low": 0.0,
            f"{DIFFERENCE}_high": 0.0,
        },
        *(
            {
                "model_id": f"quantlm/1M-4bit{name}",
                "size": "1M",
                f"{DIFFERENCE}": value,
                f"{DIFFERENCE}_low": 0.0,
                f"{DIFFERENCE}_high": 1.0,
            }
            for name, value in (("", 0.5), ("-c0", 0.1), ("-c1", 0.9))
        ),
    ]
    assert "+0.5000 (0.0000 to +1.0000)" in _gaps(pd.DataFrame(rows))
