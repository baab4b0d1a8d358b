rule quantize_model:
    """A QuantLM, or all of a small FloatLM in one process; the command makes only what is not finished (finished.py)."""
    input:
        configs=[f"{RESULTS}/configs/{model}.json" for model in QUANTIZED],
        models=float_manifests,
        train=f"{RESULTS}/tokens/train/manifest.json",
        valid=f"{RESULTS}/tokens/valid/manifest.json",
    output:
        [f"{RESULTS}/{model}/manifest.json" for model in QUANTIZED],
    log:
        [f"{LOGS}/quantize_model/{model}.log" for model in QUANTIZED],
    params:
        stage_version=STAGE_VERSIONS["quantize"],
        summary=describe_quantization,
        command=quantize_command,
    threads: threads_of("quantize_model")
    resources:
        **resources_of("quantize_model"),
    conda:
        ENVIRONMENT
    message:
        "{params.summary}"
    shell:
        "{params.command} --threads {threads}"


ruleorder: quantize_model > quantize_checkpoint


use rule quantize_model as quantize_checkpoint with:  # made when asked for
    input:
        configs=f"{RESULTS}/configs/{{checkpoint}}.json",
        models=float_manifests,
        train=f"{RESULTS}/tokens/train/manifest.json",
        valid=f"{RESULTS}/tokens/valid/manifest.json",
    output:
        f"{RESULTS}/{{checkpoint}}/manifest.json",
    log:
        f"{LOGS}/quantize_model/{{checkpoint}}.log",
    wildcard_constraints:
        checkpoint=checkpoints_of(STUDY.quantized),
