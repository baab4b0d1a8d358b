"""The tables of a finished report as Markdown, for a README: from its CSV files alone, so that none is copied by hand."""

from pathlib import Path

import pandas as pd

from openspectra.errors import OpenSpectraError
from openspectra.identity import kind_label, kind_rank
from openspectra.model_ids import ModelId
from openspectra.reporting.formats import PLUS_MINUS, counted, given, percent, signed, size_unit
from openspectra.reporting.load import read_table
from openspectra.reporting.statistics import LEVEL_TEXT
from openspectra.reporting.tables import DIFFERENCE

BEGIN, END = "<!-- tables: begin (`openspectra tables` writes what follows) -->", "<!-- tables: end -->"
MISSING = "missing"


def tables(folder: Path) -> str:
    """Return all models with their scores, and the paired differences by size, from the CSV files of a report."""
    text = ("model_id", "family", "size", "task", "metric", "filter", "is_main", "baseline_id", "missing")
    models = read_table(folder / "models.csv", ("model_id", "test_loss", "bits_per_byte"), text)
    scores = read_table(folder / "scores.csv", ("model_id", "task", "value", "is_main"), text)
    gaps = read_table(folder / "gaps.csv", ("model_id", DIFFERENCE), text)
    main = scores[scores["is_main"] == "True"]
    parts = [_conditions(main, gaps), _models(models, main), _pairing(gaps), _gaps(gaps)]
    return "\n\n".join(part for part in parts if part)


def with_tables(text: str, block: str, name: str) -> str:
    """Return `text` with `block` between its markers. Raises `OpenSpectraError` where file `name` does not have both."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OpenSpectraError(
            f"{name}: no place for the tables; put the lines `{BEGIN}` and `{END}` where they belong."
        )
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def _conditions(main: pd.DataFrame, gaps: pd.DataFrame) -> str:
    """Return on how much the numbers rest: test documents, items by task, chance."""
    facts = [f"Test split: {counted(gaps['num_documents'].max())} documents."] if len(gaps) else []
    for task, rows in main.groupby("task"):
        chance = rows["chance"].iloc[0]
        level = f", chance {percent(chance, 0)}\u00a0%" if given(chance) else ""
        facts.append(f"{task}: {counted(rows['num_samples'].max())} items{level}.")
    return " ".join(facts)


def _models(models: pd.DataFrame, main: pd.DataFrame) -> str:
    unit, divisor = size_unit(models["model_size_bits"].max())
    found = main.drop_duplicates(["model_id", "task"]).set_index(["model_id", "task"])
    tasks = sorted(set(main["task"]))
    columns = ["model", "parameters", unit, f"test loss (nats/token), {LEVEL_TEXT} interval", "bits/byte"]
    rows = []
    for model in models.to_dict("records"):
        name = model["model_id"]
        rows.append(
            [
                name,
                _number(model["num_parameters"], counted),
                _number(model["model_size_bits"], lambda bits: f"{bits / divisor:.2f}"),
                _interval(model, "test_loss", lambda loss: f"{loss:.3f}"),
                _number(model["bits_per_byte"], lambda bits: f"{bits:.3f}"),
                *(_accuracy(found.loc[(name, task)]) if (name, task) in found.index else MISSING for task in tasks),
            ]
        )
    return _table([*columns, *(f"{task}, %" for task in tasks)], rows)


def _pairing(gaps: pd.DataFrame) -> str:
    """Return what the differences are, and the training of both members where it is one for all."""
    sentence = (
        f"Paired differences in test loss to the FloatLM of the same size, nats per token with {LEVEL_TEXT} interval"
    )
    names = ("steps", "tokens_per_step", "warmup_steps")
    made = gaps.dropna(subset=[DIFFERENCE])
    found = {tuple(row) for prefix in ("", "baseline_") for row in made[[prefix + name for name in names]].to_numpy()}
    if len(found) != 1 or not all(map(given, next(iter(found)))):
        return sentence + "."
    steps, tokens, warmup = map(counted, found.pop())
    return f"{sentence}; both members trained {steps} steps of {tokens} tokens, {warmup} of them warm-up."


def _gaps(gaps: pd.DataFrame) -> str:
    sizes = list(dict.fromkeys(gaps["size"]))
    cells = {}
    for gap in gaps.to_dict("records"):
        model = ModelId.parse(gap["model_id"])
        if not model.variant and model.step is None and model.calibration is None:
            cells[model.kind, model.size] = _interval(gap, DIFFERENCE, signed)
    kinds = sorted({kind for kind, _ in cells}, key=kind_rank)
    return _table(
        ["", *sizes], [[kind_label(kind), *(cells.get((kind, size), MISSING) for size in sizes)] for kind in kinds]
    )


def _accuracy(score: pd.Series) -> str:
    error = f" {PLUS_MINUS} {percent(score['stderr'], 0)}" if given(score["stderr"]) else ""
    return _number(score["value"], lambda value: percent(value, 0) + error)


def _interval(row: dict, name: str, write) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    bounds = f" ({write(low)} to {write(high)})" if given(low) and given(high) else ""
    return _number(row[name], lambda value: write(value) + bounds)


def _number(value: float, write) -> str:
    return write(value) if given(value) else MISSING


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table: names to the left, numbers to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
