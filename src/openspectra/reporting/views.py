"""The tables as the page shows them: cells with units, intervals and reasons for what is missing."""

import re
from collections import Counter
from dataclasses import replace

import pandas as pd

from openspectra.identity import kind_label
from openspectra.model_ids import rate_label
from openspectra.reporting.conformance import DIFFERS, MATCH, NOT_COMPARABLE
from openspectra.reporting.duels import CLEAR, TEST_LOSS, Duel
from openspectra.reporting.formats import (
    PLUS_MINUS,
    Cell,
    counted,
    given,
    interval_text,
    missing,
    number_cell,
    percent,
    scaled,
    signed,
    size_unit,
)
from openspectra.reporting.load import Model, Results
from openspectra.reporting.provenance import SHORT_HASH
from openspectra.reporting.scaling_law import LEVEL, MIN_SIZES, PAPER_LAWS, Estimate, Fit, predict
from openspectra.reporting.section import Row, View
from openspectra.reporting.statistics import LEVEL_TEXT, DocumentLosses, Interval, main_scores, mean_accuracy
from openspectra.reporting.sweep import Choice
from openspectra.reporting.tables import Gap, missing_loss

NO_REASON = "\u2013"
"""Stands where there is nothing to say."""


def model_view(results: Results, losses: DocumentLosses) -> View:
    """Return the table of all models: sizes, test loss, bits per byte, the paper's average and each task's accuracy."""
    unit, divisor = size_unit(max((model.metric("model_size_bits") or 0 for model in results.models), default=0))
    scores = main_scores(results.scores, results.main_metrics).set_index(["model_id", "task"])
    columns = [
        ("Parameters", ""),
        ("Bits per weight", "linear layers"),
        ("Size", unit),
        ("Test loss", f"nats/token\n{LEVEL_TEXT} interval"),
        ("Bits per byte", "test text"),
        *([("Mean of six", "the paper's tasks, %")] if results.has_paper_average else []),
        *((task, _task_unit(results, task, metric)) for task, metric in results.main_metrics.items()),
    ]
    means = mean_accuracy(results.scores, results.averaged).assign(task="the mean of six")
    means = means.set_index(["model_id", "task"])
    rows = []
    for model in results.models:
        cells = [*_size_cells(model, divisor), *_loss_cells(model, losses)]
        cells += [_accuracy_cell(model, "the mean of six", means)] if results.has_paper_average else []
        cells += [_accuracy_cell(model, task, scores) for task in results.main_metrics]
        rows.append(_row(model, cells))
    return _view(columns, rows)


def gap_view(gaps: list[Gap]) -> View:
    """Return the paired differences with batch, steps and warm-up of both members beside each."""
    columns = [
        ("minus", "baseline"),
        ("Difference", "nats/token"),
        (f"{LEVEL_TEXT} interval", "documents in pairs"),
        ("Batch", "tokens per step"),
        ("Steps", "of both"),
        ("Warm-up", "steps of both"),
    ]
    rows = []
    for gap in gaps:
        cells = [Cell(str(gap.baseline_id)), *_difference_cells(gap)]
        cells += [_both(gap, key) for key in ("tokens_per_step", "steps", "warmup_steps")]
        rows.append(_row(gap.model, cells))
    return _view(columns, rows)


