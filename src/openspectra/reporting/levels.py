"""What activations with learned scales do: the scale over training, the share of each level, and their entropy."""

import math
from typing import get_args

import pandas as pd

from openspectra.model.binary_ternary import FLOOR
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model.families.family import Place
from openspectra.model_ids import ModelId
from openspectra.reporting import activation_figures
from openspectra.reporting.formats import Cell, percent
from openspectra.reporting.load import Model, Results, read_curve
from openspectra.reporting.section import FigureGroup, Row, View
from openspectra.reporting.views import NO_REASON

NUMBERS = (-1, 0, 1, 2)
"""Levels that a place may have, in units of its scale."""
SHARES = tuple(f"share_of_{number}" for number in NUMBERS)
MEANS = ("scale", *SHARES, "entropy_bits")
AT_FLOOR = "blocks_at_floor"
LEVELS_TABLE = ("model_id", "step", "tokens_seen", "place", *MEANS, AT_FLOOR)
RARE = 0.01
"""Share below which a level is said to be hardly used."""


def levels_table(results: Results) -> pd.DataFrame:
    """Return the means over the blocks by model, step and place (`qkv`, `query`, ..., `down`), places in the order of a block.

    `blocks_at_floor`: in how many of them the scale that is learned lies at the floor or below, which then stands for it.
    """
    frames = []
    for model in results.models:
        rows = read_curve(model, "levels.csv") if _has_levels(model) else None
        if rows is not None:
            frames.append(means_over_blocks(rows).assign(model_id=str(model.id))[list(LEVELS_TABLE)])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(LEVELS_TABLE))


def means_over_blocks(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the means of one model's rows, by step and place."""
    rows = rows.assign(place=rows["place"].str.rpartition(".")[2], **{AT_FLOOR: (rows["scale"] <= FLOOR).astype(int)})
    groups = rows.groupby(["step", "tokens_seen", "place"], sort=False)
    return groups.agg(dict.fromkeys(MEANS, "mean") | {AT_FLOOR: "sum"}).reset_index()


def levels_figure(results: Results, table: pd.DataFrame) -> FigureGroup:
    """Return the scales over training, one panel per model of the largest size."""
    ids = [ModelId.parse(name) for name in dict.fromkeys(table["model_id"])]
    size = next(each for each in reversed(results.sizes) if any(model_id.size == each for model_id in ids))
    return FigureGroup(
        "Learned scales of the activations over training",
        "Scale over what it was at the first validation, mean over the blocks. Dark: inputs of linear layers; coloured: what "
        "attention works with.",
        [
            activation_figures.scale_panel(model_id, table[table["model_id"] == str(model_id)])
            for model_id in ids
            if model_id.size == size
        ],
    )


def levels_view(table: pd.DataFrame) -> View:
    """Return scale, shares and entropy of every place at the end of training."""
    columns = [
        ("Place", ""),
        ("Scale", "first validation"),
        ("Scale", "end"),
        *((f"Level {number}", "% of values") for number in NUMBERS),
        ("Entropy", "bits\nof at most"),
    ]
    rows = []
    for name, own in table.groupby("model_id", sort=False):
        model_id = ModelId.parse(str(name))
        first, last = own[own["step"] == own["step"].min()], own[own["step"] == own["step"].max()]
        starts = dict(zip(first["place"], first["scale"], strict=True))
        for record in last.to_dict("records"):
            held = levels_of(model_id.family, record["place"])
            cells = [
                Cell(record["place"]),
                Cell(f"{starts[record['place']]:.4g}", starts[record["place"]]),
                Cell(f"{record['scale']:.4g}", record["scale"]),
                *(
                    Cell(percent(share), share) if number in held else Cell(NO_REASON)
                    for number, share in zip(NUMBERS, (record[name] for name in SHARES), strict=True)
                ),
                Cell(f"{record['entropy_bits']:.3f}", record["entropy_bits"], f"{math.log2(len(held)):.3f}"),
            ]
            rows.append(Row(str(name), model_id.kind, str(name), cells))
    return View(columns, rows, title="Levels at the end of training, mean over the blocks", is_folded=True)


def sentences(table: pd.DataFrame) -> list[str]:
    """Return which scales have come down to their floor, and which levels are hardly used, at the end of training."""
    found, floored = [], []
    for name, own in table.groupby("model_id", sort=False):
        model_id = ModelId.parse(str(name))
        for record in own[own["step"] == own["step"].max()].to_dict("records"):
            if record[AT_FLOOR]:
                floored.append(f"{name} {record['place']} ({record[AT_FLOOR]} of its blocks)")
            rare = [
                f"{number} ({percent(record[f'share_of_{number}'], 2)} %)"
                for number in levels_of(model_id.family, record["place"])
                if record[f"share_of_{number}"] < RARE
            ]
            found += [f"{name} {record['place']}: {', '.join(rare)}"] if rare else []
    if not len(table):
        return []
    told, below = "; ".join(found) or "none", "; ".join(floored) or "none"
    return [
        f"Learned scales at their floor of {FLOOR:g} at the end of training, so that next to nothing passes: {below}.",
        f"Levels that less than {100 * RARE:g} % of the values have at the end of training: {told}.",
    ]


def levels_of(family: str, place: str) -> tuple[int, ...]:
    """Return the levels of one place in a block of a family."""
    return load_family(family).activation(place if place in get_args(Place) else "input", 0.0).levels


def _has_levels(model: Model) -> bool:
    return model.id.family in FAMILY_NAMES and load_family(model.id.family).num_learned_scales > 0
