"""The page of a study: one self-contained HTML file, its figures as SVG, its tables as CSV.

Equal artifacts give equal bytes: no time, no absolute path, no random draw without a seed goes in.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from openspectra.artifacts import Artifact
from openspectra.model_ids import ModelId
from openspectra.reporting import provenance, sections, sweep, tables, ternary, twins, views
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.data_card import DataCard, data_card
from openspectra.reporting.drawing import Drawing, looks
from openspectra.reporting.findings import findings
from openspectra.reporting.load import Results, load_results
from openspectra.reporting.sections import FigureGroup
from openspectra.reporting.statistics import DocumentLosses, document_losses

TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class Page:
    """What the template shows. What stays empty leaves its section out."""

    config: ReportConfig
    results: Results
    losses: DocumentLosses
    findings: list[str] = field(default_factory=list)
    models: views.View | None = None
    gaps: views.View | None = None
    scaling: list[FigureGroup] = field(default_factory=list)
    gap_figures: FigureGroup | None = None
    training: list[FigureGroup] = field(default_factory=list)
    data: DataCard | None = None
    rates: FigureGroup | None = None
    choices: views.View | None = None
    runs: views.View | None = None
    rate_notes: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)

    @property
    def drawings(self) -> list[Drawing]:
        groups = [*self.scaling, self.gap_figures, *self.training, self.rates, self.data and self.data.lengths]
        return [drawing for group in groups if group for drawing in group.drawings]


def write_report(
    config: ReportConfig, artifacts: list[Artifact], folder: Path, rates_table: Path | None = None
) -> dict[str, Any]:
    """Write `index.html`, figures and tables into `folder` and return summary metrics.

    `rates_table` is the result of a sweep, a CSV with columns family, size, peak_lr and valid_loss: its curves are
    shown beside the study that takes its rates from it. A sweep itself gets `rates.csv` in place of scores.
    """
    results = load_results(artifacts)
    losses = document_losses(results.documents, config.num_resamples, config.seed)
    page = Page(config, results, losses)
    metrics = _fill_sweep(page, folder) if results.is_sweep else _fill_study(page, folder)
    if rates_table is not None and not results.is_sweep:
        page.rate_notes = sweep.remarks(rates_table)
        _fill_rates(page, sweep.read_rates(rates_table))
    _fill_training(page, folder)
    _fill_data(page, folder)
    for drawing in page.drawings:
        svg = f'<?xml version="1.0" encoding="utf-8"?>\n{drawing.svg}'
        (folder / f"{drawing.name}.svg").write_text(svg, encoding="utf-8")
    (folder / "index.html").write_text(_render(page), encoding="utf-8")
    return metrics


def _fill_study(page: Page, folder: Path) -> dict[str, Any]:
    """Fill the sections of an ordinary study and write its tables."""
    results, losses = page.results, page.losses
    gaps = tables.paired_gaps(results, losses)
    model_table = tables.model_table(results, losses)
    tables.write_csv(model_table, folder / "models.csv")
    tables.write_csv(tables.score_table(results), folder / "scores.csv")
    tables.write_csv(tables.gap_table(gaps, losses), folder / "gaps.csv")
    page.downloads = ["models.csv", "scores.csv", "gaps.csv"]
    page.findings = findings(results, losses, gaps)
    page.models = views.model_view(results, losses)
    page.scaling = sections.scaling_section(results, model_table)
    if gaps:
        page.gaps = views.gap_view(gaps)
        page.gap_figures = sections.gap_section(gaps, results.sizes)
    return {
        "num_models": len(results.study_models),
        "num_evaluated": sum(bool(model.evaluations) for model in results.study_models),
        "num_missing": int((model_table["missing"] != "").sum()),
        "num_test_documents": losses.num_documents,
        "num_test_tokens": losses.num_tokens,
    }


def _fill_training(page: Page, folder: Path) -> None:
    """Show the training of the models and write its tables; one without rows is left out."""
    trajectories = twins.twin_trajectories(page.results, page.config.num_resamples, page.config.seed)
    ternary_means = ternary.ternary_table(page.results)
    page.training = sections.training_section(page.results, trajectories, ternary_means)
    for name, table in (("gaps_over_training.csv", twins.twin_table(trajectories)), ("ternary.csv", ternary_means)):
        if len(table):
            tables.write_csv(table, folder / name)
            page.downloads.append(name)


def _fill_data(page: Page, folder: Path) -> None:
    """Show the data card and write its table."""
    page.data = data_card(page.results.artifacts)
    if page.data:
        tables.write_csv(page.data.table, folder / "data.csv")
        page.downloads.append("data.csv")


def _fill_sweep(page: Page, folder: Path) -> dict[str, Any]:
    """Fill the sections of a sweep and write `rates.csv`; nothing here comes from the test split."""
    table = sweep.write_sweep_table(page.results.artifacts, folder / "rates.csv")
    page.downloads = ["rates.csv"]
    _fill_rates(page, table)
    page.runs = views.rate_view(table)
    chosen = sweep.choices(table)
    return {
        "num_runs": len(table),
        "num_diverged": int(table["diverged"].sum()),
        "num_at_edge": sum(choice.edge is not None for choice in chosen),
        "chosen_peak_lr": {f"{choice.family}/{choice.size}": choice.peak_lr for choice in chosen},
    }


def _fill_rates(page: Page, table: pd.DataFrame) -> None:
    """Show the curves of a sweep; for a study that takes its rates from it, also where it departs from the choice."""
    chosen = sweep.choices(table)
    page.choices = views.sweep_view(chosen)
    page.rates = sections.rates_section(table, chosen, page.results.sizes)
    page.rate_notes += [note for note in [sweep.budget(table)] if note]
    for column in ("date", "machine"):
        if column in table:
            page.rate_notes.append(f"Sweep {column}: {', '.join(sorted(set(table[column])))}.")
    if not page.results.is_sweep:
        page.rate_notes += sweep.departures(table, _trained_rates(page.results))


def _trained_rates(results: Results) -> dict[ModelId, float]:
    return {model.id: model.config["peak_lr"] for model in results.study_models if "peak_lr" in model.config}


def _render(page: Page) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["looks"] = looks()
    environment.filters["svg"] = lambda drawing: Markup(drawing.svg)  # matplotlib has escaped the text in it
    return environment.get_template("report.html").render(
        page=page,
        results=page.results,
        facts=sections.headline(page.results, page.losses),
        settings=provenance.settings(page.results),
        assumptions=provenance.assumptions(),
        lineage=provenance.lineage(page.results.artifacts),
        commits=provenance.commits(page.results.artifacts),
    )
