rule write_config:
    """Write the resolved config of one artifact: only the keys its stage reads, so that only they make it rerun."""
    output:
        f"{RESULTS}/configs/{{path}}.json",
    log:
        f"{LOGS}/write_config/{{path}}.log",
    params:
        resolved=resolved_config,
    conda:
        ENVIRONMENT
    message:
        "config of {wildcards.path}"
    shell:
        "printf '%s\\n' {params.resolved:q} > {output} 2> {log}"


rule build_corpus:
    input:
        config=f"{RESULTS}/configs/corpus.json",
    output:
        f"{RESULTS}/corpus/manifest.json",
    log:
        f"{LOGS}/build_corpus.log",
    params:
        stage_version=STAGE_VERSIONS["corpus"],
    conda:
        ENVIRONMENT
    message:
        "corpus"
    shell:
        "openspectra corpus --config {input.config} --out $(dirname {output}) --log {log}"


rule build_tokenizer:
    input:
        config=f"{RESULTS}/configs/tokenizer.json",
        corpus=f"{RESULTS}/corpus/manifest.json",
    output:
        f"{RESULTS}/tokenizer/manifest.json",
    log:
        f"{LOGS}/build_tokenizer.log",
    params:
        stage_version=STAGE_VERSIONS["tokenizer"],
    threads: 2
    conda:
        ENVIRONMENT
    message:
        "tokenizer"
    shell:
        "openspectra tokenizer --config {input.config} --corpus {input.corpus} --threads {threads}"
        " --out $(dirname {output}) --log {log}"


rule tokenize_split:
    input:
        config=f"{RESULTS}/configs/tokens/{{split}}.json",
        corpus=f"{RESULTS}/corpus/manifest.json",
        tokenizer=f"{RESULTS}/tokenizer/manifest.json",
    output:
        f"{RESULTS}/tokens/{{split}}/manifest.json",
    log:
        f"{LOGS}/tokenize_split/{{split}}.log",
    params:
        stage_version=STAGE_VERSIONS["tokens"],
    conda:
        ENVIRONMENT
    message:
        "tokens/{wildcards.split}"
    shell:
        "openspectra tokens --config {input.config} --corpus {input.corpus} --tokenizer {input.tokenizer}"
        " --threads {threads} --out $(dirname {output}) --log {log}"
