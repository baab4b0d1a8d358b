rule pretrain_model:
    input:
        config=f"{RESULTS}/configs/{{pretrained}}.json",
        train=f"{RESULTS}/tokens/train/manifest.json",
        valid=f"{RESULTS}/tokens/valid/manifest.json",
        tokenizer=f"{RESULTS}/tokenizer/manifest.json",
        teacher=teacher_of,
    output:
        f"{RESULTS}/{{pretrained}}/manifest.json",
    log:
        f"{LOGS}/pretrain_model/{{pretrained}}.log",
    params:
        stage_version=STAGE_VERSIONS["pretrain"],
        summary=describe_training,
        teacher=lambda wildcards, input: [f"--teacher {path}" for path in input.teacher],
    priority: lambda wildcards: LONGEST_LAST.index(wildcards.pretrained)
    threads: threads_of("pretrain_model")
    resources:
        **resources_of("pretrain_model"),
    conda:
        ENVIRONMENT
    message:
        "{wildcards.pretrained}: {params.summary}"
    shell:
        "openspectra pretrain --config {input.config} --train {input.train} --valid {input.valid}"
        " --tokenizer {input.tokenizer} {params.teacher} --threads {threads} --nodes {resources.nodes}"
        " --devices {resources.devices}"
        " --strategy {resources.strategy} --micro-batch {resources.micro_batch}"
        " --recompute {resources.recompute} --out $(dirname {output}) --log {log}"


rule publish_checkpoint:
    """The weights that a run kept at one step, as a model that can be quantized and evaluated. Made when asked for."""
    input:
        model=trained_run,
    output:
        f"{RESULTS}/{{pretrained}}@{{step}}/manifest.json",
    log:
        f"{LOGS}/publish_checkpoint/{{pretrained}}@{{step}}.log",
    params:
        stage_version=STAGE_VERSIONS["checkpoint"],
    resources:
        **resources_of("publish_checkpoint"),
    conda:
        ENVIRONMENT
    message:
        "{wildcards.pretrained} at step {wildcards.step}"
    shell:
        "openspectra checkpoint --model {input.model} --step {wildcards.step} --out $(dirname {output}) --log {log}"


rule import_release:
    """Released weights in place of training. May need a network, as `read_source` and `fetch_benchmarks` may."""
    input:
        config=f"{RESULTS}/configs/{{released}}.json",
    output:
        f"{RESULTS}/{{released}}/manifest.json",
    log:
        f"{LOGS}/import_release/{{released}}.log",
    params:
        stage_version=STAGE_VERSIONS["release"],
    resources:
        **resources_of("import_release"),
    conda:
        ENVIRONMENT
    message:
        "{wildcards.released}: released weights"
    shell:
        "openspectra release --config {input.config} --out $(dirname {output}) --log {log}"
