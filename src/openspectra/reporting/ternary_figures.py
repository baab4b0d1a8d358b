"""Figures of discrete weights: means over training, and the matrices of the largest models at its start and end."""

from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openspectra.identity import kind_label, kind_rank
from openspectra.reporting.drawing import (
    FAINT,
    INK,
    SMALL_INCHES,
    Drawing,
    colour_of,
    legend_below,
    marker_of,
    panel,
    to_drawing,
    tokens_axis,
)
from openspectra.reporting.load import Model, Results
from openspectra.reporting.ternary import Matrices, latent_shares

LEGEND_COLUMNS = 3
LINE_STYLES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 3)), (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (8, 3, 2, 3)))
"""Nine sizes can be told apart."""
FAINTEST = 0.4
"""Opacity of the smallest model's lines; the largest model's are opaque."""
ROW_INCHES = 0.34
ROW_SHARE = 0.8
"""Part of its row that a histogram or a profile over depth may fill."""
ROUNDING_BORDERS = (-0.5, 0.5)
"""Where W / scale is rounded to another state in a family that has a zero (paper, TriLM equations)."""
PANELS = (
    ("sparsity", "Sparsity", "Zero weights (%)", 100),
    ("flip_rate", "Flip rate", "Weights with a new state (%)", 100),
    ("scale", "Scale", "Mean scale", 1),
)
"""Column, title, label of the y axis and factor of each panel over training."""


def mean_curves(results: Results, table: pd.DataFrame) -> list[Drawing]:
    """Return one panel per measure with a line per model: colour by family, line style and opacity by size."""
    measured = set(table["model_id"])
    models = [model for model in results.study_models if str(model.id) in measured]
    return [_mean_panel(models, table, *each) for each in PANELS] if models else []


def sparsity_profile(found: list[Matrices]) -> list[Drawing]:
    """Return the share of zeros of every matrix at the end: a row per kind of layer, from the first layer down."""
    found = [matrices for matrices in found if matrices.has_zero_state]
    if not found:
        return []
    kinds, size = found[0].kinds, found[0].model.id.size
    with _rows_panel(kinds, legend_rows=-(-len(found) // LEGEND_COLUMNS)) as (figure, axes):
        for matrices in found:
            look = {"color": colour_of(matrices.model.id.kind), "marker": marker_of(matrices.model.id.kind)}
            label = kind_label(matrices.model.id.kind)
            for row, kind in enumerate(reversed(kinds)):
                layers = matrices.end[matrices.end["kind"] == kind].sort_values("depth")
                depth = layers["depth"] / max(1, layers["depth"].max())
                heights = row + ROW_SHARE * (0.5 - depth)
                axes.plot(100 * layers["sparsity"], heights, lw=0.6, ms=2.5, label=None if row else label, **look)
        axes.set(title=f"Sparsity by matrix, {size}", xlabel="Zero weights (%)")
        axes.locator_params(axis="x", nbins=6)
        legend_below(figure, axes)
        return [to_drawing(figure, "sparsity_by_matrix", f"Share of zeros of every matrix at size {size}")]


def latent_histograms(found: list[Matrices]) -> list[Drawing]:
    """Return one panel per family: the distribution of W / scale by kind of layer, at the start and at the end."""
    return [_histogram_panel(matrices) for matrices in found]


def _mean_panel(
    models: list[Model], table: pd.DataFrame, column: str, title: str, label: str, factor: float
) -> Drawing:
    looks = _looks([model.id.size for model in models])
    kinds = sorted({model.id.kind for model in models}, key=kind_rank)
    with panel(SMALL_INCHES, legend_rows=-(-(len(kinds) + len(looks)) // LEGEND_COLUMNS)) as (figure, axes):
        for model in models:
            rows = table[table["model_id"] == str(model.id)].dropna(subset=[column])
            look = {"color": colour_of(model.id.kind), **looks[model.id.size]}
            axes.plot(rows["tokens_seen"], factor * rows[column], lw=1.4, **look)
        entries = [{"label": kind_label(kind), "color": colour_of(kind), "lw": 3} for kind in kinds]
        entries += [{"label": size, "color": INK, "lw": 1.4, **look} for size, look in looks.items()]
        for first in range(LEGEND_COLUMNS):  # a legend is filled column by column
            for entry in entries[first::LEGEND_COLUMNS]:
                axes.plot([], [], **entry)
        axes.set(title=title, ylabel=label)
        tokens_axis(axes)
        legend_below(figure, axes, LEGEND_COLUMNS)
        return to_drawing(figure, f"ternary_{column}", f"{title} of the discrete weights over training")


def _looks(sizes: list[str]) -> dict[str, dict]:
    """Return line style and opacity by size, given smallest first; the largest is solid and opaque."""
    distinct = list(dict.fromkeys(sizes))
    larger = range(len(distinct) - 1, -1, -1)
    return {
        size: {"ls": LINE_STYLES[count % len(LINE_STYLES)], "alpha": 1 - (1 - FAINTEST) * count / max(1, larger[0])}
        for size, count in zip(distinct, larger, strict=True)
    }


def _histogram_panel(matrices: Matrices) -> Drawing:
    kinds, model = matrices.kinds, matrices.model
    edges, start = latent_shares(matrices.start)
    _, end = latent_shares(matrices.end)
    height = ROW_SHARE / max(share for shares in (start, end) for kind in kinds for share in shares[kind])
    with _rows_panel(kinds) as (figure, axes):
        if matrices.has_zero_state:
            for border in ROUNDING_BORDERS:
                axes.axvline(border, color=INK, lw=0.8, ls=(0, (4, 3)))
        for row, kind in enumerate(reversed(kinds)):
            base = row - ROW_SHARE / 2
            for shares, look in (
                (end, {"color": colour_of(model.id.kind), "fill": True, "alpha": 0.45, "label": "End"}),
                (start, {"color": INK, "lw": 0.9, "label": "Start"}),
            ):
                heights = [base + height * share for share in shares[kind]]
                axes.stairs(heights, edges, baseline=base, **(look | ({"label": None} if row else {})))
        axes.set_xlim(edges[0], edges[-1])
        axes.set(title=f"{kind_label(model.id.kind)} {model.id.size}", xlabel="Latent weight / scale")
        legend_below(figure, axes)
        alt = f"Distribution of latent weights over scale by kind of layer, {kind_label(model.id.kind)} {model.id.size}"
        return to_drawing(figure, f"latents_{model.id.kind}", alt)


@contextmanager
def _rows_panel(kinds: list[str], legend_rows: int = 1) -> Iterator[tuple[Figure, Axes]]:
    """Yield a panel with one row per kind of layer, the first on top, at heights that count up from 0."""
    with panel((SMALL_INCHES[0], ROW_INCHES * len(kinds)), legend_rows) as (figure, axes):
        axes.set_yticks(range(len(kinds)), [kind.removesuffix("_proj") for kind in reversed(kinds)])
        axes.set_ylim(-0.6, len(kinds) - 0.4)
        axes.hlines(
            [row + 0.5 for row in range(len(kinds) - 1)], 0, 1, FAINT, lw=0.5, transform=axes.get_yaxis_transform()
        )
        axes.grid(visible=False, axis="y")
        yield figure, axes
