rule build_tasks:
    input:
        config=f"{RESULTS}/configs/tasks.json",
        corpus=CORPUS,
    output:
        f"{RESULTS}/tasks/manifest.json",
    log:
        f"{LOGS}/build_tasks.log",
    params:
        stage_version=STAGE_VERSIONS["tasks"],
    conda:
        ENVIRONMENT
    message:
        "tasks from the test split"
    shell:
        "openspectra tasks --config {input.config} --corpus {input.corpus} --out $(dirname {output}) --log {log}"


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
    conda:
        ENVIRONMENT
    message:
        "evaluation of {wildcards.model}: {wildcards.suite}"
    shell:
        "openspectra evaluate --config {input.config} --model {input.model} {params.tasks}"
        " --threads {threads} --out $(dirname {output}) --log {log}"
