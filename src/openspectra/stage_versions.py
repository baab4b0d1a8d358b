"""The number of each stage. Raise it when a change alters what the stage produces.

Snakemake passes it as a param: a raised number reruns that stage and what follows, and says why. It is part of every
manifest, so artifacts of two versions are never taken for each other.
"""

STAGE_VERSIONS = {
    "source": 3,
    "sources": 1,
    "part": 3,
    "corpus": 4,
    "tokenizer": 2,
    "token_part": 3,
    "tokens": 3,
    "benchmarks": 1,
    "contamination": 3,
    "pretrain": 3,
    "checkpoint": 1,
    "quantize": 2,
    "tasks": 1,
    "evaluate": 1,
    "report": 3,
}
