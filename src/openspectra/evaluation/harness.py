"""Evaluation with lm-eval: suites of tasks on one model, scores and every item's log-likelihoods kept.

Tasks run one after the other, each as a run of its own: the batches of a task, and so the last digits of its score,
then depend on no other task.
"""

import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Hashable
from functools import cache
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any, NamedTuple

from openspectra.artifacts import Artifact, sha256_of, write_csv
from openspectra.data.local_files import data_folder
from openspectra.errors import ConfigError, DamagedArtifactError, OpenSpectraError
from openspectra.evaluation.answers import Answers
from openspectra.evaluation.build_tasks import TASK_TABLE
from openspectra.evaluation.config import FILE_READERS, EvaluateConfig, TaskFiles
from openspectra.evaluation.published import SPLITS, WITHOUT, source_split
from openspectra.evaluation.scores import Scores, write_scores
from openspectra.stage_versions import STAGE_VERSIONS

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # without it every file of a data set is asked for five times before lm-eval gives up
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1",
    "TQDM_DISABLE": "1",
}
"""Set, where the caller has not, before the libraries that read them are imported."""
CORPORA = Path(__file__).with_name("corpora")
"""Tasks that measure perplexity on corpora of the paper which lm-eval does not have."""
DATA_COLUMNS = ("task", "split", "num_items", "sha256", "revision")
"""Of the items of each of lm-eval's own tasks, which no parent of an evaluation holds: the split they are from (`unknown`
where a file does not say), and the commit of the hub's data set where they came from there."""


class Evaluation:
    """lm-eval on one model, whose weights and task index are loaded once for all suites."""

    def __init__(self, model: Artifact, tasks: Artifact | None = None):
        """`tasks` is a folder made by `build_tasks`; names it does not hold are lm-eval's own tasks."""
        model.verify()
        if tasks:
            tasks.verify()
        self.model, self.tasks = model, tasks
        self._lm, self._dtype = None, None

    def run(self, config: EvaluateConfig, folder: Path, kept: Path | None = None) -> dict[str, Any]:
        """Write `scores.csv`, `documents.csv` and `items.parquet` of one suite; return the scores as `<task>/<metric>`.

        The file `kept` holds the answers so far, so that a killed evaluation goes on at the batch where it stopped.

        lm-eval's own tasks are read from the files that the config gives or from the cache of `datasets`; `data.csv`
        then says what items those were. Raises `ConfigError` for a task nobody knows, and `OpenSpectraError` for a score
        that is no number.
        """
        missing = {} if config.skip_missing else None
        runs = load_tasks(config.tasks, self.tasks, config.files, missing, config.num_fewshot)
        lm = self._language_model(config)
        scores = Scores(model_id=str(self.model.manifest.config.get("model_id", self.model.folder.name)))
        lm.answers = Answers(kept, self._identity(config))
        try:
            for run in runs.values():
                scores.add(_run(config, lm, run, scores.model_id), run["tasks"], lm)
        finally:
            lm.answers.close()
            lm.answers = Answers()
        write_scores(scores, folder)
        own = [name for name in runs if not self.tasks or not self.tasks.has(f"{name}.jsonl")]
        if own:
            rows = [row for name in own for row in _data_rows(runs[name]["tasks"], config.files.get(name))]
            write_csv(folder / "data.csv", DATA_COLUMNS, rows)
        if missing:
            write_csv(
                folder / "missing.csv", ("task", "reason"), [{"task": t, "reason": r} for t, r in missing.items()]
            )
        return scores.summary()

    def _identity(self, config: EvaluateConfig) -> list[Any]:
        """Return all that an answer depends on beside what is asked, to the last digit."""
        import torch

        from openspectra.device import device

        hashes = [self.model.sha256, self.tasks.sha256 if self.tasks else None]
        return [STAGE_VERSIONS["evaluate"], hashes, config.model_dump(mode="json"), device(), torch.get_num_threads()]

    def _language_model(self, config: EvaluateConfig):
        if self._dtype != config.dtype:
            self._lm = None  # before the other weights are read
            self._lm, self._dtype = _load_model(config, self.model), config.dtype
        self._lm.batch_size_per_gpu = config.batch_size
        return self._lm


def evaluate(config: EvaluateConfig, model: Artifact, folder: Path, tasks: Artifact | None = None) -> dict[str, Any]:
    """Run one suite on one model; see `Evaluation`."""
    return Evaluation(model, tasks).run(config, folder)


