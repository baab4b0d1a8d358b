"""The page of a study: one self-contained HTML file, its figures as SVG, its tables as CSV.

Equal artifacts give equal bytes: no time, no absolute path, no random draw without a seed goes in.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from openspectra.artifacts import Artifact
from openspectra.reporting import sections
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.drawing import looks
from openspectra.reporting.load import Results, load_results
from openspectra.reporting.plan import plan_of
from openspectra.reporting.section import Section
from openspectra.reporting.statistics import DocumentLosses, document_losses
from openspectra.reporting.sweep import choices
from openspectra.reporting.tables import write_csv
from openspectra.study import load_study

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    config: ReportConfig,
    artifacts: list[Artifact],
    folder: Path,
    rates_table: Path | None = None,
    study: Path | None = None,
    paper: Path | None = None,
) -> dict[str, Any]:
    """Write `index.html`, figures and tables into `folder` and return summary metrics.

    `rates_table` is the result of a sweep, a CSV with columns family, size, peak_lr and valid_loss: its curves are
    shown beside the study that takes its rates from it. A sweep itself gets `rates.csv` in place of scores. `study` is
    the study's file: with it the page lists its assumptions, and names what it plans and `artifacts` lack. `paper` is the
    table of the paper's numbers, which ours are held against.
    """
    results = load_results(artifacts, plan_of(load_study(study), Path("logs", study.stem)) if study else None)
    losses = document_losses(results.documents, config.num_resamples, config.seed)
    found = [sections.missing_section(results)]
    if results.is_sweep:
        found.append(sections.sweep_section(results))
    else:
        found += sections.study_sections(config, results, losses, paper)
        found += [sections.conformance_section(results, paper)] if paper else []
        found += [sections.rates_section(results, rates_table)] if rates_table else []
    found += sections.closing_sections(config, results, study)
    for section in found:
        for drawing in section.drawings:
            svg = f'<?xml version="1.0" encoding="utf-8"?>\n{drawing.svg}'
            (folder / f"{drawing.name}.svg").write_text(svg, encoding="utf-8")
        for name, table in section.tables.items():
            write_csv(table, folder / name)
    shown = [section for section in found if section.notes or section.parts]
    downloads = [name for section in found for name in section.tables]
    (folder / "index.html").write_text(_render(config, results, losses, shown, downloads), encoding="utf-8")
    tables = {name: table for section in found for name, table in section.tables.items()}
    return _sweep_metrics(tables["rates.csv"]) if results.is_sweep else _metrics(results, losses, tables["models.csv"])


def _metrics(results: Results, losses: DocumentLosses, model_table: pd.DataFrame) -> dict[str, Any]:
    return {
        "num_models": len(results.study_models),
        "num_evaluated": sum(bool(model.evaluations) for model in results.study_models),
        "num_missing": int((model_table["missing"] != "").sum()),
        "num_test_documents": losses.num_documents,
        "num_test_tokens": losses.num_tokens,
    }


def _sweep_metrics(table: pd.DataFrame) -> dict[str, Any]:
    chosen = choices(table)
    return {
        "num_runs": len(table),
        "num_diverged": int(table["diverged"].sum()),
        "num_at_edge": sum(choice.edge is not None for choice in chosen),
        "chosen_peak_lr": {f"{choice.family}/{choice.size}": choice.peak_lr for choice in chosen},
    }


def _render(
    config: ReportConfig, results: Results, losses: DocumentLosses, shown: list[Section], downloads: list[str]
) -> str:
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
        config=config,
        is_sweep=results.is_sweep,
        is_probe=results.is_probe,
        has_seeds=bool(results.seeds),
        facts=sections.headline(results, losses),
        sections=shown,
        downloads=downloads,
    )
