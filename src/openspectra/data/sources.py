"""Where documents come from: adapters of one interface, which yield rows in an order that no folder listing decides.

Only the hub touches the network. Whatever is wrong with a row or a file is told as the row's problem; what follows is
the source's policy, applied by the reader.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from openspectra.data.config import FilesSource, HubSource, ReadConfig
from openspectra.data.formats import read_text
from openspectra.data.hub import hub_rows
from openspectra.data.local_files import LocalFile, file_rows
from openspectra.data.rows import Row
from openspectra.errors import ConfigError

TEST_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Folders of the standard library that are not part of the embedded corpus: its test packages and other people's code."""


def rows_of(config: ReadConfig, files: list[LocalFile]) -> Iterator[Row]:
    """Yield the rows of one job's share of a source, of local files those of `files`.

    Raises `ConfigError` naming the source where it is not as the study says.
    """
    try:
        if isinstance(config.source, FilesSource):
            yield from file_rows(config, files)
        else:
            yield from hub_rows(config) if isinstance(config.source, HubSource) else _stdlib_rows(config)
    except ConfigError as error:
        raise ConfigError([f"corpus.sources.{config.name}: {problem}" for problem in error.problems]) from None


def _stdlib_rows(config: ReadConfig) -> Iterator[Row]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in root.rglob("*.py") if not TEST_FOLDERS & set(path.relative_to(root).parts))
    # _sysconfigdata holds the paths of the machine that built the interpreter
    paths = [path for path in paths if not path.name.startswith("_sysconfigdata")]
    for path in paths[config.job :: config.source.num_jobs]:
        yield from read_text(path, path.relative_to(root).as_posix(), config.max_document_bytes)
