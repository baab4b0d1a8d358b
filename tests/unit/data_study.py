"""The data stages of a study, run in one process as the workflow would run them."""

from pathlib import Path
from typing import Any

import numpy as np

from openspectra.artifacts import Artifact, open_artifact, role_of, write_artifact
from openspectra.config import Config
from openspectra.data.corpus import build_corpus, build_part, list_sources
from openspectra.data.read import read_source
from openspectra.data.token_files import index_token_file
from openspectra.data.tokenizer import build_tokenizer
from openspectra.data.tokenizing import build_token_part, build_tokens
from openspectra.strict_yaml import read_yaml
from openspectra.study import Study

ROOT = Path(__file__).parents[2]
WORDS = ["def", "return", "x", "value", "import", "(", ")", ":", "\n    ", "=", "self", "naïve", "界"]


def texts(count: int, seed: int = 0) -> list[str]:
    """Return different texts of 80 words each."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 80)) + f" {seed}.{number}" for number in range(count)]


def study_of(**sections: Any) -> Study:
    """Return the tiny study with other data sections."""
    content = read_yaml(ROOT / "studies" / "tiny.yaml") | {"tokenizer": {"vocab_size": 280}} | sections
    return Study.model_validate(content)


def corpus_of(**keys: Any) -> dict[str, Any]:
    """Return a corpus section of local files; `keys` replace what is given here."""
    files = {"files": {"adapter": "files", "files": ["*.jsonl"]}}
    return {"sources": files, "valid_fraction": 0.2, "test_fraction": 0.2} | keys


class DataStudy:
    """The artifacts of a study's data stages below `folder`."""

    def __init__(self, study: Study, folder: Path):
        self.study, self.folder = study, folder
        self.configs = study.data_configs

    def read_job(self, name: str, job: int) -> Artifact:
        config = self._config(f"sources/parts/{name}", job=job)
        return self._make(f"sources/parts/{name}/{job}", "source", config, read_source)

    def list_sources(self, *jobs: Artifact) -> Artifact:
        return self._make("sources", "sources", self._config("sources"), list_sources, parts=jobs)

    def read(self) -> Artifact:
        return self.list_sources(*(self.read_job(name, job) for name, job in self.study.source_jobs))

    def corpus(self) -> Artifact:
        sources = self.read()
        parts = [
            self._make(f"corpus/parts/{n}", "part", self._config("corpus/parts", part=n), build_part, sources=sources)
            for n in range(self.study.num_parts)
        ]
        return self._make("corpus", "corpus", self._config("corpus"), build_corpus, sources=sources, parts=parts)

    def tokenizer(self, *corpus: Artifact) -> Artifact:
        inputs = {"corpus": corpus[0]} if corpus else {}
        return self._make("tokenizer", "tokenizer", self._config("tokenizer"), build_tokenizer, **inputs)

    def tokens(self, split: str = "train") -> Artifact:
        corpus = [self.corpus()] if self.study.corpus else []
        tokenizer = self.tokenizer(*corpus)
        parts = []
        for number in range(self.study.num_parts):
            config = self._config("tokens/parts", part=number)
            inputs = {"part": open_artifact(self.folder / f"corpus/parts/{number}")} if corpus else {}
            stage = build_token_part if corpus else index_token_file
            parts.append(
                self._make(f"tokens/parts/{number}", "token_part", config, stage, **inputs, tokenizer=tokenizer)
            )
        config = self._config(f"tokens/{split}")
        return self._make(f"tokens/{split}", "tokens", config, build_tokens, tokenizer=tokenizer, parts=parts)

    def _config(self, key: str, **update: int) -> Config:
        return self.configs[key].model_copy(update=update)

    def _make(self, path: str, stage: str, config: Config, function, parts=(), **inputs: Artifact) -> Artifact:
        given = inputs | ({"parts": list(parts)} if parts else {})
        with write_artifact(self.folder / path, stage, config, inputs | {role_of(p): p for p in parts}) as draft:
            draft.metrics |= function(config, **given, folder=draft.folder)
        return open_artifact(self.folder / path, stage)
