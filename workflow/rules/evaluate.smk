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
    input:
        config=f"{RESULTS}/configs/evaluation/{{suite}}.json",
        model=f"{RESULTS}/{{model}}/manifest.json",
        tasks=BUILT_TASKS,
    output:
        f"{RESULTS}/evaluation/{{model}}/{{suite}}/manifest.json",
    log:
        f"{LOGS}/evaluate_model/{{model}}/{{suite}}.log",
    params:
        stage_version=STAGE_VERSIONS["evaluate"],
        tasks=f"--tasks {BUILT_TASKS[0]}" if BUILT_TASKS else "",
    threads: threads_of("evaluate_model")
    resources:
        **resources_of("evaluate_model"),
    conda:
        ENVIRONMENT
    message:
        "evaluation of {wildcards.model}: {wildcards.suite}"
    shell:
        "openspectra evaluate --config {input.config} --model {input.model} {params.tasks}"
        " --threads {threads} --out $(dirname {output}) --log {log}"
