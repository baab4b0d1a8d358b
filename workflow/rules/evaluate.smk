HELD_OUT = (  # the test split: of the corpus, or of ready tokens
    {"corpus": CORPUS[0]}
    if CORPUS
    else {"test": f"{RESULTS}/tokens/test/manifest.json", "tokenizer": f"{RESULTS}/tokenizer/manifest.json"}
)


rule build_tasks:
    input:
        **HELD_OUT,
        config=f"{RESULTS}/configs/tasks.json",
    output:
        f"{RESULTS}/tasks/manifest.json",
    log:
        f"{LOGS}/build_tasks.log",
    params:
        stage_version=STAGE_VERSIONS["tasks"],
        held_out=[f"--{role} {path}" for role, path in HELD_OUT.items()],
    resources:
        **resources_of("build_tasks"),
    conda:
        ENVIRONMENT
    message:
        "tasks from the test split"
    shell:
        "openspectra tasks --config {input.config} {params.held_out} --out $(dirname {output}) --log {log}"


rule evaluate_model:
    """All suites of a model, or of all small models of a size, in one process; the command makes only what is not finished."""
    input:
        configs=[f"{RESULTS}/configs/evaluation/{suite}.json" for suite in SUITES],
        models=[f"{RESULTS}/{model}/manifest.json" for model in EVALUATED],
        tasks=BUILT_TASKS,
        benchmarks=ancient(BENCHMARKS),  # only to be there first: data.csv records what was scored
    output:
        [f"{RESULTS}/evaluation/{model}/{suite}/manifest.json" for model in EVALUATED for suite in SUITES or ["none"]],
    log:
        [f"{LOGS}/evaluate_model/{model}.log" for model in EVALUATED],
    params:
        stage_version=STAGE_VERSIONS["evaluate"],
        summary=describe_evaluation,
        command=evaluate_command,
    threads: threads_of("evaluate_model")
    resources:
        **resources_of("evaluate_model"),
    conda:
        ENVIRONMENT
    message:
        "{params.summary}"
    shell:
        "{params.command} --threads {threads}"


use rule evaluate_model as evaluate_checkpoint with:  # made when asked for
    input:
        configs=[f"{RESULTS}/configs/evaluation/{suite}.json" for suite in SUITES],
        models=f"{RESULTS}/{{checkpoint}}/manifest.json",
        tasks=BUILT_TASKS,
        benchmarks=ancient(BENCHMARKS),
    output:
        [f"{RESULTS}/evaluation/{{checkpoint}}/{suite}/manifest.json" for suite in SUITES or ["none"]],
    log:
        f"{LOGS}/evaluate_model/{{checkpoint}}.log",
    wildcard_constraints:
        checkpoint=checkpoints_of(STUDY.models),
