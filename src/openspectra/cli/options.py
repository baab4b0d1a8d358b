"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Option("--config", help="Resolved config of this stage (JSON).")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the artifact to write.")]
Log = Annotated[Path | None, typer.Option("--log", help="File that takes every log line.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads; equal threads give equal bits.")]
Artifacts = Annotated[list[Path], typer.Argument(help="Artifact folders.")]
Corpus = Annotated[Path, typer.Option("--corpus", help="Corpus artifact.")]
CorpusIfAny = Annotated[Path | None, typer.Option("--corpus", help="Corpus artifact; none for ready tokens.")]
Tokenizer = Annotated[Path, typer.Option("--tokenizer", help="Tokenizer artifact.")]
Train = Annotated[Path, typer.Option("--train", help="Token shards of the train split.")]
Valid = Annotated[Path, typer.Option("--valid", help="Token shards of the valid split.")]
Model = Annotated[Path, typer.Option("--model", help="Model artifact.")]
StudyName = Annotated[str, typer.Argument(help="Name of the study.")]
