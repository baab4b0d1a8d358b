rule resolve_configs:
    """Write the resolved config of every artifact. Stages take these as `ancient`: what reruns them is their own
    param, the one config they read, not the moment at which all configs were written."""
    output:
        expand(f"{RESULTS}/configs/{{path}}.json", path=CONFIGS),
    log:
        f"{LOGS}/resolve_configs.log",
    params:
        study=STUDY_FILE,
        configs=f"{RESULTS}/configs",
        digest=study_digest(CONFIGS),
    conda:
        ENVIRONMENT
    message:
        f"check {STUDY_FILE}"
    shell:
        "openspectra resolve {params.study} --digest {params.digest} --out {params.configs} --log {log}"


rule build_corpus:
    input:
        config=ancient(f"{RESULTS}/configs/corpus.json"),
    output:
        f"{RESULTS}/corpus/manifest.json",
    log:
        f"{LOGS}/build_corpus.log",
    params:
        stage_version=STAGE_VERSIONS["corpus"],
        resolved=resolved("corpus"),
    conda:
        ENVIRONMENT
    message:
        "corpus"
    shell:
        "openspectra corpus --config {input.config} --out $(dirname {output}) --log {log}"


rule build_tokenizer:
    input:
        config=ancient(f"{RESULTS}/configs/tokenizer.json"),
        corpus=f"{RESULTS}/corpus/manifest.json",
    output:
        f"{RESULTS}/tokenizer/manifest.json",
    log:
        f"{LOGS}/build_tokenizer.log",
    params:
        stage_version=STAGE_VERSIONS["tokenizer"],
        resolved=resolved("tokenizer"),
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
        config=ancient(f"{RESULTS}/configs/tokens/{{split}}.json"),
        corpus=f"{RESULTS}/corpus/manifest.json",
        tokenizer=f"{RESULTS}/tokenizer/manifest.json",
    output:
        f"{RESULTS}/tokens/{{split}}/manifest.json",
    log:
        f"{LOGS}/tokenize_split/{{split}}.log",
    params:
        stage_version=STAGE_VERSIONS["tokens"],
        resolved=resolved("tokens/{split}"),
    conda:
        ENVIRONMENT
    message:
        "tokens/{wildcards.split}"
    shell:
        "openspectra tokens --config {input.config} --corpus {input.corpus} --tokenizer {input.tokenizer}"
        " --threads {threads} --out $(dirname {output}) --log {log}"
