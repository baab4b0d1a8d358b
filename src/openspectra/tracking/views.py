"""The first screen of a study in MLflow's UI, kept in the store itself: columns, charts, description, and a link there.

The view is MLflow's own "share" of a runs page: an experiment's tag `mlflow.sharedViewState.<key>`, and `<key>` in the
link. MLflow 3.17 reads it as JSON.
"""

import json
from typing import Any
from urllib.parse import quote

VIEW, MODE = "openspectra", "workflowType=machine_learning"
COLUMNS = (
    *("tags.`stage`", "tags.`family`", "tags.`size`", "tags.`bits`"),
    *("metrics.`test_loss`", "metrics.`bits_per_byte`", "metrics.`mean_accuracy`"),
)
CHARTS = (
    ("train_loss", "Training loss (nats per token) against tokens", "Learning"),
    ("valid_loss", "Validation loss (nats per token) against tokens", "Learning"),
    ("sparsity", "Share of zeros among ternary weights", "Ternary weights"),
    ("flip_rate", "Share of ternary weights that changed since the validation before", "Ternary weights"),
    ("learning_rate", "Learning rate", "Optimizer"),
    ("gradient_norm", "Gradient norm before clipping", "Optimizer"),
)
BARS = (
    ("test_loss", "Test loss (nats per token)"),
    ("bits_per_byte", "Bits per byte of the test split"),
    ("mean_accuracy", "Mean accuracy"),
)
NOTE = """\
Study `{study}`: how do the models learn and compare? [curves]({curves}), [table]({table}) · the models themselves: \
[registered]({models}) · the report: [run `report`]({report}), tab Artifacts · the corpus: [run `corpus`]({corpus})

One run per artifact; each names what it was made from and what it led to. TriLM against FloatLM of one size: in the table, \
`Group by` `size` or `family`, or the filter `tags.size = '...' and tags.stage = 'pretrain'`.
"""


def experiment_tags(study: str, experiment_id: str | None) -> dict[str, str]:
    """Return the tags of a study's experiment: what kind it is, the first screen and, once it has an id, a description."""
    tags = {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{VIEW}": json.dumps(_state())}
    if experiment_id:
        tags["mlflow.note.content"] = NOTE.format(
            study=study,
            curves=_page(experiment_id, "CHART"),
            table=_page(experiment_id, "TABLE"),
            models=f"#/experiments/{experiment_id}/models?{MODE}",
            report=_search(experiment_id, "report"),
            corpus=_search(experiment_id, "corpus"),
        )
    return tags


def links(address: str, experiment_id: str) -> tuple[str, str]:
    """Return the links to the first screen of an experiment on a server: charts, and table."""
    curves, table = (f"{address.rstrip('/')}/{_page(experiment_id, mode)}" for mode in ("CHART", "TABLE"))
    return curves, table


def _page(experiment_id: str, mode: str) -> str:
    return f"#/experiments/{experiment_id}/runs?{MODE}&compareRunsMode={mode}&viewStateShareKey={VIEW}"


def _search(experiment_id: str, stage: str) -> str:
    wanted = quote(f"tags.stage = '{stage}'")
    return f"#/experiments/{experiment_id}/runs?{MODE}&searchFilter={wanted}"


def _state() -> dict[str, Any]:
    """Return the state of the runs page."""
    sections = ["Learning", "Scores", "Ternary weights", "Optimizer"]
    lines = [
        _chart("LINE", metric, title, section)
        | {"xAxisKey": "metric", "selectedXAxisMetricKey": "tokens_seen", "useGlobalXaxisKey": False}
        for metric, title, section in CHARTS
    ]
    bars = [_chart("BAR", metric, title, "Scores") for metric, title in BARS]
    return {
        "searchFilter": "tags.kind = 'model'",
        "orderByKey": "tags.`size`",
        "orderByAsc": True,
        "selectedColumns": list(COLUMNS),
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": lines + bars,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}
            for name in sections
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _chart(kind: str, metric: str, title: str, section: str) -> dict[str, Any]:
    base = {"type": kind, "uuid": f"{kind}-{metric}", "metricKey": metric, "selectedMetricKeys": [metric]}
    base |= {"displayName": title, "metricSectionId": section, "deleted": False, "isGenerated": False}
    if kind == "BAR":
        return base | {"runsCountToCompare": 20}
    return base | {
        "runsCountToCompare": 20,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalLineSmoothing": True,
    }
