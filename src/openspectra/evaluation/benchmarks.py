"""The items of lm-eval's own tasks: fetched once, where there is a network, for the search in the training text.

Loading them fills the cache of `datasets`, from which evaluation reads them later without a network.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from openspectra.evaluation.config import BenchmarksConfig
from openspectra.evaluation.harness import load_tasks


def fetch_benchmarks(config: BenchmarksConfig, folder: Path) -> dict[str, Any]:
    """Write `<task>.jsonl` of every task or group: item_id (`task:number`) and the item as lm-eval has it.

    Returns the number of items by task. Raises what `load_tasks` raises.
    """
    counts = Counter()
    for name, loaded in load_tasks(config.tasks, files=config.files).items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for leaf, task in loaded["tasks"].items():
                for number, document in enumerate(task.eval_docs, 1):
                    counts[name] += 1
                    row = {"item_id": f"{leaf}:{number}", "item": document}
                    file.write(json.dumps(row, ensure_ascii=False, sort_keys=True, default=str) + "\n")
    return {"num_items": dict(sorted(counts.items()))}
