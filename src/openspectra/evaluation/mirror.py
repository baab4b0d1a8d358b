"""Files with the columns of the hub's data sets, laid into the cache of `datasets` as if the hub had given them.

lm-eval's own tasks and groups then run without a network, from the workflow and from lm-eval's own command line. What
stands in for another split is written into the data set's description, which evaluation records beside the scores.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openspectra.artifacts import sha256_of
from openspectra.errors import ConfigError
from openspectra.evaluation.config import FILE_READERS
from openspectra.evaluation.harness import task_manager
from openspectra.evaluation.published import SPLITS, TASKS, describe

PREFIX = "mirror-"
OTHER_NAMES = {
    "truthfulqa/multiple_choice": "truthfulqa_mc1",
    "truthfulqa/generation": "truthfulqa_gen",
}
"""Folders that are not called like a task, and a task that reads the same data set."""
NUM_ITEMS = {task.name: task.num_items for task in TASKS.values()} | {
    "toxigen": 940,
    "copa": 100,
    "wikitext": 62,
    "bbq": 58_492,
}
"""Items of the split that is scored, as the hub has it."""
MMLU = "mmlu"


@dataclass
class Mirrored:
    """A data set of the hub as a task of lm-eval reads it, and the files that were found for it."""

    task: str
    repository: str
    config: str
    splits: list[str]
    """Those that the task names; lm-eval reads them all, and the scored one is the first."""
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The split whose items are scored."""
        return self.splits[0] if self.splits[0] in self.files else next(name for name in SPLITS if name in self.files)

    @property
    def folder(self) -> Path:
        """Where `datasets` looks for it, below its cache."""
        from datasets.naming import camelcase_to_snakecase

        owner, name = self.repository.split("/")
        return Path(f"{owner}___{camelcase_to_snakecase(name)}", self.config, "0.0.0")


def mirror(folder: Path) -> list[str]:
    """Lay what is below `folder` into the cache of `datasets`; return a line on each task: items, and what is other.

    Read are `<task>/<split>.parquet` (.json, .jsonl), `mmlu/<split>/<subject>.parquet` and
    `truthfulqa/<config>_<split>.parquet`. Raises `ConfigError` where nothing is a task's, or a file cannot be read.
    """
    found, unknown = _data_sets(folder)
    import datasets  # after the settings that it reads at import

    if not found:
        raise ConfigError([f"{folder}: holds no file `<task>/<split>.parquet` of a task of lm-eval; name its folder."])
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    counts: dict[str, int] = {}
    lines: dict[str, str] = {}
    for each in found:
        name = MMLU if each.task.startswith(f"{MMLU}_") else each.task
        if any(not path.name.startswith(PREFIX) for path in (cache / each.folder).glob("*")):
            lines[name] = "left as it is: the cache holds what the hub gave"
            continue
        counts[name] = counts.get(name, 0) + _lay_out(each, cache)
        lines[name] = _remark(name, each, counts[name])
    return (
        [f"{name}: {line}" for name, line in sorted(lines.items())]
        + [f"{path}: left out, no task of lm-eval reads it" for path in unknown]
        + [f"laid out in {cache}"]
    )


def _data_sets(folder: Path) -> tuple[list[Mirrored], list[str]]:
    """Return the data sets that files were found for, and the files of none."""
    index = task_manager(None, True).task_index
    from lm_eval.tasks._yaml_loader import load_yaml

    found: dict[str, Mirrored] = {}
    unknown = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in FILE_READERS):
        name, split = _name_and_split(path.relative_to(folder).with_suffix(""))
        task = OTHER_NAMES.get(name, name)
        if name.startswith(f"{MMLU}/"):
            task = f"{MMLU}_{name.partition('/')[2]}_continuation"
        if split is None or task not in index or index[task].kind.name != "TASK":
            unknown.append(str(path.relative_to(folder)))
            continue
        if task not in found:
            config = load_yaml(index[task].yaml_path)
            names = [config.get(f"{key}_split") for key in ("test", "validation", "training", "fewshot")]
            splits = list(dict.fromkeys(each for each in names if each))
            found[task] = Mirrored(task, config["dataset_path"], config.get("dataset_name") or "default", splits)
        found[task].files[split] = path
    return list(found.values()), unknown


def _name_and_split(path: Path) -> tuple[str, str | None]:
    """Return what a file is of and its split: `mmlu/test/astronomy` is (`mmlu/astronomy`, `test`)."""
    parts = list(path.parts)
    for place, part in reversed(list(enumerate(parts))):
        before, _, last = part.rpartition("_")
        if last in SPLITS:
            return "/".join([*parts[:place], *([before] if before else []), *parts[place + 1 :]]), last
    return path.as_posix(), None


def _lay_out(data_set: Mirrored, cache: Path) -> int:
    """Write the data set where `datasets` looks for it; return the number of items that are scored."""
    import pyarrow.parquet
    from datasets.packaged_modules.parquet.parquet import Parquet

    files = {name: data_set.files.get(name) for name in data_set.splits}
    files[data_set.splits[0]] = data_set.files[data_set.source]
    identity = [data_set.source, *((name, path and sha256_of(path)) for name, path in files.items())]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    target = cache / data_set.folder / f"{PREFIX}{key}"
    for old in (cache / data_set.folder).glob(f"{PREFIX}*"):
        if old != target:
            shutil.rmtree(old)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=cache) as scratch:
        rows = {name: _rows(path, scratch) for name, path in files.items() if path}
        scored = rows[data_set.splits[0]]
        for name in files:  # `datasets` reads no empty split, and lm-eval builds no task without: one item stands there
            pyarrow.parquet.write_table(rows.get(name, scored.slice(0, 1)), Path(scratch, f"{name}.parquet"))
        if not target.is_dir():
            builder = Parquet(
                cache_dir=scratch,
                dataset_name=data_set.repository.split("/")[1],
                config_name=data_set.config,
                data_files={name: str(Path(scratch, f"{name}.parquet")) for name in files},
            )
            absent = [name for name in data_set.splits[1:] if name not in data_set.files]
            builder.info.description = describe(data_set.source, absent)
            builder.download_and_prepare(output_dir=str(Path(scratch, "prepared")))
            target.parent.mkdir(parents=True, exist_ok=True)
            Path(scratch, "prepared").rename(target)
        return scored.num_rows


def _rows(path: Path, scratch: str) -> Any:
    """Return the rows of a file as a table of Arrow."""
    import pyarrow.parquet
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        return load_dataset(
            FILE_READERS[path.suffix], data_files=str(path), split="train", cache_dir=scratch
        ).data.table
    except (DatasetsError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ConfigError([f"{path}: cannot be read ({reason}); write it anew."]) from None


def _remark(name: str, data_set: Mirrored, count: int) -> str:
    """Return the number of items, and in what they are not those that lm-eval's task scores."""
    whole = NUM_ITEMS.get("mmlu_continuation" if name == MMLU else data_set.task)
    remarks = []
    if data_set.source != data_set.splits[0]:
        remarks.append(f"{data_set.source} in place of {data_set.splits[0]}")
    elif whole and count != whole:
        remarks.append(f"the hub has {whole:,}")
    if absent := [split for split in data_set.splits[1:] if split not in data_set.files]:
        remarks.append(f"no {', no '.join(absent)}: zero-shot only")
    return f"{count:,} items of {data_set.source}" + (f" ({'; '.join(remarks)})" if remarks else "")
