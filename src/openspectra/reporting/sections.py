"""The sections of the page, each with its tables, figures and notes in one object."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from openspectra.assumptions import collect, package_files, study_files
from openspectra.evaluation.config import BUILT_TASKS
from openspectra.identity import kind_label
from openspectra.model_ids import ModelId
from openspectra.reporting import (
    conformance,
    duels,
    exports,
    provenance,
    scaling_figures,
    scaling_law,
    sweep,
    tables,
    ternary,
    ternary_figures,
    training_figures,
    twins,
    views,
)
from openspectra.reporting.activations import activations_section
from openspectra.reporting.config import PUBLISHED_TBT, ReportConfig
from openspectra.reporting.data_card import data_card
from openspectra.reporting.drawing import Drawing
from openspectra.reporting.findings import findings
from openspectra.reporting.formats import counted, score_label
from openspectra.reporting.load import ROUGE, Results
from openspectra.reporting.more_figures import more_section
from openspectra.reporting.perplexity import perplexity_section
from openspectra.reporting.provenance import AssumptionList, LineageTable
from openspectra.reporting.quantization import quantization_section
from openspectra.reporting.scaling_figures import Score
from openspectra.reporting.scaling_law import MIN_SIZES
from openspectra.reporting.section import FigureGroup, Section, View
from openspectra.reporting.seeds import seeds_section
from openspectra.reporting.statistics import LEVEL_TEXT, DocumentLosses, main_scores, mean_accuracy
from openspectra.reporting.tables import TRAINING_KEYS, Gap, training_of
from openspectra.reporting.trajectory import trajectory_section
from openspectra.reporting.twins import Trajectory
from openspectra.training.spikes import DEVIATIONS, WINDOW

MEAN = "Mean accuracy"
PAPER_MEAN = "Mean of the paper's six"
PAPER_SPAN = (99.74e6, 3.989e9)  # paper, table of models: smallest and largest


def study_sections(
    config: ReportConfig, results: Results, losses: DocumentLosses, paper: Path | None = None
) -> list[Section]:
    """Return what an ordinary study found. `paper` is the table of the paper's numbers, beside which other papers' lie."""
    gaps = tables.paired_gaps(results, losses)
    published = paper and paper.with_name(PUBLISHED_TBT.name)
    model_table = tables.model_table(results, losses)
    return [
        Section("findings", "What was found", "Findings", notes=findings(results, losses, gaps)),
        models_section(config, results, losses, model_table),
        scaling_section(results, model_table),
        gaps_section(results, losses, gaps),
        activations_section(results, losses, published if published and published.is_file() else None),
        seeds_section(results, losses),
        perplexity_section(results, config.num_resamples, config.seed),
        duels_section(results),
        quantization_section(results),
        more_section(results, losses),
        exports.exports_section(results),
    ]


def conformance_section(results: Results, path: Path) -> Section:
    """Return the paper's numbers, in the CSV `path`, with ours beside them; empty where nothing of the study is in it."""
    published, models = conformance.read_published(path), conformance.our_models(results)
    table = conformance.conformance_table(published, models)
    if not any(model.scores for model in models) and (table["verdict"] == conformance.NOT_COMPARABLE).all():
        return Section("conformance", "Beside the paper", "Paper")
    versions = ", ".join(conformance.harness_versions(results)) or "none yet"
    return Section(
        "conformance",
        "Beside the paper",
        "Paper",
        f"Every number that the paper prints, {len(table):,} of them, beside that of the nearest model here. Comparable at "
        "equal size, family, tokens seen (within 1 %), text, task variant, metric, split and items. Match, of weights "
        f"trained anew: {conformance.RETRAINED}; of the released weights: {conformance.SAME_WEIGHTS}. lm-eval of the paper: "
        f"{conformance.PAPER_HARNESS}; here: {versions}.",
        [],
        [views.verdicts_view(table), views.conformance_view(table)],
        {"conformance.csv": table},
    )


