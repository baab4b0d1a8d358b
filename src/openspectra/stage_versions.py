"""The number of each stage. Raise it when a change alters what the stage produces.

Snakemake passes it as a param: a raised number reruns that stage and what follows, and says why. It is part of every
manifest, so artifacts of two versions are never taken for each other.
"""

STAGE_VERSIONS = {
    "source": 4,
    "sources": 1,
    "part": 3,
    "corpus": 4,
    "tokenizer": 3,
    "token_part": 4,
    "tokens": 4,
    "benchmarks": 1,
    "contamination": 5,
    "pretrain": 3,
    "checkpoint": 2,
    "release": 1,
    "quantize": 4,
    "export": 1,
    "tasks": 1,
    "evaluate": 4,
    "report": 8,
}
