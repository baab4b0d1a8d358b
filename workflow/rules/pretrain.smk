rule pretrain_model:
    input:
        config=f"{RESULTS}/configs/{{pretrained}}.json",
        train=f"{RESULTS}/tokens/train/manifest.json",
        valid=f"{RESULTS}/tokens/valid/manifest.json",
        tokenizer=f"{RESULTS}/tokenizer/manifest.json",
    output:
        f"{RESULTS}/{{pretrained}}/manifest.json",
    log:
        f"{LOGS}/pretrain_model/{{pretrained}}.log",
    params:
        stage_version=STAGE_VERSIONS["pretrain"],
        summary=describe_training,
    conda:
        ENVIRONMENT
    message:
        "{wildcards.pretrained}: {params.summary}"
    shell:
        "openspectra pretrain --config {input.config} --train {input.train} --valid {input.valid}"
        " --tokenizer {input.tokenizer} --threads {threads} --out $(dirname {output}) --log {log}"
