"""The stages that make tokens: each part of the corpus tokenized by a job of its own, then the shards of all listed.

Every document ends with the end-of-text token.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact, parts_of, role_of, write_json
from openspectra.data.config import TokenPartConfig, TokensConfig
from openspectra.data.documents import iterate
from openspectra.data.encoding import Encoder
from openspectra.data.round_trip import require_kept
from openspectra.data.shards import SHARDS, ShardWriter, dtype_for, in_split
from openspectra.data.tokenizer import end_of_text_id, fingerprint, load_tokenizer, num_ids
from openspectra.errors import DamagedArtifactError, OpenSpectraError


def build_token_part(config: TokenPartConfig, part: Artifact, tokenizer: Artifact, folder: Path) -> dict[str, Any]:
    """Write the shards and indices of one part's splits; return counts, dtype and the tokenizer's fingerprint."""
    loaded, end_of_text = load_tokenizer(tokenizer), end_of_text_id(tokenizer)
    dtype = dtype_for(num_ids(loaded))
    encoder = Encoder(loaded, dtype)
    splits = {}
    for split in config.splits:
        writer = ShardWriter(folder, split, dtype, config.tokens_per_shard)
        sources = defaultdict(Counter)
        for document, ids, num_bytes, lost_bytes in encoder.encode(iterate(part.file(f"{split}.parquet"))):
            ids.append(end_of_text)
            writer.add(ids, document.id, document.source)
            sources[document.source].update(documents=1, bytes=num_bytes, tokens=len(ids), lost_bytes=lost_bytes)
        counts = {source: dict(count) for source, count in sorted(sources.items())}
        splits[split] = {"shards": writer.close(), "num_tokens": writer.num_tokens, "sources": counts}
    return {"dtype": dtype.str, "tokenizer_sha256": fingerprint(tokenizer), "splits": splits}


def build_tokens(config: TokensConfig, tokenizer: Artifact, parts: list[Artifact], folder: Path) -> dict[str, Any]:
    """Write `shards.json`, the shards of all parts in order; return counts, dtype and the tokenizer's fingerprint.

    Raises `DamagedArtifactError` where a part was made with another tokenizer, `OpenSpectraError` where more of the text
    does not come back from its tokens than the tokenizer's config allows.
    """
    parts = parts_of(parts, "token_part")
    shards, sources = [], defaultdict(Counter)
    num_tokens = 0
    for part in parts:
        metrics = part.manifest.metrics
        if metrics["tokenizer_sha256"] != fingerprint(tokenizer):
            raise DamagedArtifactError(
                f"{part.folder}: made with tokenizer {metrics['tokenizer_sha256'][:12]}, but {tokenizer.folder} is "
                f"{fingerprint(tokenizer)[:12]}; tokenize this part again."
            )
        split = metrics["splits"][config.split]
        for shard in split["shards"]:
            shards.append(in_split(shard, part, role_of(part), num_tokens))
        num_tokens += split["num_tokens"]
        for source, count in split["sources"].items():
            sources[source].update(count)
    lost_bytes, num_bytes = (sum(count[key] for count in sources.values()) for key in ("lost_bytes", "bytes"))
    require_kept(f"split `{config.split}`", lost_bytes, num_bytes, tokenizer.manifest.config["max_lost_fraction"])
    if not shards:
        section = "token_files" if any("files" in part.manifest.config for part in parts) else "corpus"
        raise OpenSpectraError(
            f"tokens: split `{config.split}` has no tokens; give more documents, or another {section}.valid_fraction or "
            f"{section}.test_fraction."
        )
    write_json(folder / SHARDS, shards)
    return {
        "num_tokens": num_tokens,
        "num_documents": sum(count["documents"] for count in sources.values()),
        "num_shards": len(shards),
        "dtype": parts[0].manifest.metrics["dtype"],
        "tokenizer_sha256": fingerprint(tokenizer),
        "sources": {source: dict(count) for source, count in sorted(sources.items())},
    }
