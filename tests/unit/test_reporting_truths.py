"""What the page says of its numbers: where tasks come from, what is averaged, what is assumed, what is missing."""

import csv
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from reporting_study import PAPER_WIDTHS, FakeStudy
from typer.testing import CliRunner

import openspectra
from openspectra.cli import app
from openspectra.errors import OpenSpectraError
from openspectra.evaluation.config import EvaluateConfig, TasksConfig
from openspectra.logs import log_to
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.duels import duel_table, duels
from openspectra.reporting.load import PAPER_AVERAGE, load_results
from openspectra.reporting.page import write_report
from openspectra.reporting.plan import _count
from openspectra.reporting.sections import assumptions_section
from openspectra.reporting.statistics import mean_accuracy

ROOT = Path(__file__).parents[2]
CONFIG = ReportConfig(study="made_up", title="Truths", seed=1, num_resamples=50)
KNOWLEDGE = (
    "lambada_openai",
    "sciq",
    "triviaqa",
    "mmlu_continuation",
    "logiqa",
    "truthfulqa_mc1",
    "crows_pairs_english",
)
PARTS = tuple(f"mmlu_continuation_{name}" for name in ("stem", "humanities", "abstract_algebra"))


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> FakeStudy:
    """Two models on 13 tasks of lm-eval, one of them a group with parts."""
    study = FakeStudy(tmp_path_factory.mktemp("study") / "results")
    study.add_data()
    for model_id in ("floatlm/99M", "trilm/99M"):
        study.add_pretrained(model_id)
        study.add_evaluation(model_id, "commonsense", tuple(PAPER_AVERAGE))
        study.add_evaluation(model_id, "knowledge", KNOWLEDGE, PARTS)
    return study


