"""OpenSpectra: corpus -> tokens -> FloatLM and TriLM -> GPTQ -> evaluation -> report, one rule per stage."""

import gc

from snakemake.utils import min_version

min_version("9.27")
gc.freeze()  # no garbage is sought in what is loaded by now, neither now nor at the end: a fifth of a short run


configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/dry_run.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/recovery.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    prefetch,
    corpus,
    tokens,
    pretrain,
    quantize,
    evaluate,
    export,
    report,
    track_artifacts,
    write_config,


rule all:
    default_target: True
    input:
        lambda wildcards: UP_TO["all"],


onstart:
    track_live()


onerror:
    render_what_is_there()


# The stages by name: `snakemake --cores all pretrain` builds what is missing up to there.
rule prefetch:  # all that may need a network: run it where there is one
    input:
        SOURCE_JOBS,
        BENCHMARKS,
        RELEASED,


rule corpus:
    input:
        lambda wildcards: UP_TO["corpus"],


rule tokens:
    input:
        lambda wildcards: UP_TO["tokens"],


rule pretrain:
    input:
        lambda wildcards: UP_TO["pretrain"],


rule quantize:
    input:
        lambda wildcards: UP_TO["quantize"],


rule evaluate:
    input:
        lambda wildcards: UP_TO["evaluate"],


rule export:
    input:
        lambda wildcards: UP_TO["export"],


rule report:
    input:
        lambda wildcards: UP_TO["report"],
