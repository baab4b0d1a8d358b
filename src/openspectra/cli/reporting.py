"""The report of a study, and its tables as Markdown."""

import os
from pathlib import Path
from typing import Annotated

import typer

from openspectra.cli.options import Log, Out
from openspectra.cli.stage import logger, say, session

commands = typer.Typer()


@commands.command()
def report(
    study: Annotated[Path, typer.Option(help="Study file (YAML).")],
    out: Out,
    artifacts: Annotated[
        list[Path] | None, typer.Argument(help="Artifact folders; none given: what is there of the study.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Resolved config (JSON); none given: the study's.")] = None,
    rates: Annotated[Path | None, typer.Option(help="Table of the sweep that the study's rates come from.")] = None,
    paper: Annotated[Path | None, typer.Option(help="Table of the paper's numbers, to hold ours against.")] = None,
    log: Log = None,
) -> None:
    """Write the page, figures and tables of a study, at any moment of it: what is not there is named."""
    from openspectra.artifacts import open_artifact, write_artifact
    from openspectra.config import read_config
    from openspectra.reporting.config import PUBLISHED, ReportConfig
    from openspectra.reporting.plan import plan_of
    from openspectra.study import load_study

    with session(log):
        loaded = load_study(study)
        resolved = read_config(ReportConfig, config) if config else loaded.report_config(study.stem)
        tables = [rates] if rates else map(Path, loaded.rates_tables)
        published = paper or (PUBLISHED if PUBLISHED.is_file() else None)
        opened = [open_artifact(path) for path in artifacts or plan_of(loaded).made(Path("results", study.stem))]
        from openspectra.reporting.page import write_report

        parents = {os.path.relpath(artifact.folder, out): artifact for artifact in opened}
        with write_artifact(out, "report", resolved, parents) as draft:
            draft.metrics |= write_report(resolved, opened, draft.folder, next(iter(tables), None), study, published)
        logger.info("report: done, open %s", out / "index.html")


@commands.command()
def tables(
    report: Annotated[Path, typer.Argument(help="Folder with models.csv, scores.csv and gaps.csv of a report.")],
    file: Annotated[Path | None, typer.Argument(help="Markdown file that takes them, between its markers.")] = None,
) -> None:
    """Print the tables of a report as Markdown, or put them into a file such as README.md."""
    from openspectra.reporting.markdown import tables as render
    from openspectra.reporting.markdown import with_tables

    block = render(report)
    if file is None:
        say(block, keep="\n")
    else:
        file.write_text(with_tables(file.read_text(encoding="utf-8"), block, str(file)), encoding="utf-8")