def sweep_section(results: Results) -> Section:
    """Return the section of a sweep of peak rates, with every run; nothing here comes from the test split."""
    table = sweep.sweep_table(results.artifacts)
    return _rates(results, table, [], [replace(views.rate_view(table), title="All runs")], {"rates.csv": table})


def rates_section(results: Results, path: Path) -> Section:
    """Return the sweep in the CSV `path`, which a study takes its rates from, and where it departs from the choice."""
    table = sweep.read_rates(path)
    trained = {model.id: model.config["peak_lr"] for model in results.study_models if "peak_lr" in model.config}
    return _rates(results, table, sweep.remarks(path), [], {}, trained)


def closing_sections(config: ReportConfig, results: Results, study: Path | None) -> list[Section]:
    """Return what every study has: training, data, settings, assumptions, lineage. `study` is its file."""
    return [
        training_section(results, config),
        trajectory_section(results, config),
        data_section(results),
        Section("settings", "Settings", "Settings", parts=provenance.settings(results)),
        assumptions_section(study),
        lineage_section(results),
    ]


def missing_section(results: Results) -> Section:
    """Return what the study plans and what is not there."""
    return Section(
        "missing",
        "What is missing",
        "Missing",
        "This page shows what was there when it was made. Of what the study plans, these are not in it:",
        notes=results.plan.holes(results.artifacts) if results.plan else [],
    )


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


def models_section(
    config: ReportConfig, results: Results, losses: DocumentLosses, model_table: pd.DataFrame
) -> Section:
    """Return the table of all models, and every score."""
    notes = []
    if num_parts := int(results.scores["is_part"].sum()):
        notes.append(f"Not in this table: {num_parts:,} scores of the parts of task groups; they stand in scores.csv.")
    notes += embedding_notes(results)
    return Section(
        "models",
        "All models",
        "Models",
        f"Test loss with its {LEVEL_TEXT} interval from {config.num_resamples} resamples of the test documents; accuracies "
        f"with their standard error. {_origin(results)}Sizes follow the paper's rule: linear weights at the bits of the "
        f"family, everything else at 16. {_runs(results)}.",
        notes,
        [views.model_view(results, losses)],
        {"models.csv": model_table, "scores.csv": tables.score_table(results)},
    )


def scaling_section(results: Results, model_table: pd.DataFrame) -> Section:
    """Return the central figures: loss and accuracy against parameters and against size in bits."""
    columns = {"test_loss": "value", "test_loss_low": "low", "test_loss_high": "high"}
    losses = model_table[["model_id", *columns]].rename(columns=columns)
    groups = [
        FigureGroup(
            "Test loss by parameters and by size in bits",
            "Test loss of every model against the number of parameters and against the size in bits, one line per family; "
            f"lower is better. Thin bars: {LEVEL_TEXT} interval over test documents. What is common to all models "
            "cancels in the paired differences below, which are the numbers to compare models by."
            + _sets_note(results),
            _panels(Score("test_loss", "Test loss", "Nats per token", _joined(results, losses))),
            pairs=True,
        ),
        FigureGroup(
            "Accuracy by parameters and by size in bits",
            "Accuracy against the number of parameters and against the size in bits; higher is better. "
            f"{_origin(results)}Thin bars: one standard error each way. Dashed: chance."
            + _rouge_note(results)
            + _mean_note(results)
            + _sets_note(results),
            [drawing for score in _accuracies(results) for drawing in _panels(score)],
            pairs=True,
        ),
    ]
    shown: list = [group for group in groups if group.drawings]
    notes, laws = _scaling_laws(results, losses)
    return Section("scaling", "Scaling", "Scaling", notes=notes, parts=shown + laws)


