rule write_config:
    """Write the resolved config of one artifact: only the keys its stage reads, so that only they make it rerun."""
    input:
        lambda wildcards: recover(),
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


rule read_source:
    """Read one job's share of a source. This rule, `fetch_benchmarks` and `import_release` alone may need a network."""
    input:
        config=f"{RESULTS}/configs/sources/parts/{{source}}.json",
    output:
        f"{RESULTS}/sources/parts/{{source}}/{{job}}/manifest.json",
    log:
        f"{LOGS}/read_source/{{source}}/{{job}}.log",
    params:
        stage_version=STAGE_VERSIONS["source"],
    resources:
        **resources_of("read_source"),
    conda:
        ENVIRONMENT
    message:
        "source {wildcards.source}, job {wildcards.job}"
    shell:
        "openspectra read --config {input.config} --job {wildcards.job} --out $(dirname {output}) --log {log}"


rule list_sources:
    input:
        config=f"{RESULTS}/configs/sources.json",
        jobs=SOURCE_JOBS,
    output:
        f"{RESULTS}/sources/manifest.json",
    log:
        f"{LOGS}/list_sources.log",
    params:
        stage_version=STAGE_VERSIONS["sources"],
    resources:
        **resources_of("list_sources"),
    conda:
        ENVIRONMENT
    message:
        "sources"
    shell:
        "openspectra sources --config {input.config} --out $(dirname {output}) --log {log} {input.jobs}"


rule build_part:
    input:
        config=f"{RESULTS}/configs/corpus/parts.json",
        sources=f"{RESULTS}/sources/manifest.json",
    output:
        f"{RESULTS}/corpus/parts/{{part}}/manifest.json",
    log:
        f"{LOGS}/build_part/{{part}}.log",
    params:
        stage_version=STAGE_VERSIONS["part"],
    resources:
        **resources_of("build_part"),
    conda:
        ENVIRONMENT
    message:
        "corpus, part {wildcards.part}"
    shell:
        "openspectra part --config {input.config} --sources {input.sources} --part {wildcards.part}"
        " --out $(dirname {output}) --log {log}"


rule build_corpus:
    input:
        config=f"{RESULTS}/configs/corpus.json",
        sources=f"{RESULTS}/sources/manifest.json",
        parts=CORPUS_PARTS,
    output:
        f"{RESULTS}/corpus/manifest.json",
    log:
        f"{LOGS}/build_corpus.log",
    params:
        stage_version=STAGE_VERSIONS["corpus"],
    resources:
        **resources_of("build_corpus"),
    conda:
        ENVIRONMENT
    message:
        "corpus"
    shell:
        "openspectra corpus --config {input.config} --sources {input.sources} --out $(dirname {output}) --log {log}"
        " {input.parts}"


rule build_tokenizer:
    input:
        config=f"{RESULTS}/configs/tokenizer.json",
        corpus=CORPUS,
    output:
        f"{RESULTS}/tokenizer/manifest.json",
    log:
        f"{LOGS}/build_tokenizer.log",
    params:
        stage_version=STAGE_VERSIONS["tokenizer"],
        corpus=[f"--corpus {path}" for path in CORPUS],
    threads: threads_of("build_tokenizer")
    resources:
        **resources_of("build_tokenizer"),
    conda:
        ENVIRONMENT
    message:
        "tokenizer"
    shell:
        "openspectra tokenizer --config {input.config} {params.corpus} --threads {threads}"
        " --out $(dirname {output}) --log {log}"


rule tokenize_part:
    """Tokenize one part of the corpus, or index one ready token file where there is no corpus."""
    input:
        config=f"{RESULTS}/configs/tokens/parts.json",
        corpus_part=f"{RESULTS}/corpus/parts/{{part}}/manifest.json" if CORPUS else [],
        corpus=CORPUS,
        tokenizer=f"{RESULTS}/tokenizer/manifest.json",
    output:
        f"{RESULTS}/tokens/parts/{{part}}/manifest.json",
    log:
        f"{LOGS}/tokenize_part/{{part}}.log",
    params:
        stage_version=STAGE_VERSIONS["token_part"],
        corpus_part=f"--corpus-part {RESULTS}/corpus/parts/{{part}}" if CORPUS else "",
    threads: threads_of("tokenize_part")
    resources:
        **resources_of("tokenize_part"),
    conda:
        ENVIRONMENT
    message:
        "tokens, part {wildcards.part}"
    shell:
        "openspectra tokenize --config {input.config} {params.corpus_part} --part {wildcards.part}"
        " --tokenizer {input.tokenizer} --threads {threads} --out $(dirname {output}) --log {log}"


rule list_tokens:
    input:
        config=f"{RESULTS}/configs/tokens/{{split}}.json",
        corpus=CORPUS,
        tokenizer=f"{RESULTS}/tokenizer/manifest.json",
        parts=TOKEN_PARTS,
    output:
        f"{RESULTS}/tokens/{{split}}/manifest.json",
    log:
        f"{LOGS}/list_tokens/{{split}}.log",
    params:
        stage_version=STAGE_VERSIONS["tokens"],
        corpus=[f"--corpus {path}" for path in CORPUS],
    resources:
        **resources_of("list_tokens"),
    conda:
        ENVIRONMENT
    message:
        "tokens/{wildcards.split}"
    shell:
        "openspectra tokens --config {input.config} {params.corpus} --tokenizer {input.tokenizer}"
        " --out $(dirname {output}) --log {log} {input.parts}"


rule fetch_benchmarks:
    """Fetch the items of lm-eval's tasks; evaluation reads them from the cache that this fills."""
    input:
        config=f"{RESULTS}/configs/benchmarks.json",
    output:
        f"{RESULTS}/benchmarks/manifest.json",
    log:
        f"{LOGS}/fetch_benchmarks.log",
    params:
        stage_version=STAGE_VERSIONS["benchmarks"],
    resources:
        **resources_of("fetch_benchmarks"),
    conda:
        ENVIRONMENT
    message:
        "benchmark items"
    shell:
        "openspectra benchmarks --config {input.config} --out $(dirname {output}) --log {log}"


rule check_contamination:
    input:
        config=f"{RESULTS}/configs/contamination.json",
        corpus=CORPUS,
        tasks=BUILT_TASKS,
        benchmarks=SEARCHED,
    output:
        f"{RESULTS}/contamination/manifest.json",
    log:
        f"{LOGS}/check_contamination.log",
    params:
        stage_version=STAGE_VERSIONS["contamination"],
        tasks=[f"--tasks {path}" for path in BUILT_TASKS],
        benchmarks=[f"--benchmarks {path}" for path in SEARCHED],
    threads: threads_of("check_contamination")
    resources:
        **resources_of("check_contamination"),
    conda:
        ENVIRONMENT
    message:
        "benchmark items in the train split"
    shell:
        "openspectra contamination --config {input.config} --corpus {input.corpus} {params.tasks} {params.benchmarks}"
        " --threads {threads} --out $(dirname {output}) --log {log}"
