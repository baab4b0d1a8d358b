"""Several suites of one model in one process: what is finished is not computed again, what fails stays alone."""

# ruff: noqa: F811  (fixtures of test_harness are parameters here)

import json
import shutil

import pytest
from test_harness import CONFIG, make_model, make_tasks, project, tasks, texts  # noqa: F401

from openspectra.artifacts import FINISHED, MANIFEST, open_artifact
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.evaluation import harness
from openspectra.evaluation.suites import Suite, evaluate_suites

CLOZE = CONFIG.model_copy(update={"tasks": ["cloze"], "batch_size": 2})
CHOICES = CONFIG.model_copy(update={"tasks": ["continuation", "minimal_pairs"]})


@pytest.fixture(scope="module")
def model(project, texts):
    return make_model(project / "results/demo/quantlm/tiny-8bit", texts)


@pytest.fixture
def runs(monkeypatch):
    """The task lists that were run, in order."""
    seen = []
    original = harness.Evaluation.run
    monkeypatch.setattr(
        harness.Evaluation,
        "run",
        lambda self, config, *folders: (seen.append(config.tasks), original(self, config, *folders))[1],
    )
    return seen


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("run.json", FINISHED)}


def test_two_suites_in_one_process_give_the_bytes_of_two_processes(model, tasks, tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    evaluate_suites([Suite(CLOZE, together / "a"), Suite(CHOICES, together / "b")], model, tasks)
    for name, config in (("b", CHOICES), ("a", CLOZE)):
        evaluate_suites([Suite(config, alone / name)], model, tasks)
    for name in "ab":
        assert contents(together / name) == contents(alone / name)


def test_only_what_is_missing_damaged_or_changed_is_computed(model, tasks, runs, tmp_path):
    suites = [Suite(CLOZE, tmp_path / "a"), Suite(CHOICES, tmp_path / "b")]
    evaluate_suites(suites, model, tasks)
    before = {suite.out: contents(suite.out) for suite in suites}
    for suite in suites:
        (suite.out / MANIFEST).unlink()  # as Snakemake does before a job
    runs.clear()
    evaluate_suites(suites, model, tasks)
    assert runs == [] and {suite.out: contents(suite.out) for suite in suites} == before
    shutil.rmtree(tmp_path / "a")
    evaluate_suites(suites, model, tasks)
    scores = tmp_path / "b/scores.csv"
    scores.write_text(scores.read_text().replace("0.", "1.", 1))
    evaluate_suites(suites, model, tasks)
    (tmp_path / "a" / FINISHED).unlink()  # as a forced run does
    evaluate_suites(suites, model, tasks)
    assert runs == [CLOZE.tasks, CHOICES.tasks, CLOZE.tasks]
    assert {suite.out: contents(suite.out) for suite in suites} == before
    evaluate_suites([Suite(CLOZE.model_copy(update={"limit": 2}), tmp_path / "a"), suites[1]], model, tasks)
    assert runs[3:] == [CLOZE.tasks]
    assert open_artifact(tmp_path / "a").manifest.config["limit"] == 2


def test_another_model_of_the_same_name_is_evaluated_anew(model, tasks, texts, runs, tmp_path):
    suites = [Suite(CLOZE, tmp_path / "a"), Suite(CHOICES, tmp_path / "b")]
    evaluate_suites(suites, model, tasks)
    runs.clear()
    evaluate_suites(suites, make_model(tmp_path / "other", texts, fill_head=0.5), tasks)
    assert runs == [CLOZE.tasks, CHOICES.tasks]


@pytest.mark.parametrize(
    ("error", "kind", "lines"),
    [
        (ConfigError(["no such task", "no such file"]), ConfigError, "suite a: no such task\nsuite a: no such file"),
        (ZeroDivisionError("by zero"), OpenSpectraError, "suite a: ZeroDivisionError: by zero"),
    ],
)
def test_a_suite_that_fails_does_not_keep_the_others_from_being_run(
    model,
    tasks,
    monkeypatch,
    tmp_path,
    error,
    kind,
    lines,
):
    original = harness._run

    def broken(config, *arguments):
        if config.tasks == CLOZE.tasks:
            raise error
        return original(config, *arguments)

    monkeypatch.setattr(harness, "_run", broken)
    with pytest.raises(kind) as caught:
        evaluate_suites([Suite(CLOZE, tmp_path / "a"), Suite(CHOICES, tmp_path / "b")], model, tasks)
    assert type(caught.value) is kind and str(caught.value) == lines
    assert open_artifact(tmp_path / "b", "evaluate").manifest.metrics
    assert not (tmp_path / "a" / MANIFEST).exists() and not (tmp_path / "a" / FINISHED).exists()
    with pytest.raises(type(error)):
        evaluate_suites([Suite(CLOZE, tmp_path / "a")], model, tasks)


def test_a_copy_of_a_manifest_that_is_cut_off_is_no_evaluation(model, tasks, runs, tmp_path):
    suite = Suite(CLOZE, tmp_path / "a")
    evaluate_suites([suite], model, tasks)
    kept = tmp_path / "a" / FINISHED
    kept.write_bytes(kept.read_bytes()[:100])
    evaluate_suites([suite], model, tasks)
    assert len(runs) == 2 and json.loads(kept.read_text()) == json.loads((tmp_path / "a" / MANIFEST).read_text())