def _scaling_laws(results: Results, losses: pd.DataFrame) -> tuple[list[str], list]:
    """Return the laws of the trained families as figures and a table, or the note why there are none."""
    points = _joined(results, losses)
    points = points[~points["kind"].str.startswith("quantlm")].sort_values("parameters")
    by_kind = {kind: rows for kind, rows in points.groupby("kind") if rows["parameters"].nunique() >= MIN_SIZES}
    if not by_kind:
        counts = ", ".join(f"{kind_label(kind)} {len(rows)}" for kind, rows in points.groupby("kind"))
        needs = f"a fit needs {MIN_SIZES} sizes, {MIN_SIZES + 1} where the largest is held out"
        return ([f"No scaling law is fitted: {needs}; here: {counts}."] if counts else []), []
    fits = {kind: scaling_law.fit(rows["parameters"], rows["value"]) for kind, rows in by_kind.items()}
    span = points["parameters"].min(), points["parameters"].max()
    inside = points[points["parameters"].between(*PAPER_SPAN)]
    figure = FigureGroup(
        "Scaling laws",
        "L(N) = A / N^\u03b1 + \u03b5, fitted to the test losses here by least squares. Right: the curves that the paper "
        "prints (eq. 1) over its sizes; its losses are those of its own validation text"
        + (", ours stand beside them." if len(inside) else ", and none of our sizes lies there."),
        [
            scaling_figures.law_panel(
                "law_ours", "Ours", points, {kind: each.law for kind, each in fits.items()}, span
            ),
            scaling_figures.law_panel("law_paper", "The paper's", inside, scaling_law.PAPER_LAWS, PAPER_SPAN),
        ],
        pairs=True,
    )
    return [], [figure, views.law_view(by_kind, fits)]


def gaps_section(results: Results, losses: DocumentLosses, gaps: list[Gap]) -> Section:
    """Return the paired differences to FloatLM."""
    figures = FigureGroup(
        "Differences to FloatLM of the same size",
        f"Point: test loss of the model minus that of its FloatLM. Bar: {LEVEL_TEXT} interval, the same documents drawn for "
        "both. Left of the line the model is better than its FloatLM. All panels share one axis." + _sets_note(results),
        scaling_figures.gap_panels(gaps, results.sizes),
    )
    parts = [*([figures] if figures.drawings else []), views.gap_view(gaps)] if gaps else []
    lead = Markup(
        "<strong>{}</strong> "
        "Each resample draws the same documents for both members. Batch, steps and warm-up stand as model | baseline; "
        "a QuantLM has those of the FloatLM it was made from."
    ).format(
        "The interval covers the choice of test documents; what the seed does stands under Spread over seeds."
        if results.seeds
        else "One training run: the interval covers the choice of test documents, not the seed."
    )
    csv = {"gaps.csv": tables.gap_table(gaps, losses)}
    return Section("gaps", "Paired differences", "Paired differences", lead, [], parts, csv)


def duels_section(results: Results) -> Section:
    """Return pairs of models on the same documents and items, at equal parameters and at equal bits."""
    pairs = duels.duels(results)
    table = duels.duel_table(results, pairs)
    bases = {}
    for pair in pairs:
        bases.setdefault(pair.basis, []).append(pair)
    shown = [
        views.duel_view(
            found,
            table,
            basis,
            {str(m.id): duels.bits_of(m, _size_of(basis)) for p in found for m in (p.model, p.opponent)},
        )
        for basis, found in bases.items()
    ]
    return Section(
        "duels",
        "Duels",
        "Duels",
        "Each pair was scored on the same documents and items. At equal bits a model meets of every other kind the smallest "
        "with at least as many bits; what that one has more stands below its name. Bits follow the paper's rule with the "
        "vocabulary of this study. Intervals and p-values count the items of a document as one; p-values are corrected for "
        f"all {len(table):,} comparisons of this section (Holm). Better and worse: corrected p below {duels.CLEAR:g}. Every "
        "comparison stands in duels.csv.",
        parts=shown,
        tables={"duels.csv": table} if len(table) else {},
    )