def duel_view(pairs: list[Duel], table: pd.DataFrame, basis: str, bits: dict[str, float]) -> View:
    """Return the pairs of one basis: difference in test loss, and on how many tasks which of both is better."""
    unit, divisor = size_unit(max(bits.values(), default=0))
    columns = [
        ("against", "its excess in bits"), ("Size", unit), ("Test loss", f"first minus second\n{LEVEL_TEXT} interval"),
        ("p", "corrected"), ("Better on", "tasks"), ("Worse on", "tasks"), ("Not clear", "tasks"),
    ]  # fmt: skip
    rows = []
    for pair in pairs:
        own = table[(table["basis"] == basis) & (table["model_id"] == str(pair.model.id))]
        own = own[own["opponent_id"] == str(pair.opponent.id)]
        loss = own[own["measure"] == TEST_LOSS].to_dict("records")
        tasks = own[own["measure"] != TEST_LOSS]
        clear = tasks[tasks["p_corrected"] < CLEAR]
        better, worse = (sorted(clear.loc[clear["difference"] * sign > 0, "measure"]) for sign in (1, -1))
        excess = None if pair.excess is None else f"{100 * pair.excess:.1f}\u00a0% more"
        both = f"{bits[str(pair.model.id)] / divisor:.2f} | {bits[str(pair.opponent.id)] / divisor:.2f}"
        cells = [
            Cell(str(pair.opponent.id), pair.excess, excess),
            Cell(both, bits[str(pair.model.id)]),
            *(_duel_loss_cells(loss[0]) if loss else [missing("no test document scored by both")] * 2),
            *(Cell(str(len(names)), len(names), ", ".join(names) or None) for names in (better, worse)),
            Cell(str(len(tasks) - len(clear)), len(tasks) - len(clear)),
        ]
        rows.append(_row(pair.model, cells))
    return replace(
        _view(columns, rows), title=f"At {basis}" if pairs and pairs[0].excess is None else f"At equal {basis}"
    )


def _duel_loss_cells(record: dict) -> list[Cell]:
    interval = Interval(record["difference"], record["low"], record["high"])
    known = given(record["low"])
    bounds = interval_text(interval, 4, with_sign=True) if known else "no interval: fewer than two documents"
    p_value = (
        Cell(f"{record['p_corrected']:.2g}", record["p_corrected"]) if known else missing("fewer than two documents")
    )
    return [Cell(signed(record["difference"]), record["difference"], bounds), p_value]


def law_view(points: dict[str, pd.DataFrame], fits: dict[str, Fit]) -> View:
    """Return the constants of each family's law beside the paper's, and the largest size held out and predicted."""
    interval = f"{LEVEL:.0%} interval"
    columns = [
        ("Sizes", "fitted"), ("A", interval), ("\u03b1", interval), ("\u03b5", f"nats/token\n{interval}"),
        ("Residual", "nats/token"), ("Largest, predicted", f"from the others\n{interval}"), ("Largest, measured", ""),
        ("The paper's", "A, \u03b1, \u03b5"),
    ]  # fmt: skip
    rows = []
    for kind, each in fits.items():
        sizes, losses = (points[kind][column].to_numpy() for column in ("parameters", "value"))
        enough = len(sizes) > MIN_SIZES
        held_out = predict(sizes[:-1], losses[:-1], sizes[-1]) if enough else None
        paper = PAPER_LAWS.get(kind)
        cells = [
            Cell(counted(len(sizes)), len(sizes)),
            *(_estimate_cell(value) for value in (each.amplitude, each.alpha, each.epsilon)),
            Cell(f"{each.residual:.4f}", each.residual),
            _estimate_cell(held_out) if held_out else missing(f"{MIN_SIZES + 1} sizes are needed to hold one out"),
            Cell(f"{losses[-1]:.3f}", losses[-1]),
            Cell(f"{paper.amplitude:g}, {paper.alpha:g}, {paper.epsilon:g}" if paper else NO_REASON),
        ]
        rows.append(Row(kind_label(kind), kind, "", cells))
    return _view(columns, rows)


def _estimate_cell(estimate: Estimate) -> Cell:
    bounds = "not bounded by these sizes" if estimate.low is None else f"{estimate.low:.3g} to {estimate.high:.3g}"
    return Cell(f"{estimate.value:.4g}", estimate.value, bounds)


