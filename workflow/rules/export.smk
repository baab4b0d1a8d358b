rule export_model:
    """A model in the format of another tool. Its card shows the model's scores, so these come first."""
    input:
        model=f"{RESULTS}/{{model}}/manifest.json",
        valid=f"{RESULTS}/tokens/valid/manifest.json",
        evaluations=[f"{RESULTS}/evaluation/{{model}}/{suite}/manifest.json" for suite in SUITES],
    output:
        f"{RESULTS}/exports/{{model}}/{{format}}/manifest.json",
    wildcard_constraints:
        model=f"{one_of(STUDY.models)}|{checkpoints_of(STUDY.models)}",
    log:
        f"{LOGS}/export_model/{{model}}/{{format}}.log",
    params:
        stage_version=STAGE_VERSIONS["export"],
    threads: threads_of("export_model")
    resources:
        **resources_of("export_model"),
    conda:
        ENVIRONMENT
    message:
        "{wildcards.model} as {wildcards.format}"
    shell:
        "openspectra export {input.model} --format {wildcards.format} --valid {input.valid} --threads {threads}"
        " --out $(dirname {output}) --log {log}"
