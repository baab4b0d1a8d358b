"""The page and the tracking of a finished study; and the page of what is there where a job failed."""

import subprocess
import sys

from openspectra.reporting.config import PUBLISHED

REPORTED = [f"{RESULTS}/{name}/manifest.json" for name in plan_of(STUDY).artifacts]


def render_what_is_there() -> None:
    """Make the page without what failed, which it names. The next run that lacks nothing makes it again."""
    if not workflow.scheduler.failed or not any(map(os.path.exists, manifests("pretrain", "release"))):
        return  # stopped by hand, or nothing to show
    logger.info(f"the page of what is there: {REPORTS}/index.html")
    command = ["report", "--study", STUDY_FILE, "--out", REPORTS, "--log", f"{LOGS}/render_what_is_there.log"]
    subprocess.run([sys.executable, "-m", "openspectra.cli", *command], check=False)  # tells its error itself


rule render_report:
    input:
        config=f"{RESULTS}/configs/report.json",
        artifacts=REPORTED,
        rates=STUDY.rates_tables,
        paper=str(PUBLISHED),
        study=study_files(Path(STUDY_FILE)),  # read for its assumptions, which stand in comments
    output:
        f"{REPORTS}/manifest.json",
    log:
        f"{LOGS}/render_report.log",
    params:
        stage_version=STAGE_VERSIONS["report"],
        rates=[f"--rates {path}" for path in STUDY.rates_tables],
    resources:
        **resources_of("render_report"),
    conda:
        ENVIRONMENT
    message:
        "report"
    shell:
        "openspectra report --study {input.study[0]} --config {input.config} {params.rates} --paper {input.paper}"
        " --out $(dirname {output}) --log {log} {input.artifacts}"


rule track_artifacts:
    """Bring MLflow up to date. Last of all: where its server is down, everything else is finished."""
    input:
        artifacts=[*REPORTED, f"{REPORTS}/manifest.json"],
    output:
        f"{RESULTS}/tracking.json",
    log:
        f"{LOGS}/track_artifacts.log",
    params:
        study=NAME,
    resources:
        **resources_of("track_artifacts"),
    conda:
        ENVIRONMENT
    message:
        "MLflow"
    shell:
        "openspectra track sync {params.study} --out {output} --log {log}"


onstart:
    track_live()
