"""A study before its artifacts: is its file right, what does it assume and cost, how far is it, what does a step read."""

import json
from pathlib import Path
from typing import Annotated

import typer

from openspectra.cli.options import StudyName
from openspectra.cli.stage import say

commands = typer.Typer()

WIDTH = 160
"""Characters of a line of tables that go to a file."""
StudyFilePath = Annotated[Path, typer.Argument(help="Study file (YAML).")]
StudyFileOrName = Annotated[str, typer.Argument(help="Study file (YAML), or its name in studies/.")]
SiteOption = Annotated[
    Path | None, typer.Option("--site", help="Site file; none: that of config.yaml, of slurm/, or this machine.")
]


@commands.command()
def check(study: StudyFilePath, site: SiteOption = None) -> None:
    """Check a study file, with all its problems at once, and list its models with their sizes in bits.

    Among the problems is what fits into no node of the site, where one is given.
    """
    from openspectra.data.tokenizer import file_problems
    from openspectra.errors import ConfigError
    from openspectra.planning import site_of
    from openspectra.resources import StudyResources
    from openspectra.study import load_study

    loaded = load_study(study)
    nodes = site_of(loaded, site)
    if problems := [*file_problems(loaded.tokenizer), *StudyResources(loaded, nodes).problems()]:
        raise ConfigError([f"{study}: {problem}" for problem in problems])
    for model_id, bits in loaded.sizes_in_bits.items():
        run = loaded.pretrained.get(model_id)
        say(f"{model_id}: {bits / 1e9:,.4g} Gbit" + (f", {run.summary}" if run else ""))
    num_models, made = len(loaded.compared_models), len(loaded.quantized)
    quantized = num_models - len(loaded.pretrained) - len(loaded.imported)
    sets = f", each the mean over {made // quantized} calibration sets ({made} QuantLMs)" if made > quantized else ""
    say(f"{study}: valid; {num_models} models, {quantized} of them quantized{sets}.")


@commands.command()
def assumptions(study: StudyFilePath) -> None:
    """List what a study assumes where the paper is silent, each with its evidence: its file, its base, the library."""
    from openspectra.assumptions import collect, study_files
    from openspectra.study import load_study

    load_study(study)
    for each in collect(study_files(study)):
        say(f"{each.file}:{each.line}: " + (f"{each.code}  # " if each.code else "") + each.text)


@commands.command()
def plan(
    study: StudyFileOrName,
    site: SiteOption = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs (without any: cores) that share the study.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Money for a GPU hour.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure this machine first, two minutes.")] = False,
    chart: Annotated[bool, typer.Option("--chart", help="Print a flow chart (Mermaid) of the stages instead.")] = False,
    page: Annotated[Path | None, typer.Option("--page", help="Write the tables into this HTML file instead.")] = None,
) -> None:
    """Say what a study will cost: jobs, hours, tokens, operations, disk and money, by size and by stage, and why.

    Beside it stands what the jobs that are done took.
    """
    from rich.console import Console

    from openspectra import planning
    from openspectra.plan_view import diagram, plan_page, plan_tables
    from openspectra.study import load_study
    from openspectra.writing import disk_errors, write_atomically

    path = _study_file(study)
    loaded, results = load_study(path), Path("results", path.stem)
    nodes = planning.site_of(loaded, site)
    if calibrate:
        from openspectra.calibration import calibrate as measure

        speeds = measure(loaded, path, nodes, results / planning.CALIBRATION)
    else:
        speeds = planning.speeds_here(results, nodes)
    planned = planning.plan_study(loaded, nodes, speeds)
    if chart:
        say(diagram(planned, results), keep="\n")
        return
    tables = plan_tables(planned, planning.devices_of(planned, gpus), price, results)
    if page:
        with disk_errors(page):
            write_atomically(page, plan_page(tables, loaded.title).encode())
        return
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=WIDTH, highlight=False)
    console.print(tables)


@commands.command()
def status(study: StudyFileOrName) -> None:
    """Say what of a study is done, running, waiting or failed and why, and which command goes on."""
    from openspectra.status import status_lines
    from openspectra.study import load_study

    path = _study_file(study)
    for line in status_lines(load_study(path), path.stem):
        say(line)


@commands.command()
def step(
    study: StudyName,
    number: Annotated[int, typer.Argument(metavar="STEP", help="Training step, from 1.")],
    model: Annotated[str | None, typer.Option("--model", help="The model, where batches differ by family.")] = None,
) -> None:
    """Print the very text that a training step read, and the documents it comes from."""
    from openspectra.artifacts import open_artifact
    from openspectra.errors import ConfigError
    from openspectra.study import load_study
    from openspectra.training.steps import describe_step

    runs = load_study(Path("studies", f"{study}.yaml")).pretrained
    if model is None and len({run.global_batch_size for run in runs.values()}) > 1:
        raise ConfigError([f"--model: batches of study {study} differ by family; name one of {', '.join(runs)}."])
    if model is not None and model not in runs:
        raise ConfigError([f"--model: {model!r} is not trained in study {study}; name one of {', '.join(runs)}."])
    results = Path("results", study)
    train, tokenizer = open_artifact(results / "tokens/train", "tokens"), open_artifact(results / "tokenizer")
    for line in describe_step(runs[model or next(iter(runs))], number, train, tokenizer):
        say(line, keep="\n\t")


@commands.command()
def schema() -> None:
    """Print the JSON schema of study files, for editors that complete and check them."""
    from openspectra.config import Config

    Config.model_config["use_attribute_docstrings"] = True  # nobody else pays for reading the sources of all classes
    from openspectra.study_file import StudyFile

    typer.echo(json.dumps(StudyFile.model_json_schema(), indent=2))


def _study_file(study: str) -> Path:
    """Return the file of a study that is given as such or by its name."""
    return Path(study) if study.endswith((".yaml", ".yml")) else Path("studies", f"{study}.yaml")
