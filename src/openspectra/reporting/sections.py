"""What each section of the page shows: figures with their captions, and the headline numbers."""

from dataclasses import dataclass, field

import pandas as pd

from openspectra.identity import kind_label
from openspectra.reporting import scaling_figures, ternary_figures, training_figures
from openspectra.reporting.drawing import Drawing
from openspectra.reporting.formats import counted
from openspectra.reporting.load import Results
from openspectra.reporting.scaling_figures import Score
from openspectra.reporting.statistics import DocumentLosses, main_scores, mean_accuracy
from openspectra.reporting.sweep import Choice
from openspectra.reporting.tables import TRAINING_KEYS, Gap, training_of
from openspectra.reporting.ternary import largest_matrices
from openspectra.reporting.twins import Trajectory
from openspectra.training.spikes import DEVIATIONS, WINDOW

MAX_TASK_PANELS = 12
"""With more tasks than this the mean over them stands for all in the figures."""


@dataclass(frozen=True)
class FigureGroup:
    """Figures that share a heading, a caption and notes below. In `pairs` they stand two by two, else as many as fit."""

    title: str
    caption: str
    drawings: list[Drawing]
    pairs: bool = False
    notes: list[str] = field(default_factory=list)


def headline(results: Results, losses: DocumentLosses) -> list[tuple[str, str]]:
    """Return the headline numbers with their captions; what is unknown is left out."""
    metrics = {artifact.manifest.stage: artifact.manifest.metrics for artifact in results.artifacts}
    train = [
        artifact.manifest.metrics.get("num_tokens")
        for artifact in results.artifacts
        if artifact.manifest.stage == "tokens" and artifact.manifest.config["split"] == "train"
    ]
    evaluated = sum(bool(model.evaluations) for model in results.study_models)
    models = (
        ("training runs", len(results.models))
        if results.is_sweep
        else (f"models, {evaluated} evaluated", len(results.study_models))
    )
    facts = [
        models,
        ("size" if len(results.sizes) == 1 else "sizes", len(results.sizes)),
        ("tokens in the train split", train[0] if train else None),
        ("entries in the vocabulary", metrics.get("tokenizer", {}).get("vocab_size")),
        ("test documents scored", losses.num_documents or None),
        ("tokens in them", losses.num_tokens or None),
    ]
    return [(caption, counted(value)) for caption, value in facts if value is not None]


def scaling_section(results: Results, model_table: pd.DataFrame) -> list[FigureGroup]:
    """Return the central figures: loss and accuracy against parameters and against size in bits."""
    columns = {"test_loss": "value", "test_loss_low": "low", "test_loss_high": "high"}
    losses = model_table[["model_id", *columns]].rename(columns=columns)
    groups = [
        FigureGroup(
            "Test loss by parameters and by size in bits",
            "Test loss of every model against the number of parameters and against the size in bits, one line per family; "
            "lower is better. Thin bars: 95\u00a0% interval over test documents. What is common to all models "
            "cancels in the paired differences below, which are the numbers to compare models by.",
            _panels(Score("test_loss", "Test loss", "Nats per token", _joined(results, losses))),
            pairs=True,
        ),
        FigureGroup(
            "Accuracy by parameters and by size in bits",
            "Accuracy on tasks built from the test split, against the number of parameters and against the size in bits; "
            "higher is better. Thin bars: one standard error each way. Dashed: chance." + _mean_note(results),
            [drawing for score in _accuracies(results) for drawing in _panels(score)],
            pairs=True,
        ),
    ]
    return [group for group in groups if group.drawings]


def gap_section(gaps: list[Gap], sizes: list[str]) -> FigureGroup:
    """Return the figures of paired differences."""
    return FigureGroup(
        "Differences to FloatLM of the same size",
        "Point: test loss of the model minus that of its FloatLM. Bar: 95\u00a0% interval, the same documents drawn for both. "
        "Left of the line the model is better than its FloatLM. All panels share one axis.",
        scaling_figures.gap_panels(gaps, sizes),
    )


def rates_section(table: pd.DataFrame, chosen: list[Choice], sizes: list[str]) -> FigureGroup:
    """Return the curves of a sweep of peak rates."""
    return FigureGroup(
        "Validation loss against peak learning rate",
        "One training run per point. Ring: the rate with the lowest "
        "validation loss, which is the one chosen. Cross at the upper edge: diverged.",
        training_figures.sweep_panels(table, chosen, sizes),
    )