def verdicts_view(table: pd.DataFrame) -> View:
    """Return how many of the paper's numbers were compared, and how that went, by task."""
    columns = [("Published", "numbers"), ("Comparable", ""), ("Match", ""), ("Differ", ""), ("Not comparable: why", "")]
    rows = []
    for task, cells in table.groupby("task", sort=False):
        counts = cells["verdict"].value_counts()
        numbers = [len(cells), len(cells) - counts.get(NOT_COMPARABLE, 0), counts.get(MATCH, 0), counts.get(DIFFERS, 0)]
        keys = re.sub(r" \(.*?\)", "", "; ".join(cells["differs_in"].dropna())).split("; ")
        keys = [key.partition(":")[0] for key in keys if key]
        why = ", ".join(f"{key} {count}" for key, count in Counter(keys).most_common(8))
        cells = [*(Cell(counted(number), number) for number in numbers), Cell(why or NO_REASON)]
        rows.append(Row(task, "", "", cells))
    return View(columns, rows, ends_in_words=True)


def conformance_view(table: pd.DataFrame) -> View:
    """Return every number of the paper with ours beside it."""
    columns = [
        ("Task", ""), ("Metric", ""), ("Paper", f"{PLUS_MINUS} standard error"), ("Ours", "nearest model"),
        ("Difference", ""), ("Verdict", ""), ("Rule, or keys that differ", ""),
    ]  # fmt: skip
    rows = []
    for record in table.to_dict("records"):
        error = f" {PLUS_MINUS}\u00a0{record['paper_stderr']:g}" if given(record["paper_stderr"]) else ""
        has_value = record["ours"] is not None and given(record["ours"])
        ours = Cell(f"{record['ours']:.2f}", record["ours"], record["our_model"]) if has_value else Cell(NO_REASON)
        compared = record["verdict"] != NOT_COMPARABLE
        reason = record["rule"] if compared else record["differs_in"]
        cells = [
            Cell(record["task"]),
            Cell(record["metric"]),
            Cell(record["paper"] + error, float(record["paper"])),
            ours,
            Cell(signed(record["difference"], 2), record["difference"]) if compared else Cell(NO_REASON),
            Cell(record["verdict"]),
            Cell(reason, None, record["note"] or None),
        ]
        rows.append(Row(record["paper_model"], "", record["paper_model"], cells))
    return View(columns, rows, title="Every number", is_folded=True, ends_in_words=True)


def sweep_view(chosen: list[Choice]) -> View:
    """Return the chosen peak rate of each family and size, and where it lies in its grid."""
    columns = [("Chosen peak rate", ""), ("Validation loss", "nats/token"), ("Rates tried", ""), ("Optimum", "")]
    rows = []
    for choice in chosen:
        finite = given(choice.valid_loss)
        loss = choice.valid_loss if finite else None
        cells = [
            number_cell(choice.peak_lr if finite else None, rate_label(choice.peak_lr), "every rate diverged"),
            number_cell(loss, f"{choice.valid_loss:.4f}", "every rate diverged"),
            Cell(
                str(choice.num_rates),
                choice.num_rates,
                f"{choice.num_diverged} diverged" if choice.num_diverged else None,
            ),
            Cell(_place(choice)),
        ]
        rows.append(Row(f"{choice.family}/{choice.size}", choice.family, choice.family, cells))
    return _view(columns, rows)


def rate_view(table: pd.DataFrame) -> View:
    """Return every run of a sweep: rate, validation loss, steps and whether it diverged."""
    columns = [
        ("Peak rate", ""),
        ("Validation loss", "nats/token"),
        ("Steps", ""),
        ("Batch", "tokens per step"),
        ("Tokens seen", ""),
    ]
    rows = []
    for record in table.itertuples():
        loss = record.valid_loss if given(record.valid_loss) else None
        loss_cell = number_cell(loss, f"{record.valid_loss:.4f}", "no finite validation loss: the run diverged")
        cells = [
            Cell(rate_label(record.peak_lr), record.peak_lr),
            Cell(loss_cell.text, loss_cell.sort, "diverged" if record.diverged else None, loss_cell.missing),
            *(Cell(counted(value), value) for value in (record.steps, record.tokens_per_step)),
            number_cell(
                record.tokens_seen if given(record.tokens_seen) else None, counted(record.tokens_seen), "not recorded"
            ),
        ]
        name = f"{record.family}/{record.size}"
        rows.append(Row(name, record.family, name, cells))
    return _view(columns, rows)


