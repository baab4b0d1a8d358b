"""Perplexity by corpus: sources of the test text and other corpora apart, what is missing with its reason."""

import json
import math

import pandas as pd
import pytest
from reporting_study import FakeStudy, documents_of

from openspectra.artifacts import write_csv
from openspectra.evaluation.config import EvaluateConfig, TasksConfig
from openspectra.evaluation.scores import SCORE_COLUMNS
from openspectra.reporting.load import load_results
from openspectra.reporting.perplexity import (
    documents_by_corpus,
    missing_corpora,
    perplexity_section,
    perplexity_table,
)
from openspectra.reporting.statistics import document_losses

LOSSES = {"floatlm/0.4M": 3.0, "trilm/0.4M": 3.2}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two models on twenty test documents of two sources, on WikiText, and without Penn Treebank."""
    study = FakeStudy(tmp_path_factory.mktemp("perplexity"), num_documents=20)
    study.add_data()
    names = documents_of(0.0, 20, 1)["document_id"]

    def tasks(draft):
        rows = [{"document_id": name, "source": "web" if number < 8 else "books"} for number, name in enumerate(names)]
        (draft.folder / "held_out_text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    config = TasksConfig(seed=1, num_documents=20, document_characters=600, num_items=1)
    study.add("tasks", "tasks", config, {"corpus": "corpus"}, tasks)
    suite = EvaluateConfig(tasks=["held_out_text", "wikitext", "paloma_ptb"], batch_size=1, dtype="float32")
    for name, loss in LOSSES.items():
        study.add_pretrained(name)

        def fill(draft, loss=loss):
            others = documents_of(loss + 1, 5, 7).assign(task="wikitext")
            pd.concat([documents_of(loss, 20, 1), others]).to_csv(draft.folder / "documents.csv", index=False)
            write_csv(draft.folder / "scores.csv", SCORE_COLUMNS, [])
            reason = "evaluate.tasks: paloma_ptb: a gated data set; leave it out"
            write_csv(draft.folder / "missing.csv", ("task", "reason"), [{"task": "paloma_ptb", "reason": reason}])

        study.add(f"evaluation/{name}/held_out", "evaluate", suite, {"model": name, "tasks": "tasks"}, fill)
    return load_results(list(study.artifacts.values()))


def test_test_loss_is_of_the_study_s_own_text_alone(results):
    assert set(results.documents["task"]) == {"held_out_text"} and set(results.corpora["task"]) == {"wikitext"}
    assert document_losses(results.documents, 10, 1).num_documents == 20


def test_each_corpus_has_its_own_numbers(results):
    corpora = {name: document_losses(rows, 50, 1) for name, rows in documents_by_corpus(results).items()}
    assert {name: each.num_documents for name, each in corpora.items()} == {
        "Test text: books": 12,
        "Test text: web": 8,
        "WikiText-2": 5,
    }
    table = perplexity_table(results, corpora).set_index(["model_id", "corpus"])
    row = table.loc["trilm/0.4M", "WikiText-2"]
    documents = documents_of(4.2, 5, 7)
    loss = -documents["log_likelihood"].sum() / documents["num_tokens"].sum()
    assert row["loss"] == pytest.approx(loss, abs=1e-6) and row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    bits = -documents["log_likelihood"].sum() / documents["num_bytes"].sum() / math.log(2)
    assert row["bits_per_byte"] == pytest.approx(bits, abs=1e-6)
    assert row["loss_low"] < row["loss"] < row["loss_high"]


def test_a_corpus_that_cannot_be_had_is_named_with_the_reason(results):
    assert missing_corpora(results) == {"Penn Treebank": "a gated data set; leave it out"}
    section = perplexity_section(results, 20, 1)
    assert section.notes == ["Missing: Penn Treebank: a gated data set; leave it out"]
    assert [drawing.name for drawing in section.drawings] == ["bits_per_byte_by_corpus"]