def test_the_mean_is_over_the_papers_six_and_every_task_has_its_panels(paper, tmp_path):
    write_report(CONFIG, list(paper.artifacts.values()), tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    shown = {path.name for path in tmp_path.glob("task_*_by_bits.svg")}
    assert shown == {f"task_{task}_by_bits.svg" for task in (*PAPER_AVERAGE, *KNOWLEDGE)}
    assert "The mean is over arc_challenge (acc_norm), arc_easy (acc_norm), boolq (acc), hellaswag" in page
    assert "Mean of the paper" in (tmp_path / "mean_accuracy_by_bits.svg").read_text()
    assert "Not in this table: 12 scores of the parts of task groups" in page
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert set(PARTS) <= set(scores["task"])
    assert set(scores.loc[scores["is_main"], "task"]) == {*PAPER_AVERAGE, *KNOWLEDGE}


def test_the_mean_leaves_other_tasks_out(paper):
    results = load_results(list(paper.artifacts.values()))
    scores = results.scores.copy()
    before = mean_accuracy(scores, results.averaged)
    scores.loc[~scores["task"].isin(PAPER_AVERAGE), "value"] = 0.0
    pd.testing.assert_frame_equal(mean_accuracy(scores, results.averaged), before)


def test_what_a_collection_without_a_score_holds_stands_for_it(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    study.add_pretrained("floatlm/0.4M")
    evaluation = study.add_evaluation("floatlm/0.4M", tasks=("collection",), parts=("arc_easy", "arc_challenge"))
    assert "collection" in load_results(list(study.artifacts.values())).main_metrics
    path = evaluation.folder / "scores.csv"
    rows = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("collection,")]
    study.add(
        "evaluation/floatlm/0.4M/held_out", "evaluate", EvaluateConfig(**evaluation.manifest.config), {"model": "floatlm/0.4M"},
        lambda draft: (draft.folder / "scores.csv").write_text("".join(rows)),
    )  # fmt: skip
    assert list(load_results(list(study.artifacts.values())).main_metrics) == ["arc_challenge", "arc_easy"]


def test_generated_lines_have_a_score_of_their_own_and_no_part_in_the_mean(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    facts = study.artifacts["tasks"].manifest.metrics | {
        "docstring": {"num_items": 60, "chance": 0.16, "main_metric": "rouge1", "constant_line": "Return the name."}
    }
    tasks = TasksConfig(**study.artifacts["tasks"].manifest.config)
    study.add("tasks", "tasks", tasks, {"corpus": "corpus"}, lambda draft: draft.metrics.update(facts))
    for model_id in ("floatlm/0.4M", "trilm/0.4M"):
        study.add_pretrained(model_id)
        add_with_rouge(study, model_id)
    results = load_results(list(study.artifacts.values()))
    assert results.main_metrics == {"cloze": "acc", "continuation": "acc", "docstring": "rouge1"}
    assert results.averaged == {"cloze": "acc", "continuation": "acc"}
    measured = duel_table(results, duels(results)).set_index(["basis", "measure"])["num_items"]
    assert measured["equal parameters", "docstring"] == 60
    write_report(CONFIG, list(study.artifacts.values()), tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.search(r"<span>docstring</span><small>rouge1, %\s+chance 16", page)
    assert "The mean is over cloze (acc), continuation (acc)." in page
    assert "Of docstring it is the ROUGE-1 of what was written, and chance that of the best constant line." in page
    assert "ROUGE-1 more than 2 standard errors above that of the best constant line: docstring 2 of 2 models." in page
    assert "ROUGE-1 F1 (%)" in (tmp_path / "task_docstring_by_bits.svg").read_text()
    assert "Accuracy (acc, %)" in (tmp_path / "task_cloze_by_bits.svg").read_text()


def add_with_rouge(study: FakeStudy, model_id: str) -> None:
    """Add an evaluation whose task `docstring` has ROUGE in place of accuracies."""
    made = study.add_evaluation(model_id, tasks=("cloze", "continuation", "docstring"))
    scores = pd.read_csv(made.file("scores.csv"))
    own = scores["task"] == "docstring"
    scores.loc[own, "metric"] = scores.loc[own, "metric"].map({"acc": "rouge1", "acc_norm": "rouge2"})
    scores.loc[own, "chance"] = scores.loc[own, "metric"].map({"rouge1": 0.16, "rouge2": 0.02})
    items = pd.read_parquet(made.file("items.parquet"))
    own = items["task"] == "docstring"
    items = items.assign(rouge1=items["acc"].where(own)).assign(acc=items["acc"].mask(own))
    documents = made.file("documents.csv").read_bytes()

    def fill(draft):
        scores.to_csv(draft.folder / "scores.csv", index=False)
        items.to_parquet(draft.folder / "items.parquet", index=False)
        (draft.folder / "documents.csv").write_bytes(documents)

    config = EvaluateConfig(**made.manifest.config)
    study.add(f"evaluation/{model_id}/held_out", "evaluate", config, {"model": model_id}, fill)


def test_the_papers_averages_recompute_from_its_own_six():
    """All but the three BiLMs, whose printed averages do not follow from their printed scores."""
    with (ROOT / "resources/paper/results.csv").open(encoding="utf-8") as file:
        cells = {(row["model"], row["task"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    printed = {model: value for (model, task, _), value in cells.items() if task == "commonsense_reasoning_avg6"}
    wrong, complete = [], 0
    for model, average in printed.items():
        six = [cells.get((model, task, metric)) for task, metric in PAPER_AVERAGE.items()]
        if None not in six:
            complete += 1
            if abs(sum(six) / len(six) - average) > 0.1:
                wrong.append(model)
    assert complete >= 59 and len(wrong) == 3 and all("BiLM" in model for model in wrong), (complete, wrong)


def test_captions_say_of_each_task_where_its_items_come_from(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    study.add_pretrained("floatlm/0.4M")
    study.add_evaluation("floatlm/0.4M", tasks=("cloze", "arc_easy"))
    write_report(CONFIG, list(study.artifacts.values()), tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(Accuracy.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) == 1
    assert "Built from the test split: cloze. Tasks of lm-eval with items of their own: arc_easy." in captions[0]


def test_assumptions_of_the_study_stand_on_the_page_with_file_and_line(paper, tmp_path):
    write_report(CONFIG, list(paper.artifacts.values()), tmp_path, study=ROOT / "studies/paper-text.yaml")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    line = next(
        number
        for number, text in enumerate((ROOT / "studies/paper.yaml").read_text(encoding="utf-8").splitlines(), 1)
        if text.startswith("seed:")
    )
    assert f"<code>studies/paper.yaml:{line}</code>: <code>seed: 1</code>" in page
    assert "<code>openspectra/model/families/trilm.py:" in page
    assert str(ROOT) not in page
    listed = set(re.findall(r"<code>studies/([a-z-]+)\.yaml:\d+</code>", page))
    assert listed == {"paper", "paper-text"}


def test_what_cannot_be_listed_is_said(tmp_path, monkeypatch):
    assert assumptions_section(None).notes == [
        "The study's own file was not given to this report, so its assumptions are not listed."
    ]
    monkeypatch.setattr(openspectra, "__file__", str(tmp_path / "openspectra" / "__init__.pyc"))
    section = assumptions_section(ROOT / "studies/demo.yaml")
    assert "installed without its sources" in section.notes[0]
    assert {each.file for each in section.parts[0].rows} == {"studies/demo.yaml"}


@pytest.fixture
def running(tmp_path, monkeypatch) -> FakeStudy:
    """A study whose file plans two suites, of which one never was run, and a model that is not there."""
    content = yaml.safe_load((ROOT / "studies/tiny.yaml").read_text(encoding="utf-8"))
    content["sizes"] = {"0.4M": content["sizes"]["2L"]}
    for family in content["families"].values():
        family["peak_lr"] = {"0.4M": 4e-3}
    content["quantization"]["bits"] = [8, 4]
    suite = content["evaluation"]["suites"]["held_out"]
    content["evaluation"]["suites"]["logiqa"] = suite | {"tasks": ["logiqa"]}
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/made.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    study = FakeStudy(tmp_path / "results/made")
    study.add_data()
    for family in ("floatlm", "trilm"):
        study.add_pretrained(f"{family}/0.4M")
        study.add_evaluation(f"{family}/0.4M")
    study.add_quantized("0.4M", 8)
    return study


def test_a_report_is_made_of_what_is_there_and_names_the_holes(running, tmp_path):
    finished = CliRunner().invoke(app, ["report", "--study", "studies/made.yaml", "--out", "reports/made"])
    assert finished.exit_code == 0, finished.output
    page = (tmp_path / "reports/made/index.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="missing">') : page.index('<section id="findings">')]
    holes = re.findall(r"<li>(.*?)</li>", section)
    assert holes == [
        "Not there: contamination.",
        "Models not there, 1 of 4: quantlm/0.4M-4bit.",
        "Not evaluated on suite held_out (held_out_text, cloze, continuation, minimal_pairs), 1 of 4: quantlm/0.4M-8bit.",
        "Not evaluated on suite logiqa, 3 of 4: floatlm/0.4M, trilm/0.4M, quantlm/0.4M-8bit.",
    ]
    assert "<li>quantlm/0.4M-4bit: planned, and not there.</li>" in page
    models = pd.read_csv("reports/made/models.csv", index_col="model_id")
    assert models.loc["trilm/0.4M", "test_loss"] > 0 and pd.isna(models.loc["quantlm/0.4M-4bit", "test_loss"])


def test_a_hole_says_what_its_job_ended_with(running, tmp_path):
    evaluation = "suite logiqa: logiqa: <b>no items</b>; give them as a file."
    for log, error in (
        ("quantize_model/quantlm/0.4M-4bit", "made no sense"),
        ("evaluate_model/trilm/0.4M", evaluation),
    ):
        with pytest.raises(OpenSpectraError), log_to(tmp_path / f"logs/made/{log}.log"):
            raise OpenSpectraError("suite other: another line", error) if "suite" in error else OpenSpectraError(error)
    with pytest.raises(OpenSpectraError), log_to(tmp_path / "logs/made/evaluate_model/quantlm/0.4M-8bit.log"):
        raise ZeroDivisionError("by zero")  # nobody foresaw it
    (tmp_path / "logs/made/evaluate_model/floatlm").mkdir()
    (tmp_path / "logs/made/evaluate_model/floatlm/0.4M.log").write_text("it still runs\n")
    finished = CliRunner().invoke(app, ["report", "--study", "studies/made.yaml", "--out", "reports/made"])
    assert finished.exit_code == 0, finished.output
    page = (tmp_path / "reports/made/index.html").read_text(encoding="utf-8")
    assert re.findall(r"<li>(Failed: .*?)</li>", page) == [
        "Failed: quantlm/0.4M-4bit: made no sense.",
        "Failed: evaluation/trilm/0.4M: suite other: another line.",
        "Failed: evaluation/trilm/0.4M: suite logiqa: logiqa: &lt;b&gt;no items&lt;/b&gt;; give them as a file.",
        "Failed: evaluation/quantlm/0.4M-8bit: ZeroDivisionError: by zero.",
    ]


def test_many_holes_are_named_by_kind():
    models = [f"{family}/{size}" for family in ("floatlm", "trilm") for size in ("1M", "2M", "3M+lr4e-3", "4M")]
    models += ["quantlm/1M-4bit", "quantlm/1M-4bit-c1", "quantlm/2M-4bit-c1"]
    assert _count(models[1:], models) == (
        "10 of 11: floatlm 2M, 3M+lr4e-3, 4M; trilm 1M, 2M, 3M+lr4e-3, 4M; quantlm-4bit 1M; quantlm-4bit set 1 1M, 2M"
    )


def test_a_report_can_be_made_before_anything_is_there(running, tmp_path):
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    finished = CliRunner().invoke(app, ["report", "--study", "studies/made.yaml", "--out", "reports/made"])
    assert finished.exit_code == 0, finished.output
    assert "Models not there, all 4." in (tmp_path / "reports/made/index.html").read_text(encoding="utf-8")


def test_many_sizes_make_one_finding_per_family(tmp_path):
    study = FakeStudy(tmp_path / "results", num_points=4)
    study.add_data()
    for size in list(PAPER_WIDTHS)[:5]:
        for family in ("floatlm", "trilm"):
            study.add_pretrained(f"{family}/{size}")
            study.add_evaluation(f"{family}/{size}")
    write_report(CONFIG, list(study.artifacts.values()), tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    found = re.findall(r"<li>(TriLM: test loss against its FloatLM twin.*?)</li>", page)
    assert len(found) == 1 and "above at 99M (+0.0" in found[0]
    assert all(size in found[0] for size in list(PAPER_WIDTHS)[:5])