def _size_cells(model: Model, divisor: float) -> list[Cell]:
    reason = "; ".join(model.missing) or "not in the model's manifest"
    parameters, width, size = (model.metric(key) for key in ("num_parameters", "bits_per_weight", "model_size_bits"))
    return [
        number_cell(parameters, "" if parameters is None else scaled(parameters), reason),
        number_cell(width, "" if width is None else f"{width:.4g}", reason),
        number_cell(size, "" if size is None else f"{size / divisor:.2f}", reason),
    ]


def _loss_cells(model: Model, losses: DocumentLosses) -> list[Cell]:
    reason = missing_loss(model, losses)
    if reason:
        return [missing(reason), missing(reason)]
    loss, bits_per_byte = losses.loss(str(model.id)), losses.bits_per_byte(str(model.id))
    return [
        Cell(f"{loss.value:.3f}", loss.value, interval_text(loss)),
        missing("the tokenizer does not give every test document back")
        if bits_per_byte is None
        else Cell(f"{bits_per_byte:.3f}", bits_per_byte),
    ]


def _accuracy_cell(model: Model, task: str, scores: pd.DataFrame) -> Cell:
    key = (str(model.id), task)
    if key not in scores.index:
        return missing("; ".join(model.missing) or f"{task} is not in its evaluation")
    value, stderr = scores.loc[key, "value"], scores.loc[key, "stderr"]
    if not given(value):
        return missing(f"{task} has no value in its evaluation")
    detail = f"{PLUS_MINUS}\u00a0{percent(stderr)}" if given(stderr) else "no standard error"
    return Cell(percent(value), float(value), detail)


def _task_unit(results: Results, task: str, metric: str) -> str:
    main = main_scores(results.scores, results.main_metrics)
    chances = main.loc[main["task"] == task, "chance"].dropna()
    chance = f"chance {percent(chances.iloc[0], 0)}\u00a0%" if len(chances) else "chance not given"
    return f"{metric}, %\n{chance}"


def _difference_cells(gap: Gap) -> list[Cell]:
    if gap.missing:
        return [missing(gap.missing), missing(gap.missing)]
    interval = gap.interval
    verdict = "excludes zero" if interval.excludes_zero else "includes zero"
    bounds = Cell(
        interval_text(interval, 4, with_sign=True), interval.low, verdict if interval.low is not None else None
    )
    return [Cell(signed(interval.value), interval.value), bounds]


def _both(gap: Gap, key: str) -> Cell:
    first, second = gap.training[key], gap.baseline_training[key]
    if first is None or second is None:
        return missing(gap.missing or "not recorded")
    if gap.model.id.bits:
        return Cell(counted(second), second)
    return Cell(f"{counted(first)} | {counted(second)}", first)


def _row(model: Model, cells: list[Cell]) -> Row:
    anchor = model.artifact.sha256[:SHORT_HASH] if model.artifact else None
    return Row(str(model.id), model.id.kind, model.id.size, cells, anchor)


def _view(columns: list[tuple[str, str]], rows: list[Row]) -> View:
    names: dict[str, dict[str, None]] = {}  # in order, each once
    for row in rows:
        for cell in row.cells:
            if cell.missing:
                names.setdefault(cell.missing, {})[row.name] = None
    return View(columns, rows, [f"{', '.join(rows)}: {reason}." for reason, rows in names.items()])


def _place(choice: Choice) -> str:
    if choice.edge == "only":
        return "one rate only: no optimum can be seen"
    if choice.edge:
        return f"at the {choice.edge} rate of the grid: the optimum may lie outside"
    return "inside the grid"
