rule quantize_model:
    input:
        config=f"{RESULTS}/configs/{{quantized}}.json",
        model=float_manifest,
        train=f"{RESULTS}/tokens/train/manifest.json",
    output:
        f"{RESULTS}/{{quantized}}/manifest.json",
    log:
        f"{LOGS}/quantize_model/{{quantized}}.log",
    params:
        stage_version=STAGE_VERSIONS["quantize"],
        summary=describe_quantization,
    threads: threads_of("quantize_model")
    resources:
        **resources_of("quantize_model"),
    conda:
        ENVIRONMENT
    message:
        "{wildcards.quantized}: {params.summary}"
    shell:
        "openspectra quantize --config {input.config} --model {input.model} --train {input.train}"
        " --threads {threads} --out $(dirname {output}) --log {log}"
