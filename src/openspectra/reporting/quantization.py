"""What quantizing does: every QuantLM beside plain rounding at the same width, and the loss it adds over training."""

from dataclasses import replace

import pandas as pd

from openspectra.identity import kind_label
from openspectra.model_ids import ModelId
from openspectra.reporting.drawing import (
    SMALL_INCHES,
    Drawing,
    colour_of,
    legend_below,
    marker_of,
    panel,
    to_drawing,
    tokens_axis,
)
from openspectra.reporting.formats import PLUS_MINUS, Cell, signed
from openspectra.reporting.load import Results
from openspectra.reporting.section import FigureGroup, Row, Section, View

COLUMNS = ("kl", "rounding_kl", "added_loss", "rounding_added_loss", "mean_layer_loss", "num_damping_retries")
TABLE = ("model_id", "bits", "group_size", "tokens_seen", *COLUMNS)
LEGEND_COLUMNS = 2


def quantization_section(results: Results) -> Section:
    """Return the QuantLMs beside plain rounding; empty where there are none."""
    table = quantization_table(results)
    section = Section("quantization", "Quantization", "Quantization")
    if table.empty:
        return section
    figures = FigureGroup(
        "Loss added by quantization over training",
        "Loss of a QuantLM minus that of the FloatLM, or of its checkpoint, that it was made from, on the same tokens of the "
        "validation split. Dotted: rounding to nearest at the same width.",
        trajectory_panels(table, results.sizes),
    )
    return replace(
        section,
        lead="KL divergence from the FloatLM and the loss that is added, in nats per token, on the same tokens of the "
        "validation split: by GPTQ, and by rounding every weight to the nearest value of the same groups. Of several "
        f"calibration sets, their mean {PLUS_MINUS} the standard deviation between them. Layer error: the mean over matrices "
        "of the squared error per token that GPTQ leaves. Every set stands in quantization.csv.",
        parts=[*([figures] if figures.drawings else []), quantization_view(table)],
        tables={"quantization.csv": table},
    )


def quantization_table(results: Results) -> pd.DataFrame:
    """Return one row per QuantLM that knows its distance from the FloatLM, those of checkpoints too."""
    rows = [
        {**artifact.manifest.metrics, **artifact.manifest.config}
        for artifact in results.artifacts
        if artifact.manifest.stage == "quantize" and "kl" in artifact.manifest.metrics
    ]
    table = pd.DataFrame(rows, columns=list(TABLE))
    order = {size: number for number, size in enumerate(results.sizes)}
    keys = [
        (order.get(each.size, len(order)), each.variant or "", each.step or 0, -each.bits, each.calibration or 0)
        for each in map(ModelId.parse, table["model_id"])
    ]
    return table.iloc[sorted(range(len(table)), key=keys.__getitem__)].reset_index(drop=True)


def quantization_view(table: pd.DataFrame) -> View:
    """Return the QuantLMs of finished models; those of several calibration sets as their mean."""
    columns = [
        ("KL", "GPTQ"),
        ("KL", "rounding"),
        ("Rounding / GPTQ", "of KL"),
        ("Added loss", "GPTQ, nats/token"),
        ("Added loss", "rounding, nats/token"),
        ("Layer error", ""),
        ("Damping", "retries"),
    ]
    ids = table["model_id"].map(ModelId.parse)
    final = table[ids.map(lambda each: each.step is None)]
    names = final["model_id"].map(lambda name: str(replace(ModelId.parse(name), calibration=None)))
    rows = []
    for name, sets in final.groupby(names, sort=False):
        model, mean = ModelId.parse(name), sets[list(COLUMNS)].astype(float).mean()
        ratio = mean["rounding_kl"] / mean["kl"]
        cells = [
            _cell(sets["kl"], f"{mean['kl']:.2g}"),
            _cell(sets["rounding_kl"], f"{mean['rounding_kl']:.2g}"),
            Cell(f"{ratio:.1f}", ratio),
            _cell(sets["added_loss"], signed(mean["added_loss"])),
            _cell(sets["rounding_added_loss"], signed(mean["rounding_added_loss"])),
            Cell(f"{mean['mean_layer_loss']:.2g}", mean["mean_layer_loss"]),
            Cell(f"{sets['num_damping_retries'].sum():.0f}", float(sets["num_damping_retries"].sum())),
        ]
        rows.append(Row(name, model.kind, model.size, cells))
    return View(columns, rows)


def trajectory_panels(table: pd.DataFrame, sizes: list[str]) -> list[Drawing]:
    """Return the added loss over tokens seen, one panel per size with a line per width; sizes without checkpoints have none."""
    ids = table["model_id"].map(ModelId.parse)
    table = table.assign(
        size=[each.size for each in ids],
        kind=[each.kind for each in ids],
        is_plain=[each.variant is None and not each.calibration for each in ids],
        step=[each.step for each in ids],
    )
    table = table[table["is_plain"]].dropna(subset=["tokens_seen"])
    drawings = []
    for size in sizes:
        rows = table[table["size"] == size]
        kinds = rows.loc[rows["step"].notna(), "kind"].unique()
        if len(kinds):
            drawings.append(_panel(size, rows[rows["kind"].isin(kinds)]))
    return drawings


def _panel(size: str, rows: pd.DataFrame) -> Drawing:
    with panel(SMALL_INCHES, legend_rows=-(-rows["kind"].nunique() // LEGEND_COLUMNS)) as (figure, axes):
        for kind, points in rows.groupby("kind", sort=False):
            points = points.sort_values("tokens_seen")
            look = {"color": colour_of(kind), "lw": 1.4}
            axes.plot(
                points["tokens_seen"],
                points["added_loss"],
                marker=marker_of(kind),
                ms=4,
                label=kind_label(kind),
                **look,
            )
            axes.plot(points["tokens_seen"], points["rounding_added_loss"], ls=":", **look)
        axes.set(title=size, ylabel="Added loss (nats per token)")
        tokens_axis(axes)
        legend_below(figure, axes, LEGEND_COLUMNS)
        return to_drawing(
            figure, f"quantization_{size}", f"Loss added by quantizing size {size} over the tokens that it has seen"
        )


def _cell(values: pd.Series, text: str) -> Cell:
    values = values.astype(float)
    spread = f"{PLUS_MINUS} {values.std():.2g}" if len(values) > 1 else None
    return Cell(text, float(values.mean()), spread)
