"""The Hugging Face hub: a data set at a pinned commit, streamed through `datasets`. The one adapter that needs a network."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from openspectra.data.config import HubSource, ReadConfig
from openspectra.data.rows import (
    NOT_READABLE,
    ROWS_AT_A_TIME,
    Row,
    cause_of,
    damaged_file,
    refuse_disk_error,
    rows_of_table,
)
from openspectra.errors import ConfigError, OpenSpectraError

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger("traceback")
"""To the log file alone; the console gets one line."""


def hub_rows(config: ReadConfig) -> Iterator[Row]:
    """Yield the rows of one job's share of the files, by split and file; places are `data set/split/number of file:row`.

    A file is the finest unit of damage here: what `datasets` cannot read ends it. Raises `ConfigError` for what the data
    set does not have, `OpenSpectraError` where the hub cannot be reached.
    """
    source = config.source
    for split, hub_split in source.split.items() if isinstance(source.split, dict) else [(None, source.split)]:
        rows = _open(source, hub_split)
        for file in range(config.job, rows.num_shards, source.num_jobs):
            place = f"{source.path}/{hub_split}/{file:05d}"
            for row in _file_rows(rows.shard(rows.num_shards, file), source, place):
                yield row._replace(split=split)


def _open(source: HubSource, hub_split: str) -> "datasets.IterableDataset":
    import datasets
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    try:
        return datasets.load_dataset(
            source.path, source.name, revision=source.revision, split=hub_split, streaming=True
        ).with_format("arrow")
    except RepositoryNotFoundError:
        problem = "no such data set, or no access to it"
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:  # RuntimeError: a loading script
        problem = cause_of(error)
    except (OSError, HTTPError) as error:
        raise _no_answer(source.path, error) from None
    raise ConfigError([f"{source.path}: {problem}; correct path, name, revision or split."])


def _file_rows(rows: "datasets.IterableDataset", source: HubSource, place: str) -> Iterator[Row]:
    from datasets.exceptions import CastError
    from huggingface_hub.errors import HTTPError

    number = 1
    try:
        for table in rows.iter(ROWS_AT_A_TIME):
            yield from rows_of_table(table, source, place, number)
            number += table.num_rows
    except (CastError, TypeError) as error:
        raise ConfigError(
            [
                f"{place}: columns or types differ from those that the data set begins with "
                f"({cause_of(error)}); name a subset, or fetch the files and read them with adapter `files`."
            ]
        ) from None
    except (ConnectionError, TimeoutError, HTTPError) as error:  # after the many tries of `datasets`
        raise _no_answer(place, error) from None
    except NOT_READABLE as error:
        refuse_disk_error(error, place)
        logger.info("%s: not readable", place, exc_info=True)
        yield damaged_file(place, error)


def _no_answer(place: str, error: Exception) -> OpenSpectraError:
    response = getattr(error, "response", None)
    if response is not None and 400 <= response.status_code < 500:
        return ConfigError([f"{place}: the hub refuses it ({cause_of(error)}); get access, or correct the source."])
    return OpenSpectraError(
        f"{place}: the hub cannot be reached ({type(error).__name__}: {cause_of(error)}); "
        "run the same command again where there is a network."
    )
