"""Our numbers beside every number that the paper prints: comparable or not, by which rule, with which verdict.

Comparable are equal size, family, tokens seen, text, task variant, metric, split and items. What is not is shown with the
keys that differ, beside the model of the study that comes nearest; its difference would mean nothing, so none is given.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from openspectra.evaluation.published import TASKS, PublishedTask
from openspectra.identity import run_facts_of, suite_name
from openspectra.model_ids import QUANTLM, ModelId
from openspectra.reporting.formats import counted, scaled
from openspectra.reporting.load import PAPER_AVERAGE, Model, Results, read_table

COLUMNS = (
    *("paper_model", "task", "metric", "paper", "paper_stderr", "our_model", "ours", "difference"),
    *("rule", "verdict", "differs_in", "note", "source"),
)
MATCH, DIFFERS, NOT_COMPARABLE = "match", "differs", "not comparable"
PAPER_HARNESS = "0.4.2"  # paper, evaluation
SIZE_TOLERANCE = 0.005
"""Share by which counted parameters may differ: the paper prints 190.0M for what its shapes make 190.54M."""
TOKEN_TOLERANCE = 0.01
POINTS = 0.5
"""What a score of the released weights may be away from the printed one."""
STANDARD_ERRORS = 2
"""Printed standard errors that a score of weights trained anew may be away."""
SAME_WEIGHTS = f"rounds to the printed value, or within {POINTS:g} points"
RETRAINED = f"within {STANDARD_ERRORS} printed standard errors"
ROUNDS = "rounds to the printed value"
FAMILIES = {
    "FloatLM": "floatlm",
    "TriLM": "trilm",
    "QuantLM": QUANTLM,
    "BiLM": "bilm",
    "BitNet b1.58 (replicated by the Spectra authors)": "bitnet",
}
"""Families of the paper that a study can hold; of the others there are published values only."""
VARIANTS = {
    "only peak LR dropped": "only-lr-drop",
    "only weight decay dropped": "only-decay-stop",
    "baseline schedule": "none",
}
SCALES = {"acc": 100, "acc_norm": 100, "exact_match": 100, "pct_stereotype": 100, "likelihood_diff_x100": 100}
"""What our value is multiplied with to be in the paper's unit; 1 elsewhere."""
RELEASED_TEXT = "SlimPajama"
"""What the released weights were trained on."""
AVERAGE = "commonsense_reasoning_avg6"


@dataclass(frozen=True)
class OurScore:
    """A score in the paper's unit, with what must be equal for it to be compared."""

    value: float
    split: str
    num_items: int
    num_fewshot: int = 0


@dataclass(frozen=True)
class OurModel:
    """A model of the study, or the paper's released weights."""

    id: ModelId
    num_parameters: float
    """As the paper counts them."""
    tokens_seen: float | None
    text: str | None
    scores: dict[tuple[str, str], OurScore]
    """By the paper's names of task and metric."""
    facts: dict[tuple[str, str], float]
    """Size and training counts, by the paper's names."""
    is_released: bool = False


def conformance_table(published: pd.DataFrame, models: Iterable[OurModel]) -> pd.DataFrame:
    """Return one row for each published number, in the order of the file."""
    models = list(models)
    errors = _average_errors(published)
    rows = [_row(cell, models, errors) for cell in published.to_dict("records")]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def read_published(path: Path) -> pd.DataFrame:
    """Return the paper's table of results; `printed` is the number as it stands there."""
    text = ("model", "family", "bits", "task", "metric", "source", "certainty")
    columns = (*text, "params", "value", "stderr")
    table = read_table(path, columns, (*text, "value"))
    return table.assign(printed=table["value"], value=pd.to_numeric(table["value"]))


def our_models(results: Results) -> list[OurModel]:
    """Return the models of a study that can stand beside the paper's, smallest first."""
    return [_our_model(model, results) for model in results.models if model.artifact and model.id.step is None]


def harness_versions(results: Results) -> list[str]:
    """Return the versions of lm-eval that scored the models, as their runs recorded them."""
    runs = [run_facts_of(artifact) for artifact in results.artifacts if artifact.manifest.stage == "evaluate"]
    return sorted({facts["packages"]["lm_eval"] for facts in runs if "lm_eval" in facts.get("packages", {})})


def _our_model(model: Model, results: Results) -> OurModel:
    trained = results.by_id.get(str(model.id.float_parent)) if model.id.family == QUANTLM else model
    counts = {"skipped_batches": "num_skipped_steps", "min_loss_scale": "min_loss_scale"}
    facts = {("training_run", name): model.metric(key) for name, key in counts.items()}
    skipped = model.metric("num_skipped_tokens")
    facts["training_run", "skipped_tokens_billions"] = None if skipped is None else skipped / 1e9
    facts["model_size", "gigabits"] = (model.metric("model_size_bits") or math.nan) / 1e9
    return OurModel(
        id=model.id,
        num_parameters=model.metric("num_counted_parameters") or model.metric("num_parameters") or math.nan,
        tokens_seen=trained.metric("tokens_seen") if trained else None,
        text=RELEASED_TEXT if _is_released(trained) else results.plan.text if results.plan else None,
        scores=_scores_of(model, results),
        facts={key: value for key, value in facts.items() if value is not None and math.isfinite(value)},
        is_released=_is_released(model),
    )