def _size_of(basis: str) -> str:
    """Return how the sizes beside a duel are counted."""
    return duels.LINEAR_BITS if basis == duels.LINEAR_BITS else duels.TOTAL_BITS


def training_section(results: Results, config: ReportConfig) -> Section:
    """Return losses, gaps between twins, and what the discrete weights did, over training."""
    trajectories = twins.twin_trajectories(results, config.num_resamples, config.seed)
    ternary_means = ternary.ternary_table(results)
    matrices = ternary.largest_matrices(results)
    groups = [
        FigureGroup(
            "Loss over training",
            "Thin: training loss, the mean since the point before. Marked: loss on the valid split. The first "
            f"{training_figures.SKIPPED_START:.0%} of the training may lie above the frame. Dotted: where the peak rate drops and where weight decay ends. Cross: loss spike, a step whose "
            f"loss lies more than {DEVIATIONS:g} standard deviations above the mean of the {WINDOW} steps before it.",
            training_figures.loss_curves(results),
            notes=_spike_notes(results),
        ),
        FigureGroup(
            "Gap between twins over training",
            "Validation loss of the model minus that of its FloatLM twin at equal tokens seen, on the same sequences. Band: "
            f"{LEVEL_TEXT} interval, the same sequences drawn for both; neighbouring sequences may share a document, which "
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
    csv = {"gaps_over_training.csv": twins.twin_table(trajectories), "ternary.csv": ternary_means}
    csv["valid_by_source.csv"] = tables.valid_by_source(results)
    return Section(
        "training",
        "Training",
        "Training",
        parts=[group for group in groups if group.drawings or group.notes],
        tables={name: table for name, table in csv.items() if len(table)},
    )


def data_section(results: Results) -> Section:
    """Return the data card; empty where there is neither a corpus nor token files."""
    card = data_card(results.artifacts)
    if not card:
        return Section("data", "Data", "Data")
    parts = [replace(view, title=title) for title, view in card.views]
    return Section(
        "data",
        "Data",
        "Data",
        parts=[*parts, *([card.lengths] if card.lengths else [])],
        tables={"data.csv": card.table},
    )


def assumptions_section(study: Path | None) -> Section:
    """Return every assumption of the study's file, of its base and of the library, and which of them cannot be listed."""
    notes = [] if study else ["The study's own file was not given to this report, so its assumptions are not listed."]
    if not package_files():
        notes.append("openspectra is installed without its sources, so the assumptions of its code are not listed.")
    return Section(
        "assumptions",
        "Assumptions",
        "Assumptions",
        "Where the paper is silent the study or the code decides; every such line is marked and listed here.",
        notes,
        [AssumptionList(collect(study_files(study) if study else []))],
    )


def lineage_section(results: Results) -> Section:
    """Return every artifact with what it was made from, and the commits that made them."""
    commits = provenance.commits(results.artifacts)
    lead = "Every artifact with the first digits of its manifest's sha256; a parent leads to its own row, down to the corpus."
    if len(commits) == 1:
        lead += f" All parts were built by commit {commits[0]}."
    elif commits:
        lead += f" The parts were built by {len(commits)} commits: {', '.join(commits)}."
    lead += " What was planned, in hours and energy, and what each stage took stand in cost.html of the results folder."
    rows = provenance.lineage(results.artifacts)
    return Section("lineage", "Lineage", "Lineage", lead, parts=[LineageTable(rows)])


def _rates(
    results: Results,
    table: pd.DataFrame,
    remarks: list[str],
    runs: list[View],
    csv: dict[str, pd.DataFrame],
    trained: dict[ModelId, float] | None = None,
) -> Section:
    """Return the curves of a sweep, the rates it chooses, and of `trained` the models that have others."""
    chosen = sweep.choices(table)
    figure = FigureGroup(
        "Validation loss against peak learning rate",
        "One training run per point. Ring: the rate with the lowest "
        "validation loss, which is the one chosen. Cross at the upper edge: diverged.",
        training_figures.sweep_panels(table, chosen, results.sizes),
    )
    notes = remarks + [note for note in [sweep.budget(table)] if note]
    for column in ("date", "machine"):
        if column in table:
            notes.append(f"Sweep {column}: {', '.join(sorted(set(table[column])))}.")
    return Section(
        "rates",
        "Peak learning rates",
        "Peak rates",
        "The rate of each family and size is chosen by validation loss; no number of this section comes from the test split.",
        notes + list(sweep.departures(table, trained or {})),
        [figure, views.sweep_view(chosen), *runs],
        csv,
    )


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
    if len(results.averaged) > 1:
        mean = mean_accuracy(results.scores, results.averaged)
        chance = _chance(main[main["task"].isin(results.averaged)])
        title = PAPER_MEAN if results.has_paper_average else MEAN
        scores.append(Score("mean_accuracy", title, "Accuracy (%)", _in_percent(results, mean), chance))
    for task, metric in results.main_metrics.items():
        rows = main[main["task"] == task]
        name, label = file_name(f"task_{task}"), score_label(metric)
        scores.append(Score(name, task, label, _in_percent(results, rows), _chance(rows)))
    return scores


def _origin(results: Results) -> str:
    """Return where the items of the accuracy tasks come from."""
    built = [task for task in results.main_metrics if task.partition(" (")[0] in BUILT_TASKS]
    others = [task for task in results.main_metrics if task not in built]
    sentences = [f"Built from the test split: {', '.join(built)}. "] if built else []
    return "".join(
        [*sentences, f"Tasks of lm-eval with items of their own: {', '.join(others)}. "] if others else sentences
    )


def embedding_notes(results: Results) -> list[str]:
    """Return which models have a quantized embedding, and how it is counted; nothing where none has."""
    names = [str(model.id) for model in results.models if model.config.get("shape", {}).get("quantized_embedding")]
    counted = "counted at the bits of the family with 16 for the scale of each row"
    return [f"The embedding is quantized too, and {counted}: {', '.join(names)}."] if names else []


def _runs(results: Results) -> str:
    """Return how often each model was trained."""
    if not results.seeds:
        return "One training run per model"
    most = max(map(len, results.seeds.values()))
    return f"Up to {most} training runs per model, which differ in their seed; figures show the first"


def _rouge_note(results: Results) -> str:
    """Return what the score of the generation tasks is."""
    tasks = [task for task, metric in results.main_metrics.items() if metric == ROUGE]
    if not tasks:
        return ""
    return f" Of {', '.join(tasks)} it is the ROUGE-1 of what was written, and chance that of the best constant line."


def _mean_note(results: Results) -> str:
    tasks = [f"{task} ({metric})" for task, metric in results.averaged.items()]
    return f" The mean is over {', '.join(tasks)}." if len(tasks) > 1 else ""


def _sets_note(results: Results) -> str:
    """Return what stands for the QuantLMs of several calibration sets."""
    if not results.single_sets:
        return ""
    return (
        " Where a QuantLM was made from several calibration sets, the mark is their mean and each dot is one of them."
    )


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
            "is_set": model.id.calibration is not None,
        }
        for model in (*results.study_models, *results.single_sets)
    ]
    table = pd.DataFrame(models, columns=["model_id", "kind", "parameters", "bits", "is_set"])
    joined = table.merge(scores[["model_id", "value", "low", "high"]], on="model_id")
    return joined.dropna(subset=["value", "parameters", "bits"])


def _chance(main: pd.DataFrame) -> float | None:
    """Return the mean over tasks of the chance level in percent; None where a task has none."""
    by_task = main.groupby("task")["chance"].first()
    return None if by_task.isna().any() or by_task.empty else float(100 * by_task.mean())


def file_name(text: str) -> str:
    """Return a name for a file and for ids in SVG: letters, digits, `_`, `-` and `.` only."""
    return "".join(letter if letter.isascii() and letter.isalnum() or letter in "_-." else "_" for letter in text)
