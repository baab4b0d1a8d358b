"""A plan as tables on a terminal: trainings by size, jobs by stage, the whole, and what all of it stands on."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from openspectra.artifacts import MANIFEST
from openspectra.identity import read_run_facts
from openspectra.model_ids import ModelId
from openspectra.planning import Cost, StudyPlan
from openspectra.printable import span_of
from openspectra.resources import USABLE
from openspectra.speeds import GPU_EFFICIENCY
from openspectra.study import Study
from openspectra.work import RULES, training_flop, training_tokens

WATTS = {"GPU": 700, "core": 10}
"""ASSUME: the stated power of an H100 (SXM), and that of a server's processor shared among its cores; what cools and feeds
them is not counted."""


def plan_tables(plan: StudyPlan, devices: int, price: float | None, results: Path) -> RenderableType:
    """Return the plan of a study on so many GPUs (or cores), at a price per GPU hour, with what its jobs took so far."""
    money = _money(plan, price)
    unit = "GPU" if plan.on_gpus else "core"
    total = plan.hours(plan.costs)
    days = plan.wall_seconds(devices)
    disk = sum(cost.job.disk_bytes for cost in plan.costs)
    count = f"{devices} {unit}{'s' if devices > 1 else ''}"
    parts = [f"{len(plan.costs):,} jobs", f"{_number(total)} {unit} hours", f"{span_of(days)} on {count}"]
    parts += [f"{disk / 1e9:,.1f} GB on disk", *([money(total)] if price else [])]
    parts.append(f"{_number(total * WATTS[unit] / 1000)} kWh")
    return Group(
        _trainings(plan, money),
        _stages(plan, money, took(plan.study, results)),
        Text("Total: " + ", ".join(parts), style="bold"),
        Text("\n".join(assumptions_of(plan))),
    )


def plan_page(tables: RenderableType, title: str) -> str:
    """Return the tables as a self-contained HTML page."""
    console = Console(record=True, width=120, file=StringIO(), highlight=False)
    console.print(Text(f"{title}: plan, and what its jobs took", style="bold"), tables, sep="\n\n")
    return console.export_html(inline_styles=True)


def took(study: Study, results: Path) -> dict[str, tuple[int, float]]:
    """Return of each rule how many artifacts are there and the seconds that they took, start of the process left out."""
    found: dict[str, tuple[int, float]] = {}
    for place, stage in study.artifacts.items():
        if (results / place / MANIFEST).is_file():
            seconds = read_run_facts(results / place).get("duration_seconds", 0.0)
            count, before = found.get(RULES[stage], (0, 0.0))
            found[RULES[stage]] = (count + 1, before + seconds)
    return found


def diagram(plan: StudyPlan, results: Path) -> str:
    """Return the stages of a study as a flow chart in Mermaid's language: jobs, hours, and how many are done."""
    done = {RULES[stage]: 0 for stage in RULES}
    for place, stage in plan.study.artifacts.items():
        done[RULES[stage]] += (results / place / MANIFEST).is_file()
    made = {RULES[stage]: list(plan.study.artifacts.values()).count(stage) for stage in RULES}
    unit = "GPU h" if plan.on_gpus else "core h"
    by_name = {cost.job.name: cost.job.rule for cost in plan.costs}
    stage_of = {rule: stage for stage, rule in RULES.items()}
    lines, edges = ["flowchart TD"], {}
    for stage, rule in RULES.items():
        costs = [cost for cost in plan.costs if cost.job.rule == rule]
        if costs:
            jobs = f"{len(costs):,} job{'s' if len(costs) > 1 else ''}, {_number(plan.hours(costs))} {unit}"
            state = f"<br/>{done[rule]:,} of {made[rule]:,} done" if made[rule] else ""
            lines.append(f'  {stage}["{stage}<br/>{jobs}{state}"]')
            if made[rule] and done[rule] == made[rule]:
                lines.append(f"  style {stage} fill:#d5f0d5,stroke:#2a7a2a,color:#000")
            edges |= {f"  {stage_of[by_name[name]]} --> {stage}": None for cost in costs for name in cost.job.after}
    last = "evaluate" if plan.study.evaluation else "pretrain"  # all is read by the report; one arrow says so
    shown = [edge for edge in edges if not edge.endswith(" --> report")] + [f"  {last} --> report"]
    return "\n".join([*lines, *shown])