def _is_released(model: Model | None) -> bool:
    return bool(model and model.artifact and model.artifact.manifest.stage == "release")


def _scores_of(model: Model, results: Results) -> dict[tuple[str, str], OurScore]:
    """Return the scores of a model by the paper's names, each with the split and the items it rests on."""
    configs = {suite_name(each): each.manifest.config for each in model.evaluations}
    splits = {
        suite_name(each): {row["task"]: row.get("split", "unknown") for row in each.rows("data.csv")}
        for each in model.evaluations
    }
    own = results.scores[results.scores["model_id"] == str(model.id)]
    found = {}
    for paper_task, task in TASKS.items():
        for score in own[own["task"].map(lambda name, task=task: _is_task(name, task.name))].to_dict("records"):
            suite = next(
                (name for name, each in configs.items() if task.name.partition("::")[0] in each["tasks"]), None
            )
            metric = "likelihood_diff_x100" if score["metric"] == "likelihood_diff" else score["metric"]
            value = float(score["value"]) * SCALES.get(metric, 1)
            count = score["num_samples"]
            found[paper_task, metric] = OurScore(
                value,
                _split_of(splits.get(suite, {}), task),
                int(count) if pd.notna(count) else 0,
                configs.get(suite, {}).get("num_fewshot", 0),
            )
    parts = [found.get((task, metric)) for task, metric in PAPER_AVERAGE.items()]
    if all(parts):
        whole = [(task, part) for task, part in zip(PAPER_AVERAGE, parts, strict=True)]
        as_published = all(part.split == TASKS[task].split for task, part in whole)
        mean = sum(part.value for part in parts) / len(parts)
        split = "as published" if as_published else "other"
        found[AVERAGE, "mean"] = OurScore(
            mean, split, sum(part.num_items for part in parts), max(p.num_fewshot for p in parts)
        )
    return found


def _is_task(name: str, wanted: str) -> bool:
    """Return whether a score's task is the one wanted; the part of a group may stand without the group's name."""
    return name == wanted or ("::" in wanted and name == wanted.partition("::")[2])


def _split_of(splits: dict[str, str], task: PublishedTask) -> str:
    """Return the split that a task's items are from, by the record of its evaluation; of a group, those of its parts."""
    members = [task.name] if task.name in splits else [name for name in splits if name.startswith("mmlu_")]
    found = {splits[name] for name in members}
    return found.pop() if len(found) == 1 else "unknown" if not found else " and ".join(sorted(found))


def _row(cell: dict, models: list[OurModel], errors: dict[str, float]) -> dict:
    wanted = _wanted_id(cell)
    row = {
        "paper_model": cell["model"],
        "task": cell["task"],
        "metric": cell["metric"],
        "paper": cell["printed"],
        "paper_stderr": cell["stderr"],
        "source": cell["source"],
        "note": _note(cell),
        "verdict": NOT_COMPARABLE,
    }
    if wanted is None:
        return row | {"differs_in": "published value only"}
    ours = _nearest(cell, wanted, models)
    if ours is None:
        absent = f"variant: no {wanted.kind}+{wanted.variant}" if wanted.variant else f"family: no {wanted.kind}"
        return row | {"differs_in": f"{absent} here"}
    value, differs = _value_and_differences(cell, wanted, ours)
    if reason := _never_compared(cell):
        differs.append(reason)
    row |= {"our_model": str(ours.id), "ours": None if value is None else round(value, 6)}
    if differs:
        return row | {"differs_in": "; ".join(differs)}
    rule, verdict = _verdict(cell, value, ours, errors)
    if verdict is None:
        return row | {"differs_in": rule}
    return row | {"rule": rule, "verdict": verdict, "difference": round(value - cell["value"], 6)}


def _wanted_id(cell: dict) -> ModelId | None:
    """Return family, bits and variant of a published model; its size is left open. None for published values only."""
    if cell["family"] not in FAMILIES or cell["model"].startswith("Spectra-1.1"):
        return None
    family = FAMILIES[cell["family"]]
    variant = next((ours for words, ours in VARIANTS.items() if words in cell["model"]), None)
    return ModelId(family, "any", variant, bits=int(cell["bits"]) if family == QUANTLM else None)


def _nearest(cell: dict, wanted: ModelId, models: list[OurModel]) -> OurModel | None:
    """Return the model of the same family, bits and variant whose size comes nearest."""
    same = [
        model
        for model in models
        if (model.id.kind, model.id.variant, model.id.calibration) == (wanted.kind, wanted.variant, None)
    ]
    known = [model for model in same if math.isfinite(model.num_parameters)]
    return min(known, key=lambda model: abs(math.log(model.num_parameters / cell["params"])), default=None)


