"""The paper's numbers beside ours: what may be compared, the rules, and the paper's own table held against itself."""

from dataclasses import replace

import pandas as pd
import pytest
from conftest import ROOT

from openspectra.model_ids import ModelId
from openspectra.reporting import conformance
from openspectra.reporting.conformance import (
    AVERAGE,
    DIFFERS,
    MATCH,
    NOT_COMPARABLE,
    OurModel,
    OurScore,
    conformance_table,
    read_published,
)


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return read_published(ROOT / "resources/paper/results.csv")


def as_if_ours(published: pd.DataFrame, shift: float = 0.0, is_released: bool = False) -> list[OurModel]:
    """Return the paper's table as if it were ours, every number moved by so many standard errors."""
    errors = conformance._average_errors(published)
    models = []
    for name, cells in published.groupby("model", sort=False):
        first = cells.iloc[0].to_dict()
        wanted = conformance._wanted_id(first)
        if wanted is None:
            continue
        scores, facts = {}, {}
        for cell in cells.to_dict("records"):
            error = errors.get(name, 0.0) if cell["task"] == AVERAGE else cell["stderr"]
            value = cell["value"] + shift * (0.0 if pd.isna(error) else error)
            key = (cell["task"], cell["metric"])
            if cell["task"] in ("model_size", "training_run"):
                facts[key] = value
            elif cell["task"] == AVERAGE or cell["task"] in conformance.TASKS:
                scores[key] = OurScore(value, *conformance._items_of(cell["task"]))
        tokens, text = conformance._tokens_of(first | {"task": "any"}), conformance._text_of(first)
        size = f"{first['params']:.0f}" + ("fw" if "FineWeb" in name else "") + f"t{tokens / 1e9:.0f}"
        model_id = replace(wanted, size=size)
        models.append(OurModel(model_id, first["params"], tokens, text, scores, facts, is_released))
    return models


def one_by_one(published: pd.DataFrame, models: list[OurModel]) -> pd.DataFrame:
    """Hold each model against its own rows: in one study there is one model of each family and size."""
    names = [name for name, cells in published.groupby("model", sort=False) if conformance._wanted_id(cells.iloc[0])]
    tables = [
        conformance_table(published[published["model"] == name], [model])
        for name, model in zip(names, models, strict=True)
    ]
    return pd.concat(tables)


def test_every_published_number_has_a_row(published):
    table = conformance_table(published, [])
    assert len(table) == len(published) == 1972
    assert set(table["verdict"]) == {NOT_COMPARABLE} and not table["differs_in"].isna().any()


def test_the_papers_own_table_matches_itself(published):
    table = one_by_one(published, as_if_ours(published))
    compared = table[table["verdict"] != NOT_COMPARABLE]
    assert set(compared["verdict"]) == {MATCH} and (compared["difference"] == 0).all()
    assert len(compared) > 1400
    reasons = table.loc[table["verdict"] == NOT_COMPARABLE, "differs_in"].str.split("; ").str[-1]
    assert {reason.partition(" (")[0] for reason in reasons} == {
        *("odd cell", "task variant", "items"),
        *("no standard error is printed", "its standard error is printed as 0"),
    }


def test_the_papers_table_moved_by_three_standard_errors_differs(published):
    for shift in (3.0, -3.0):
        table = one_by_one(published, as_if_ours(published, shift))
        scores = table[(table["verdict"] != NOT_COMPARABLE) & (table["task"] != "model_size")]
        assert set(scores["verdict"]) == {DIFFERS} and len(scores) > 1350
    table = one_by_one(published, as_if_ours(published, 1.9))
    assert set(table.loc[table["verdict"] != NOT_COMPARABLE, "verdict"]) == {MATCH}


def test_released_weights_match_by_rounding_or_half_a_point(published):
    cell = published[(published["model"] == "TriLM_99M") & (published["task"] == "hellaswag")].head(1)
    (model,) = [each for each in as_if_ours(cell, is_released=True)]
    (key,) = model.scores
    for away, verdict in ((0.0, MATCH), (0.49, MATCH), (-0.5, MATCH), (0.51, DIFFERS)):
        score = replace(model.scores[key], value=float(cell["value"].iloc[0]) + away)
        row = conformance_table(cell, [replace(model, scores={key: score})]).iloc[0]
        assert (row["verdict"], row["rule"]) == (verdict, conformance.SAME_WEIGHTS)


def test_each_key_that_differs_is_named(published):
    cell = published[(published["model"] == "TriLM_99M") & (published["metric"] == "acc_norm")].head(1)
    (model,) = as_if_ours(cell)
    (key,) = model.scores
    score = model.scores[key]
    changes = {
        "size (101M, not 99.7M)": replace(model, num_parameters=model.num_parameters * 1.01),
        "tokens (303B, not 300B)": replace(model, tokens_seen=303.1e9),
        "text (FineWeb-Edu, not SlimPajama)": replace(model, text="FineWeb-Edu"),
        "text (unknown, not SlimPajama)": replace(model, text=None),
        "split (validation, not test)": replace(model, scores={key: replace(score, split="validation")}),
        "items (16, not 1,172)": replace(model, scores={key: replace(score, num_items=16)}),
        "task variant (5 examples, not 0)": replace(model, scores={key: replace(score, num_fewshot=5)}),
        "metric (not computed)": replace(model, scores={(key[0], "acc"): score}),
        "task (not run)": replace(model, scores={}),
        "family: no trilm here": replace(model, id=ModelId("floatlm", "99M")),
    }
    for differs, changed in changes.items():
        row = conformance_table(cell, [changed]).iloc[0]
        assert (row["verdict"], row["differs_in"]) == (NOT_COMPARABLE, differs)
        assert pd.isna(row["difference"])
    within = conformance_table(cell, [replace(model, tokens_seen=302.9e9, num_parameters=model.num_parameters * 1.004)])
    assert within.iloc[0]["verdict"] == MATCH


def test_sizes_are_compared_whatever_the_tokens(published):
    cell = published[(published["model"] == "TriLM_3.9B") & (published["task"] == "model_size")]
    (model,) = as_if_ours(cell)
    for bits, verdict in ((10.764, MATCH), (10.80, DIFFERS)):
        other = replace(model, tokens_seen=None, text=None, facts={("model_size", "gigabits"): bits})
        assert conformance_table(cell, [other]).iloc[0]["verdict"] == verdict


def test_the_split_of_a_task_is_that_its_evaluation_recorded():
    task, group = conformance.TASKS["sciq"], conformance.TASKS["mmlu_stem"]
    assert conformance._split_of({"sciq": "validation", "piqa": "test"}, task) == "validation"
    assert conformance._split_of({"mmlu_astronomy": "test", "mmlu_virology": "test", "sciq": "train"}, group) == "test"
    assert conformance._split_of({"mmlu_astronomy": "test", "mmlu_virology": "dev"}, group) == "dev and test"
    assert conformance._split_of({}, task) == "unknown"