def training_section(
    results: Results, trajectories: list[Trajectory], ternary_means: pd.DataFrame
) -> list[FigureGroup]:
    """Return losses, gaps between twins, and what the discrete weights did, over training."""
    matrices = largest_matrices(results)
    groups = [
        FigureGroup(
            "Loss over training",
            "Thin: training loss, the mean since the point before. Marked: loss on the valid split. The first "
            f"{training_figures.SKIPPED_START:.0%} of the training may lie above the frame. Cross: loss spike, a step whose "
            f"loss lies more than {DEVIATIONS:g} standard deviations above the mean of the {WINDOW} steps before it.",
            training_figures.loss_curves(results),
            notes=_spike_notes(results),
        ),
        FigureGroup(
            "Gap between twins over training",
            "Validation loss of the model minus that of its FloatLM twin at equal tokens seen, on the same sequences. Band: "
            "95\u00a0% interval, the same sequences drawn for both; neighbouring sequences may share a document, which "
            "the interval does not know. Below the line the model is better. Before the end the twins stand at "
            f"different points of their schedules. The first {training_figures.SKIPPED_START:.0%} may lie outside the frame.",
            training_figures.twin_panels(trajectories),
            notes=_twin_notes(results, trajectories),
        ),
        FigureGroup(
            "Ternary weights over training",
            "Means over all linear layers, each matrix counted by its weights. Sparsity: share of weights that the forward "
            "pass rounds to zero. Flip rate: share whose state differs from the validation before, so it grows with the "
            "steps between validations. Scale: the factor of the states.",
            ternary_figures.mean_curves(results, ternary_means),
        ),
        FigureGroup(
            "Matrices of the largest size",
            "Sparsity by matrix at the end of training: in each row the first layer on top, the last at the bottom. "
            "Histograms: share of the latent weights in bins of a quarter of the scale, at initialization and at the end; "
            "the outermost bins hold the tails. Dashed: the borders at which a ternary weight is rounded to another state.",
            ternary_figures.sparsity_profile(matrices) + ternary_figures.latent_histograms(matrices),
        ),
    ]
    return [group for group in groups if group.drawings or group.notes]


def _twin_notes(results: Results, trajectories: list[Trajectory]) -> list[str]:
    """Return batch, steps and warm-up of the twins, once for all pairs that agree, and why any gap is missing."""
    pairs: dict[str, list[str]] = {}
    for each in trajectories:
        if not each.missing:
            own, twin = (training_of(model, results) for model in (each.model, results.by_id[str(each.twin_id)]))
            text = ", ".join(
                f"{name} {counted(own[key])} | {counted(twin[key])}"
                for name, key in zip(("tokens per step", "steps", "warm-up steps"), TRAINING_KEYS, strict=True)
            )
            pairs.setdefault(text, []).append(f"{kind_label(each.model.id.kind)} {each.model.id.size}")
    reasons = [f"Missing: {each.model.id}, {each.missing}." for each in trajectories if each.missing]
    if len(pairs) == 1:
        return [f"All pairs (model | FloatLM): {text}." for text in pairs] + reasons
    return [f"{', '.join(names)} (model | FloatLM): {text}." for text, names in pairs.items()] + reasons


def _spike_notes(results: Results) -> list[str]:
    """Return one sentence on how many loss spikes each model had; nothing where no training counted them."""
    counts = {str(model.id): model.metric("num_loss_spikes") for model in results.study_models}
    if all(count is None for count in counts.values()):
        return []
    found = [f"{model_id} {count}" for model_id, count in counts.items() if count]
    return [f"Loss spikes: {', '.join(found)}; none in the others." if found else "Loss spikes: none."]


def _panels(score: Score) -> list[Drawing]:
    return scaling_figures.score_panels(score) if len(score.points) else []


def _accuracies(results: Results) -> list[Score]:
    """Return the mean accuracy where there are several tasks, then each task, all in percent."""
    main = main_scores(results.scores, results.main_metrics)
    scores = []
    if len(results.main_metrics) > 1:
        mean = mean_accuracy(results.scores, results.main_metrics)
        chance = _chance(main)
        scores.append(Score("mean_accuracy", "Mean accuracy", "Accuracy (%)", _in_percent(results, mean), chance))
    if len(results.main_metrics) <= MAX_TASK_PANELS:
        for task, metric in results.main_metrics.items():
            rows = main[main["task"] == task]
            name, label = file_name(f"task_{task}"), f"Accuracy ({metric}, %)"
            scores.append(Score(name, task, label, _in_percent(results, rows), _chance(rows)))
    return scores


def _mean_note(results: Results) -> str:
    tasks = list(results.main_metrics)
    return f" The mean is over {', '.join(tasks)}." if len(tasks) > 1 else ""


def _in_percent(results: Results, scores: pd.DataFrame) -> pd.DataFrame:
    value, stderr = 100 * scores["value"], 100 * scores["stderr"]
    return _joined(results, scores.assign(value=value, low=value - stderr, high=value + stderr))


def _joined(results: Results, scores: pd.DataFrame) -> pd.DataFrame:
    """Return value, low and high of the models that figures show, with kind, parameters and size in bits."""
    models = [
        {
            "model_id": str(model.id),
            "kind": model.id.kind,
            "parameters": model.metric("num_parameters"),
            "bits": model.metric("model_size_bits"),
        }
        for model in results.study_models
    ]
    table = pd.DataFrame(models, columns=["model_id", "kind", "parameters", "bits"])
    joined = table.merge(scores[["model_id", "value", "low", "high"]], on="model_id")
    return joined.dropna(subset=["value", "parameters", "bits"])


def _chance(main: pd.DataFrame) -> float | None:
    """Return the mean over tasks of the chance level in percent; None where a task has none."""
    by_task = main.groupby("task")["chance"].first()
    return None if by_task.isna().any() or by_task.empty else float(100 * by_task.mean())


def file_name(text: str) -> str:
    """Return a name for a file and for ids in SVG: letters, digits, `_`, `-` and `.` only."""
    return "".join(letter if letter.isascii() and letter.isalnum() or letter in "_-." else "_" for letter in text)