def load_tasks(
    names: list[str],
    tasks: Artifact | None = None,
    files: TaskFiles | None = None,
    missing: dict[str, str] | None = None,
    num_fewshot: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return lm-eval's loaded tasks and groups by name: those that `tasks` holds, else lm-eval's own.

    The items of the latter come from the file of the data folder that `files` gives, else from the cache of `datasets`.

    Indexing the 13,000 tasks that come with lm-eval takes seconds, so that is done only where one of them is named; it
    and the loading of each task are done once in a process, whatever the number of models.
    Raises `ConfigError` for tasks nobody knows, `OpenSpectraError` for those whose data cannot be had, a line each; with
    `missing` they are left out, and the reasons are written there.
    """
    built = json.loads(tasks.file(TASK_TABLE).read_text(encoding="utf-8")) if tasks else {}
    include_defaults = not set(names) <= set(built)
    index = Index(tasks and (tasks.folder, tasks.sha256), include_defaults)
    _require_known(names, task_manager(*index).all_tasks)
    from datasets.exceptions import DatasetsError

    loaded, problems = {}, {}
    for name in names:
        try:
            if name in built:
                loaded[name] = _load_built_task(name, built[name]["num_items"], num_fewshot, index)
            elif name in (files or {}):
                path = _file_of(name, data_folder() / files[name])
                loaded[name] = _load_task_of_file(name, path, sha256_of(path), num_fewshot, index)
            else:
                loaded[name] = _load_own_task(name, num_fewshot, index)
        except ConnectionError as error:
            problems[name] = (
                f"evaluate.tasks: {name}: its data are not in the cache of `datasets` ({error}); "
                "run `snakemake prefetch` for this study once where there is a network."
            )
        except (RuntimeError, DatasetsError, OSError, ValueError) as error:
            # a loading script, which `datasets` refuses; a data set that is not given to everybody; a part not fetched
            reason = str(error).partition("\n")[0]
            problems[name] = (
                f"evaluate.tasks: {name}: {reason}; give its items as a file, in `files` of the suite, "
                "or leave this task out of the study."
            )
    if missing is not None:
        missing |= problems
    elif problems:
        raise OpenSpectraError(*problems.values())
    return loaded


class Index(NamedTuple):
    """What tells one index of tasks from another: folder and hash of the built ones, and whether lm-eval's own are in it."""

    built: tuple[Path, str] | None
    include_defaults: bool


@cache
def task_manager(built: tuple[Path, str] | None, include_defaults: bool):
    """Return the index of lm-eval's own tasks with the corpora beside this file, and of the tasks in a folder.

    The hash tells one content of the folder from another.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from lm_eval.tasks import TaskManager

    folders = [*([str(built[0])] if built else []), *([str(CORPORA)] if include_defaults else [])]
    return TaskManager(include_path=folders or None, include_defaults=include_defaults)


def _require_known(names: list[str], known: list[str]) -> None:
    problems = []
    for name in sorted(set(names) - set(known)):
        close = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean `{close[0]}`?" if close else "`lm_eval ls tasks` prints the names."
        problems.append(f"evaluate.tasks: {name!r}: no such task; {remedy}")
    if problems:
        raise ConfigError(problems)


def _prepared(loaded: dict[str, Any], num_fewshot: int) -> dict[str, Any]:
    """Return loaded tasks that show `num_fewshot` examples, but those that by their own config show none.

    Each prepares its items once: lm-eval does so at every look at them, for HellaSwag two seconds each time.
    """
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        if task.config.process_docs and all(isinstance(split, Hashable) for split in task.dataset.values()):
            task.config.process_docs = cache(task.config.process_docs)
    return loaded


@cache
def _load_own_task(name: str, num_fewshot: int, index: Index) -> dict[str, Any]:
    return _prepared(task_manager(*index).load(name), num_fewshot)


@cache
def _load_built_task(name: str, num_items: int, num_fewshot: int, index: Index) -> dict[str, Any]:
    """Return the loaded task, having read the very file of the folder of tasks, from any working directory.

    `datasets` knows a file it has seen by path and time alone; an empty cache makes it read the content.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    folder, _ = index.built
    entry, data_file = task_manager(*index).task_index[name], folder / f"{name}.jsonl"
    with tempfile.TemporaryDirectory(prefix="openspectra-") as empty:
        source = {"data_files": {"test": str(data_file)}, "cache_dir": empty, "keep_in_memory": True}
        loaded = task_manager(*index).load({**load_yaml(entry.yaml_path), "dataset_kwargs": source})
    if entry.yaml_path.parent != folder or len(loaded["tasks"][name].eval_docs) != num_items:
        raise DamagedArtifactError(
            f"{entry.yaml_path}: did not load the {num_items} items of {data_file}; rerun stage `tasks`."
        )
    return _prepared(loaded, num_fewshot)


def _file_of(name: str, path: Path) -> Path:
    if not path.is_file():
        raise ConfigError([f"evaluate.files.{name}: {path}: no such file; put it there or set OPENSPECTRA_DATA."])
    return path


@cache
def _load_task_of_file(name: str, path: Path, sha256: str, num_fewshot: int, index: Index) -> dict[str, Any]:
    """Return lm-eval's own task with the items of a file in place of those of its data set; all else is lm-eval's.

    The hash tells one content of the file from another.
    """
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = task_manager(*index)
    entry = manager.task_index[name]
    if entry.kind.name != "TASK":
        raise ConfigError(
            [f"evaluate.files.{name}: a group of tasks, not one of them; name its data sets' tasks singly."]
        )
    source = {"dataset_path": FILE_READERS[path.suffix], "dataset_name": None, "test_split": "test"}
    others = dict.fromkeys(("training_split", "validation_split", "fewshot_split"))
    try:
        with tempfile.TemporaryDirectory(prefix="openspectra-") as empty:
            source["dataset_kwargs"] = {"data_files": {"test": str(path)}, "cache_dir": empty, "keep_in_memory": True}
            return _prepared(manager.load({**load_yaml(entry.yaml_path), **source, **others}), num_fewshot)
    except (DatasetsError, ValueError, KeyError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ConfigError(
            [
                f"evaluate.files.{name}: {path}: does not hold the task's items ({reason}); write them in the columns of its data set."
            ]
        ) from None


def _data_rows(tasks: dict[str, Any], path: str | None) -> list[dict[str, Any]]:
    rows = []
    for name, task in tasks.items():
        digest = hashlib.sha256()
        for item in task.eval_docs:
            digest.update(json.dumps(item, ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n")
        split = task.config.test_split or task.config.validation_split
        info = task.dataset[split].info
        rows.append(
            {
                "task": name,
                "split": _split_in(path) if path else source_split(info.description or "") or split,
                "num_items": len(task.eval_docs),
                "sha256": digest.hexdigest(),
                "revision": _revision(task.dataset[split]),
            }
        )
    return rows


def _split_in(path: str) -> str:
    """Return the split that the path of a file names."""
    words = set(re.split(r"[^a-z]+", "/".join(PurePosixPath(path).parts).lower()))
    return next((split for split in SPLITS if split in words), "unknown")


def _revision(items) -> str | None:
    """Return the commit of the hub's data set that items came from: a folder of the caches is called so."""
    names = [*(items.info.download_checksums or {}), *(file["filename"] for file in items.cache_files)]
    return next((found[1] for name in names if (found := re.search(r"/([0-9a-f]{40})/", name))), None)


def _load_model(config: EvaluateConfig, model: Artifact):
    """Return lm-eval's view of the model's folder. Log-softmax in float32: half precision blurs perplexities."""
    import transformers

    from openspectra.device import device
    from openspectra.evaluation.language_model import LanguageModel

    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    return LanguageModel(
        pretrained=str(model.folder),
        dtype=config.dtype,
        softmax_dtype="float32",
        batch_size=config.batch_size,
        device=device(),
    )


def _run(config: EvaluateConfig, lm, run: dict[str, Any], model_id: str) -> dict[str, Any]:
    """Return lm-eval's results of one task or group, as `lm_eval.simple_evaluate` computes them.

    That function itself also describes the machine (1.3 s) and the working directory, which an artifact must not hold.
    Standard errors of means are computed from the items. The others are left to the report, which resamples whole
    documents; lm-eval would resample single items, which is too optimistic where a document gives several.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate as evaluate_tasks

    for task in run["tasks"].values():
        _require_examples(task)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    try:
        sample = _sample(config, run["tasks"])
        return evaluate_tasks(lm, run, limit=None if sample else config.limit, samples=sample, bootstrap_iters=0)
    except OverflowError:
        names = ", ".join(run["tasks"])
        raise OpenSpectraError(
            f"{model_id}: {names}: a perplexity is too large for a number; the model is broken."
        ) from None


def _require_examples(task) -> None:
    """Refuse examples from a split that no file was given for. What `files` give is zero-shot by its config."""
    split = task.config.test_split or task.config.validation_split
    _, _, absent = (task.dataset[split].info.description or "").partition(WITHOUT)
    if task.get_config("num_fewshot") and absent:
        raise ConfigError(
            [
                f"evaluate.num_fewshot: {task.config.task}: its data were laid out of files without {absent}; give that split "
                "to `openspectra mirror`, or evaluate zero-shot."
            ]
        )


def _sample(config: EvaluateConfig, tasks: dict[str, Any]) -> dict[str, list[int]] | None:
    """Return the places of the items that are scored of each task, in order; None where it is not a sample by seed."""
    if config.sample_seed is None:
        return None
    return {
        name: sorted(Random(f"{config.sample_seed}/{name}").sample(range(count), min(config.limit, count)))
        for name, task in tasks.items()
        if (count := len(task.eval_docs))
    }
