"""Corpora far larger than perplexity needs: one file of each, and of that the first documents.

By the file, which the hub's cache gives without a network, too: `datasets` finds no part of a data set again by itself.
"""

NUM_DOCUMENTS = 1000


def slimpajama_validation(**_):
    """Return the first documents of the first file of SlimPajama's validation set."""
    return _first("cerebras/SlimPajama-627B", "validation/chunk1/example_holdout_0.jsonl.zst", "json")


def cosmopedia(**_):
    """Return the first documents of Cosmopedia's Stanford courses."""
    return _first("HuggingFaceTB/cosmopedia", "data/stanford/train-00000-of-00013.parquet", "parquet")


def _first(repository: str, name: str, reader: str):
    from datasets import DatasetDict, load_dataset
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(repository, name, repo_type="dataset")
    return DatasetDict({"test": load_dataset(reader, data_files=path, split=f"train[:{NUM_DOCUMENTS}]")})