def _trainings(plan: StudyPlan, money: Callable[[float], str]) -> Table:
    table = Table(title="Trainings", title_justify="left", title_style="bold", box=None, pad_edge=False)
    wall = "hours" if plan.on_gpus else "minutes"
    columns = ["size", "runs", "parameters", "tokens a run", "FLOP a run", "layout"]
    columns += ["GPU h a run" if plan.on_gpus else "core h a run", f"{wall} a run", "GB a run"]
    for name in [*columns, *(["money"] if money(1.0) else [])]:
        table.add_column(name, justify="left" if name in ("size", "layout") else "right", no_wrap=True)
    by_size: dict[tuple, list[Cost]] = {}
    for cost in plan.costs:
        if cost.job.rule == "pretrain_model":
            run, model = plan.study.recipes[cost.job.model_id], ModelId.parse(cost.job.model_id)
            layout = plan.resources.layout(cost.job.model_id)
            size = f"{model.size} distilled" if run.distillation else model.size
            key = (size, run.shape.num_parameters, f"{training_tokens(run):.3g}", layout)
            by_size.setdefault(key, []).append(cost)
    for (size, parameters, tokens, layout), costs in by_size.items():
        run = plan.study.recipes[costs[0].job.model_id]
        seconds = sum(cost.seconds for cost in costs) / len(costs)
        row = [size, str(len(costs)), f"{parameters:,}", tokens, f"{training_flop(run):.3g}", str(layout)]
        row += [_number(plan.hours(costs) / len(costs)), _number(seconds / (3600 if plan.on_gpus else 60))]
        row.append(f"{costs[0].job.disk_bytes / 1e9:,.3g}")
        table.add_row(*row, *filter(None, [money(plan.hours(costs))]))
    return table


def _stages(plan: StudyPlan, money: Callable[[float], str], taken: dict[str, tuple[int, float]]) -> Table:
    table = Table(title="\nJobs by stage", title_justify="left", title_style="bold", box=None, pad_edge=False)
    unit = "GPU hours" if plan.on_gpus else "core hours"
    columns = ["stage", "jobs", unit, "longest", "GB", *(["money"] if money(1.0) else [])]
    for name in [*columns, *(["took so far"] if taken else [])]:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage, rule in RULES.items():
        costs = [cost for cost in plan.costs if cost.job.rule == rule]
        if not costs:
            continue
        hours = plan.hours(costs)
        longest = max(cost.seconds for cost in costs)
        row = [stage, f"{len(costs):,}", _number(hours), span_of(longest)]
        row += [f"{sum(cost.job.disk_bytes for cost in costs) / 1e9:,.3g}", *filter(None, [money(hours)])]
        if taken:
            count, seconds = taken.get(rule, (0, 0.0))
            row.append(f"{span_of(seconds)} for {count}" if count else "")
        table.add_row(*row)
    return table


def assumptions_of(plan: StudyPlan) -> list[str]:
    """Return what the plan stands on, a line each."""
    speeds, site = plan.speeds, plan.site
    lines = ["What this stands on:"]
    where = (
        f"a site with {site.summary}"
        if site
        else "this machine, without GPUs: one thread a job, two where text is read"
    )
    lines.append(f"- Machine: {where}.")
    if speeds.measured:
        rates = ", ".join(f"{model} {rate:.3g}" for model, rate in speeds.rates.items())
        lines.append(
            f"- Measured {speeds.measured}: {speeds.start:.1f} s until torch is loaded; operations a second: {rates}; "
            f"{speeds.stretch:.2f} s on the clock for each of these."
        )
    elif plan.on_gpus:
        lines.append(
            f"- A training does 6 x parameters x tokens operations at {GPU_EFFICIENCY:.0%} of a GPU's "
            f"{site.gpu_teraflops:g} TFLOP/s; validation adds 2 x parameters x its tokens. Nothing was measured."
        )
        lines.append(
            "- Evaluation waits 1 ms for each layer and sequence; GPTQ and evaluation compute at a tenth of that rate."
        )
        lines.append(f"- A layout fits where its estimate is below {USABLE:.0%} of a GPU's memory.")
    else:
        lines.append(
            f"- A thread does {speeds.rate:.3g} operations a second, by 6 x parameters x tokens; a process needs "
            f"{speeds.start:g} s to load torch. Nothing was measured: --calibrate does, in two minutes at most."
        )
    lines.append(f"- Energy: {WATTS['GPU']} W for each GPU in use, {WATTS['core']} W for each core; no meter is read.")
    lines.append(
        "- Items of lm-eval's tasks, and text of sources other than Python's library, are counted by docs/plan.md."
    )
    return lines


def _money(plan: StudyPlan, price: float | None) -> Callable[[float], str]:
    """Return what turns hours into money; empty where there is no price."""
    return lambda hours: f"{hours * price:,.0f}" if price else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
