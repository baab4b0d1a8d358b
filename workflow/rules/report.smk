from openspectra.reporting.config import PUBLISHED, PUBLISHED_TBT

STUDY_FILES = [STUDY_FILE] + ([f"studies/{STUDY.base}.yaml"] if STUDY.base else [])
REPORTED = [f"{RESULTS}/{name}/manifest.json" for name in plan_of(STUDY).artifacts]


rule render_report:
    input:
        config=f"{RESULTS}/configs/report.json",
        artifacts=lambda wildcards: REPORTED,
        rates=STUDY.rates_tables,
        paper=str(PUBLISHED),
        tbt=[str(PUBLISHED_TBT)] if any(name.startswith("tbt_") for name in STUDY.families) else [],
        study=STUDY_FILES,  # read for its assumptions, which stand in comments
    output:
        manifest=f"{REPORTS}/manifest.json",
        page=report(f"{REPORTS}/index.html", caption="../report/page.rst", category="Page", labels={"what": "the page"}),
        tables=[
            report(f"{REPORTS}/{name}", caption="../report/tables.rst", category="Tables", labels={"table": name})
            for name in (["models.csv", "scores.csv", "gaps.csv"] if SUITES else [])
        ],
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
        " --out $(dirname {output.manifest}) --log {log} {input.artifacts}"


rule track_artifacts:
    """Bring MLflow up to date, last of all: where its server is down, all else is finished. Then the page of plan and time."""
    input:
        artifacts=lambda wildcards: [*REPORTED, f"{REPORTS}/manifest.json"],
    output:
        f"{RESULTS}/tracking.json",
    log:
        f"{LOGS}/track_artifacts.log",
    params:
        study=NAME,
        site=f"--site {config['site']}" if SITE else "",
        cost=f"{RESULTS}/cost.html",
    resources:
        **resources_of("track_artifacts"),
    conda:
        ENVIRONMENT
    message:
        "MLflow"
    shell:
        "openspectra track sync {params.study} --out {output} --log {log};"
        " openspectra plan {params.study} {params.site} --page {params.cost} || echo 'no page of plan and time, see above' >&2"
