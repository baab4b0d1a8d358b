"""What the seed of training does to the numbers: the same model trained several times, beside the interval over documents.

An interval over documents holds the choice of test documents for the weights at hand; the spread here holds the draw of
initial weights and the order of text. Both members of a difference have the same seed.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from openspectra.identity import kind_label
from openspectra.model_ids import ModelId
from openspectra.reporting.formats import Cell, counted, given, interval_text, missing, signed
from openspectra.reporting.load import Results
from openspectra.reporting.section import Row, Section, View
from openspectra.reporting.statistics import LEVEL, LEVEL_TEXT, DocumentLosses, Interval, main_scores
from openspectra.reporting.tables import DECIMALS

TEST_LOSS, DIFFERENCE = "test loss", "test loss minus FloatLM"
SEED_TABLE = (
    *("model_id", "measure", "num_seeds", "mean", "spread", "low_over_seeds", "high_over_seeds", "lowest", "highest"),
    *("first_seed", "low_over_documents", "high_over_documents"),
)


@dataclass(frozen=True)
class Spread:
    """A number by training seed, and of the first seed its interval over documents, where it has one."""

    model_id: str
    measure: str
    values: np.ndarray
    of_documents: Interval | None = None

    @property
    def over_seeds(self) -> Interval:
        """The mean with its interval, by the t distribution."""
        mean, number = float(self.values.mean()), len(self.values)
        half = stats.t.ppf((1 + LEVEL) / 2, number - 1) * self.values.std(ddof=1) / np.sqrt(number)
        return Interval(mean, mean - half, mean + half)


def seeds_section(results: Results, losses: DocumentLosses) -> Section:
    """Return the spread over seeds; empty where every model was trained once."""
    spreads = spreads_of(results, losses)
    by_measure: dict[str, list[Spread]] = {TEST_LOSS: [], DIFFERENCE: []}
    for spread in spreads:
        by_measure.setdefault(spread.measure, []).append(spread)
    parts = [_view(results, measure, found) for measure, found in by_measure.items() if found]
    lead = (
        "The same models trained with several seeds: other initial weights, and the same text in another order. Spread: "
        f"standard deviation between the runs. The {LEVEL_TEXT} interval over seeds is that of the mean of the runs (t "
        "distribution); beside it the interval over test documents of the first seed alone. A difference between models "
        "counts where both exclude zero."
    )
    notes = [_sentence(each) for each in by_measure[DIFFERENCE]]
    tables = {"seeds.csv": seed_table(spreads)} if spreads else {}
    return Section("seeds", "Spread over seeds", "Seeds", lead if spreads else "", notes, parts, tables)


def spreads_of(results: Results, losses: DocumentLosses) -> list[Spread]:
    """Return the spread of test loss, of its difference to the FloatLM of the same seed, and of each task's accuracy."""
    main = main_scores(results.scores, results.main_metrics).set_index(["model_id", "task"])
    accuracies = main["value"].to_dict()
    halves = (stats.norm.ppf((1 + LEVEL) / 2) * main["stderr"]).to_dict()
    found = []
    for name, runs in results.seeds.items():
        if runs[0].id.calibration is not None:  # the mean of the sets stands for them
            continue
        ids = [str(model.id) for model in runs]
        twins = [str(model.id.float_parent) for model in runs]
        found.append(_spread(name, TEST_LOSS, [losses.loss(each) for each in ids]))
        if ids != twins:
            gaps = [losses.gap(each, twin) for each, twin in zip(ids, twins, strict=True)]
            found.append(_spread(name, DIFFERENCE, gaps))
        for task in results.main_metrics:
            scored = [each for each in ids if given(accuracies.get((each, task)))]
            found.append(_spread(name, task, [_accuracy(accuracies, halves, (each, task)) for each in scored]))
    return [spread for spread in found if spread]


def seed_table(spreads: list[Spread]) -> pd.DataFrame:
    """Return one row per model and measure: losses in nats per token, accuracies as shares."""
    rows = []
    for each in spreads:
        seeds, documents = each.over_seeds, each.of_documents
        low, high = (documents.low, documents.high) if documents else (None, None)
        numbers = [seeds.value, each.values.std(ddof=1), seeds.low, seeds.high, each.values.min(), each.values.max()]
        numbers += [each.values[0], low, high]
        rounded = [None if number is None else round(float(number), DECIMALS) for number in numbers]
        rows.append([each.model_id, each.measure, len(each.values), *rounded])
    return pd.DataFrame(rows, columns=list(SEED_TABLE))


def _spread(name: str, measure: str, intervals: list[Interval | None]) -> Spread | None:
    known = [interval for interval in intervals if interval]
    if len(known) < 2:
        return None
    first = intervals[0] if intervals[0] and intervals[0].low is not None else None
    return Spread(name, measure, np.array([interval.value for interval in known]), first)


def _accuracy(values: dict, halves: dict, key: tuple[str, str]) -> Interval:
    """Return an accuracy with its interval over items, by its standard error."""
    value, half = values[key], halves[key]
    return Interval(value, value - half, value + half) if given(half) else Interval(value, None, None)


def _view(results: Results, measure: str, spreads: list[Spread]) -> View:
    is_task = measure in results.main_metrics
    factor, decimals = (100, 1) if is_task else (1, 4)
    with_sign = measure == DIFFERENCE
    unit = "%" if is_task else "nats/token"
    columns = [
        ("Seeds", ""),
        ("Mean", unit),
        ("Spread", unit),
        (f"{LEVEL_TEXT} interval", "over seeds"),
        (f"{LEVEL_TEXT} interval", "over items, first seed" if is_task else "over documents, first seed"),
    ]
    rows = []
    for each in spreads:
        model = results.by_id[each.model_id]
        seeds, deviation = each.over_seeds, float(each.values.std(ddof=1))
        mean = signed(seeds.value) if with_sign else f"{factor * seeds.value:.{decimals}f}"
        scaled = Interval(factor * seeds.value, factor * seeds.low, factor * seeds.high)
        cells = [
            Cell(counted(len(each.values)), len(each.values)),
            Cell(mean, seeds.value),
            Cell(f"{factor * deviation:.{decimals}f}", deviation),
            Cell(interval_text(scaled, decimals, with_sign), seeds.low),
            _documents_cell(each.of_documents, factor, decimals, with_sign),
        ]
        rows.append(Row(each.model_id, model.id.kind, model.id.size, cells))
    reasons = list(dict.fromkeys(cell.missing for row in rows for cell in row.cells if cell.missing))
    return View(columns, rows, reasons, title=measure[0].upper() + measure[1:], is_folded=is_task)


def _documents_cell(interval: Interval | None, factor: int, decimals: int, with_sign: bool) -> Cell:
    if interval is None:
        return missing("fewer than two documents or items, or the first seed is not there")
    scaled = Interval(factor * interval.value, factor * interval.low, factor * interval.high)
    return Cell(interval_text(scaled, decimals, with_sign), interval.low)


def _sentence(spread: Spread) -> str:
    """Return in how many runs a model lies below its FloatLM twin."""
    below, number = int((spread.values < 0).sum()), len(spread.values)
    model = ModelId.parse(spread.model_id)
    seeds = spread.over_seeds
    verdict = "excludes zero" if seeds.excludes_zero else "includes zero"
    return (
        f"{kind_label(model.kind)} {model.size}: test loss below that of its FloatLM in {below} of {number} runs, mean {signed(seeds.value)} "
        f"nats/token ({LEVEL_TEXT} over seeds: {interval_text(seeds, 4, with_sign=True)}; {verdict})."
    )
