"""What a study asks for across its sections that cannot be done, found before anything runs; each with key and remedy."""

import itertools
from typing import TYPE_CHECKING

from openspectra.evaluation.config import GENERATED_TOKENS, GENERATION_TASKS, SNIPPET_BYTES
from openspectra.export.config import format_problem
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model_ids import ModelId
from openspectra.quantization.config import BLOCK, BLOCK_BITS, GROUP_SIZES, MIN_CALIBRATION_LENGTH
from openspectra.study_file import FamilyConfig

if TYPE_CHECKING:
    from openspectra.study import Study


def section_problems(study: "Study") -> list[str]:
    """Return what keeps the configs of the study's models from being resolved, or from being trained and scored."""
    return [
        *_shape_problems(study),
        *_embedding_problems(study),
        *_engine_problems(study),
        *_distillation_problems(study),
    ]


def trajectory_problems(study: "Study") -> list[str]:
    """Return which steps are to be quantized whose weights no training keeps."""
    section = study.quantization and study.quantization.trajectory
    if not section or section.steps == "all":
        return []
    kept = set.intersection(
        *(set(run.checkpoint_steps) for run in study.pretrained.values() if run.family == "floatlm")
    )
    if not (absent := sorted(set(section.steps) - kept)):
        return []
    return [
        f"quantization.trajectory.steps: no weights are kept at {', '.join(map(str, absent))}; "
        f"kept: {', '.join(map(str, sorted(kept)))} (training.checkpoints_per_run)."
    ]


def export_problems(study: "Study") -> list[str]:
    """Return what cannot be exported: models that the study has not, formats that hold none such, a text to compare on."""
    if study.exports and not study.has_text:
        return [
            "exports: their certificates need text to compare on; give `corpus` or `token_files`, or drop `exports`."
        ]
    problems = []
    for key, forms in (study.exports or {}).items():
        models = study.models_called(key)
        if not models:
            problems.append(f"exports.{key}: no model of this study; name one of {', '.join(study.compared_models)}.")
        for model_id, form in itertools.product(models, forms):
            model = ModelId.parse(model_id)
            shape = study.recipes[str(model.float_parent if model.bits else model)].shape
            if problem := format_problem(model_id, form, shape):
                problems.append(f"exports.{key}: {model_id}: {problem}")
    return problems


def _shape_problems(study: "Study") -> list[str]:
    """Return what of each size no model can have, with the keys of its row."""
    problems = []
    for label, row in study.sizes.items():
        if row.hidden_size % (2 * row.num_attention_heads):
            problems.append(
                f"sizes.{label}.num_attention_heads: must split `hidden_size` into heads of even width; "
                f"got {row.num_attention_heads} and {row.hidden_size}."
            )
        problems += [
            f"sizes.{label}.scales_per_matrix: must divide `{name}`; got {row.scales_per_matrix} and {width}."
            for name, width in (("hidden_size", row.hidden_size), ("intermediate_size", row.intermediate_size))
            if width % row.scales_per_matrix
        ]
    return problems


def _embedding_problems(study: "Study") -> list[str]:
    """Return which families are to quantize their embedding and have no rule for it. Loads torch where any is."""
    asked = [name for name, family in study.families.items() if family.quantized_embedding]
    return [
        f"families.{name}.quantized_embedding: {name} has no rule for an embedding; got true. Drop it; these have one: "
        f"{', '.join(other for other in FAMILY_NAMES if load_family(other).quantizes_embedding)}."
        for name in asked
        if not load_family(name).quantizes_embedding
    ]


def _engine_problems(study: "Study") -> list[str]:
    """Return what gptqmodel and lm-eval would refuse after the training, each with its key and remedy."""
    problems = []
    length, section = study.training.sequence_length, study.quantization
    if section:
        wanted = section.calibration_sequence_length
        if not MIN_CALIBRATION_LENGTH <= wanted <= length:
            problems.append(
                f"quantization.calibration_sequence_length: must be {MIN_CALIBRATION_LENGTH} to {length} tokens, "
                f"training.sequence_length; got {wanted}."
            )
        problems += [
            f"quantization.group_size.{bits}: must be one of {', '.join(map(str, GROUP_SIZES))}; got {group}."
            for bits, group in section.group_size.items()
            if group not in GROUP_SIZES
        ]
        for label, row in study.sizes.items():
            for name, width in (("hidden_size", row.hidden_size), ("intermediate_size", row.intermediate_size)):
                problems += [
                    f"quantization.group_size.{bits}: must divide `{name}` of size {label}; got {group} and {width}. "
                    "Choose a divisor or -1."
                    for bits, group in section.group_size.items()
                    if group in GROUP_SIZES and group > 0 and width % group
                ]
                blocks = [str(bits) for bits in section.bits if bits in BLOCK_BITS]
                if blocks and width % BLOCK:
                    problems.append(
                        f"sizes.{label}.{name}: must be a multiple of {BLOCK} to be packed at {' and '.join(blocks)} bits "
                        f"(quantization.bits); got {width}. Choose {-(-width // BLOCK) * BLOCK}, or leave these bits out."
                    )
    built = study.evaluation.built_tasks.tasks if study.evaluation and study.evaluation.built_tasks else []
    if "minimal_pairs" in built and length < SNIPPET_BYTES[1]:
        problems.append(
            f"training.sequence_length: must be at least {SNIPPET_BYTES[1]} for task `minimal_pairs`, whose longest text "
            f"has as many bytes; got {length}. Lengthen it, or leave the task out of evaluation.built_tasks.tasks."
        )
    if length < 2 * GENERATED_TOKENS:
        problems += [
            f"training.sequence_length: must be at least {2 * GENERATED_TOKENS} for task `{task}`, half of it for the "
            f"{GENERATED_TOKENS} tokens that a model may write; got {length}. Lengthen it, or leave the task out of "
            "evaluation.built_tasks.tasks."
            for task in built
            if task in GENERATION_TASKS
        ]
    return problems


def _distillation_problems(study: "Study") -> list[str]:
    """Return which families have no teacher, or not one alone, at the sizes that are to be distilled."""
    problems = []
    for name, recipe in study.families.items():
        section, key = recipe.distillation, f"families.{name}.distillation"
        if section is None:
            continue
        if study.released:
            problems.append(f"{key}: learning is training, and `released` weights are not trained; drop one of them.")
        if name == section.teacher:
            problems.append(f"{key}: {name} is the teacher, and learns from none; drop it.")
        elif section.teacher not in study.families:
            problems.append(f"{key}.teacher: {section.teacher} is not among `families`; add it.")
        if unknown := sorted(set(study.distilled_sizes(recipe)) - set(study.sizes)):
            problems.append(f"{key}.sizes: {', '.join(unknown)}: no row in `sizes` ({', '.join(study.sizes)}).")
        teacher = study.families.get(section.teacher)
        for size in study.distilled_sizes(recipe) if teacher and name != section.teacher else []:
            if size in study.sizes and (number := _num_variants(teacher, size)) > 1:
                problems.append(
                    f"{key}: the teacher must be one model, and {section.teacher} of size {size} is {number}; give it one "
                    "rate in `peak_lr` and one of `interventions`, or leave the size out of `sizes`."
                )
    return problems


def _num_variants(recipe: FamilyConfig, size: str) -> int:
    """Return how many runs of one seed a family has at a size."""
    rates = recipe.peak_lr if isinstance(recipe.peak_lr, dict) else {}  # a table gives one
    given = rates.get(size)
    return (len(given) if isinstance(given, list) else 1) * len(recipe.interventions)