def _value_and_differences(cell: dict, wanted: ModelId, ours: OurModel) -> tuple[float | None, list[str]]:
    """Return our number and the keys in which it is another thing than the paper's."""
    differs = []
    if abs(ours.num_parameters / cell["params"] - 1) > SIZE_TOLERANCE:
        differs.append(f"size ({scaled(ours.num_parameters)}, not {scaled(cell['params'])})")
    name = (cell["task"], cell["metric"])
    if cell["task"] == "model_size":
        return ours.facts.get(name), differs + ([] if name in ours.facts else ["metric (not recorded)"])
    tokens = _tokens_of(cell)
    if not ours.is_released:
        if ours.tokens_seen is None or abs(ours.tokens_seen / tokens - 1) > TOKEN_TOLERANCE:
            seen = "unknown" if ours.tokens_seen is None else scaled(ours.tokens_seen)
            differs.append(f"tokens ({seen}, not {scaled(tokens)})")
        if ours.text != _text_of(cell):
            differs.append(f"text ({ours.text or 'unknown'}, not {_text_of(cell)})")
    elif tokens != 300e9 or cell["model"].startswith("ablation"):
        differs.append("tokens (300B of the released weights)")
    if cell["task"] == "training_run":
        return ours.facts.get(name), differs + ([] if name in ours.facts else ["metric (not recorded)"])
    if name not in ours.scores:
        has_task = any(task == cell["task"] for task, _ in ours.scores)
        return None, [*differs, "metric (not computed)" if has_task else "task (not run)"]
    score = ours.scores[name]
    split, num_items = _items_of(cell["task"])
    if score.split != split:
        differs.append(f"split ({score.split}, not {split})")
    if score.num_items != num_items:
        differs.append(f"items ({counted(score.num_items)}, not {counted(num_items)})")
    if score.num_fewshot:
        differs.append(f"task variant ({score.num_fewshot} examples, not 0)")
    return score.value, differs


def _items_of(task: str) -> tuple[str, int]:
    if task == AVERAGE:
        return "as published", sum(TASKS[part].num_items for part in PAPER_AVERAGE)
    return TASKS[task].split, TASKS[task].num_items


def _verdict(cell: dict, value: float, ours: OurModel, errors: dict[str, float]) -> tuple[str, str | None]:
    """Return rule and verdict; without a verdict the reason why the paper's number allows none."""
    difference = abs(value - cell["value"])
    decimals = len(str(cell["printed"]).partition(".")[2])
    rounds = round(difference, 9) <= 0.5 * 10**-decimals
    if cell["task"] == "model_size":
        return ROUNDS, MATCH if rounds else DIFFERS
    if ours.is_released:
        return SAME_WEIGHTS, MATCH if rounds or difference <= POINTS else DIFFERS
    error = errors.get(cell["model"]) if cell["task"] == AVERAGE else cell["stderr"]
    if not error or not math.isfinite(error):
        return "no standard error is printed" if error != 0 else "its standard error is printed as 0", None
    rule = RETRAINED if cell["task"] != AVERAGE else f"{RETRAINED}, those of its six parts put together"
    return rule, MATCH if round(difference, 9) <= STANDARD_ERRORS * error else DIFFERS


def _average_errors(published: pd.DataFrame) -> dict[str, float]:
    """Return the standard error of each model's six-task average: the paper prints those of its parts."""
    parts = published[published["metric"] == published["task"].map(PAPER_AVERAGE)]
    groups = parts.dropna(subset=["stderr"]).groupby("model")["stderr"]
    errors = groups.agg(lambda values: math.sqrt((values**2).sum()) / len(values))
    return {model: error for model, error in errors.items() if groups.size()[model] == len(PAPER_AVERAGE)}


def _tokens_of(cell: dict) -> float:
    found = re.search(r"(\d+)B", cell["task"]) or re.search(r"\((\d+)B tokens", cell["model"])
    return float(found[1]) * 1e9 if found else 300e9


def _text_of(cell: dict) -> str:
    return "FineWeb-Edu" if "FineWeb-Edu" in cell["model"] else "SlimPajama"


def _never_compared(cell: dict) -> str | None:
    """Return why a published number is not compared with any other."""
    model, task = cell["model"], cell["task"]
    if model == "QuantLM_190M_4bit" and task != "model_size":
        return "odd cell (this QuantLM collapsed, and the authors leave it out of their plots)"
    if model.startswith("BiLM") and task == AVERAGE:
        return "odd cell (it does not follow from its own six scores)"
    if model.startswith("BiLM") and task.startswith("mmlu"):
        return "task variant (this row looks like the choice of a letter)"
    if task.startswith("validation"):
        return "items (the paper's validation text is not published)"
    return None


def _note(cell: dict) -> str:
    """Return what a reader must know of an odd cell that is compared nevertheless."""
    if cell["model"] == "TriLM_1.1B" and cell["task"] in ("sciq", "triviaqa"):
        return "out of the paper's own trend: below its 830M"
    if cell["certainty"] == "C":
        return "as quoted by a third party"
    return ""
