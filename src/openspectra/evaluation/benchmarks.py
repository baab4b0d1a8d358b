"""The items of lm-eval's own tasks: fetched once, where there is a network, for the search in the training text.

Loading them fills the cache of `datasets`, from which evaluation reads them later without a network.
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.evaluation.config import BenchmarksConfig
from openspectra.evaluation.harness import load_tasks

logger = logging.getLogger(__name__)


def fetch_benchmarks(config: BenchmarksConfig, folder: Path) -> dict[str, Any]:
    """Write `<task>.jsonl` of every task or group: item_id (`task:number`) and the item as lm-eval has it.

    Returns the number of items by task, and the reason why any are `missing`: one task that cannot be had must not keep
    the others from being scored. Raises `ConfigError` for what the study must mend, and `OpenSpectraError` where none
    can be had.
    """
    counts, missing = Counter(), {}
    for name in config.tasks:
        try:
            loaded = load_tasks([name], files={name: config.files[name]} if name in config.files else {})[name]
        except ConfigError:
            raise
        except OpenSpectraError as error:
            missing[name] = str(error)
            logger.warning("%s", error)
            continue
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for leaf, task in loaded["tasks"].items():
                for number, document in enumerate(task.eval_docs, 1):
                    counts[name] += 1
                    row = {"item_id": f"{leaf}:{number}", "item": document}
                    file.write(json.dumps(row, ensure_ascii=False, sort_keys=True, default=str) + "\n")
    if not counts:
        raise OpenSpectraError(*missing.values())
    return {"num_items": dict(sorted(counts.items()))} | ({"missing": missing} if missing else {})
