"""The paper's study resolves to the paper's numbers, which resources/paper/suite.yaml holds independently."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from typer.testing import CliRunner

from openspectra.artifacts import open_artifact, write_artifact, write_json
from openspectra.cli import app
from openspectra.data.config import TokenizerConfig
from openspectra.evaluation.harness import CORPORA as CORPORA_TASKS
from openspectra.model.config import LlamaShape
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model.hugging_face import save_model
from openspectra.model.llama import Llama
from openspectra.model.size import bits_per_weight, counted_parameters, parameters_of
from openspectra.model_ids import ModelId
from openspectra.strict_yaml import read_yaml
from openspectra.study import Study, load_study
from openspectra.study_file import SizeConfig

ROOT = Path(__file__).parents[2]
SUITE = read_yaml(ROOT / "resources" / "paper" / "suite.yaml")
CORPORA = {
    "lambada_openai": "lambada_openai",
    "penn_treebank": "paloma_ptb",
    "c4": "paloma_c4_en",
    "cosmopedia": "cosmopedia",
    "dolma": "paloma_dolma-v1_5",
    "s2orc": "paloma_m2d2_s2orc_unsplit",
    "wikipedia": "paloma_m2d2_wikipedia_unsplit",
    "refinedweb": "paloma_falcon-refinedweb",
}
"""The tasks that measure the corpora of the paper's figure of perplexities."""
PAPER = {row["name"]: row for row in SUITE["sizes"]}
GIGABITS_KEY = {
    "floatlm": "float",
    "trilm": "tri",
    "quantlm-8bit": "q8",
    "quantlm-6bit": "q6",
    "quantlm-4bit": "q4",
    "quantlm-3bit": "q3",
}
PRINTED_TOKENS_PER_STEP = {"floatlm": 2_000_000, "trilm": 1_000_000}
SEQUENCES_PER_STEP = {"floatlm": 1024, "trilm": 512}
PRINTED_SMALLER = {"190M": 190.0e6}
"""The paper prints 190.0M; its shapes give 190.54M, which is also what its printed size in bits needs."""


@pytest.fixture(scope="module")
def study():
    return load_study(ROOT / "studies" / "paper.yaml")


def test_study_has_the_54_models_of_nine_sizes(study):
    quantized = {f"quantlm/{size}-{bits}bit" for size in PAPER for bits in SUITE["quant_lm"]["bits"]}
    trained = {f"{family}/{size}" for family in ("floatlm", "trilm") for size in PAPER}
    assert set(study.compared_models) == trained | quantized
    assert len(study.compared_models) == SUITE["paper"]["models_total"] == 54


def test_three_calibration_sets_stand_behind_every_quantlm(study):
    """The paper averages the scores of three (suite.yaml, quant_lm.repeats): 108 QuantLMs behind 36 ids."""
    assert "three calibration sets" in SUITE["quant_lm"]["repeats"]
    sets = {}
    for model_id, run in study.quantized.items():
        sets.setdefault(model_id.partition("-c")[0], []).append(run.calibration_set)
    assert len(study.quantized) == 108 and len(sets) == 36
    assert all(numbers == [0, 1, 2] for numbers in sets.values())


@pytest.mark.parametrize("size", PAPER)
def test_shape_is_the_published_one(study, size):
    row = PAPER[size]
    for family in ("floatlm", "trilm"):
        shape = study.pretrained[f"{family}/{size}"].shape
        assert (shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers) == (
            row["hidden"],
            row["glu"],
            row["layers"],
        )
        assert (shape.num_attention_heads, shape.head_dim, shape.scales_per_matrix) == (
            row["heads"],
            row["head_dim"],
            row["mp"],
        )
        assert (
            shape.max_position_embeddings
            == SUITE["architecture_common"]["checkpoint_config_fields"]["max_position_embeddings"]
        )


@pytest.mark.parametrize("size", PAPER)
def test_parameter_counts_are_the_published_ones(study, size):
    row = PAPER[size]
    shape = study.pretrained[f"floatlm/{size}"].shape
    assert shape.num_linear_parameters == row["params_linear"]
    counted = counted_parameters(shape.num_parameters, shape, study.tokenizer.vocab_size)
    assert counted == row["params_total_50304"]
    printed = row["params_paper"]
    if size in PRINTED_SMALLER:
        assert printed == PRINTED_SMALLER[size]
        assert counted == 190_538_496
    else:
        assert counted == pytest.approx(printed, rel=5e-4)  # printed with four digits


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("size", PAPER)
def test_built_model_has_the_published_parameters(study, size, family):
    row, shape = PAPER[size], study.pretrained[f"floatlm/{size}"].shape
    with torch.device("meta"):
        model = Llama(shape, family)
    built = sum(parameter.numel() for parameter in model.parameters())
    block_norms = 0 if load_family(family).has_block_norms else 2 * row["layers"] * row["hidden"]
    own = (
        8 * row["layers"] * family.endswith(("a1", "a2")) - block_norms
    )  # learned scales: 6 in attention, 2 in the MLP
    assert built == row["params_total_checkpoint"] + own == parameters_of(shape, family)
    assert counted_parameters(built, shape, study.tokenizer.vocab_size) == row["params_total_50304"] + own
    linear = sum(layer.weight.numel() for _, group in model.groups() for layer in group.layers.values())
    assert linear == row["params_linear"]
    assert {group.shards.view[1] for _, group in model.groups()} == {row["mp"], 2 * row["mp"]}  # gate and up stacked


@pytest.mark.parametrize("size", PAPER)
def test_vocabulary_is_padded_as_in_the_released_files(study, size):
    row = PAPER[size]
    shape = study.pretrained[f"trilm/{size}"].shape
    assert shape.vocab_size == row["vocab_checkpoint"]
    assert shape.num_parameters == row["params_total_checkpoint"]


@pytest.mark.parametrize("size", PAPER)
def test_peak_rates_are_the_published_ones(study, size):
    row = PAPER[size]
    floatlm, trilm = study.pretrained[f"floatlm/{size}"], study.pretrained[f"trilm/{size}"]
    assert (floatlm.peak_lr, floatlm.peak_lr_after_drop) == (row["lr_float"], None)
    assert [trilm.peak_lr, trilm.peak_lr_after_drop] == row["lr_tri"]


@pytest.mark.parametrize(("family", "key"), [("floatlm", "float_lm"), ("trilm", "tri_lm")])
def test_batch_holds_the_published_number_of_tokens(study, family, key):
    run = study.pretrained[f"{family}/99M"]
    assert run.sequence_length == SUITE["training_common"]["sequence_length"]
    assert run.global_batch_size == SEQUENCES_PER_STEP[family]
    assert round(run.tokens_per_step, -6) == SUITE[key]["batch_tokens"] == PRINTED_TOKENS_PER_STEP[family]
    assert run.max_steps * run.tokens_per_step == pytest.approx(SUITE["paper"]["tokens_per_run"], rel=1e-5)


def test_recipes_change_where_the_paper_changes_them(study):
    floatlm, trilm = study.pretrained["floatlm/1.1B"], study.pretrained["trilm/1.1B"]
    assert (floatlm.schedule, floatlm.lr_drop_step, floatlm.weight_decay_stop_step) == ("cosine", None, None)
    assert trilm.schedule == "linear"
    drop, stop = trilm.lr_drop_step * trilm.tokens_per_step, trilm.weight_decay_stop_step * trilm.tokens_per_step
    assert drop == pytest.approx(SUITE["tri_lm"]["tokens_at_lr_drop"], rel=1e-5)
    assert stop == pytest.approx(SUITE["tri_lm"]["tokens_at_weight_decay_removal"], rel=1e-5)
    for run in (floatlm, trilm):
        assert run.adam_betas == SUITE["training_common"]["adam_betas"]
        assert run.precision == "16-mixed"
    assert floatlm.seed == trilm.seed


def test_quantization_is_the_published_one(study):
    published = SUITE["quant_lm"]
    for run in study.quantized.values():
        assert run.sym is published["symmetric"]
        assert run.num_calibration_samples == published["calibration"]["samples"]
        assert run.calibration_sequence_length == published["calibration"]["sequence_length"]
        group_size = published["group_size"][run.bits]
        assert run.group_size == (-1 if group_size == "not stated" else group_size)  # ASSUME in the study
        assert bits_per_weight(f"quantlm-{run.bits}bit", run.group_size) == published["effective_bits"][run.bits]


def test_all_54_sizes_in_bits_are_the_printed_ones(study):
    assert len(study.sizes_in_bits) == 54
    for model_id, bits in study.sizes_in_bits.items():
        model = ModelId.parse(model_id)
        printed = PAPER[model.size]["gigabits"][GIGABITS_KEY[model.kind]]
        assert bits / 1e9 == pytest.approx(printed, abs=0.01), model_id


@pytest.mark.parametrize(("family", "is_quantized"), [("trilm", False), ("bitnet", False), ("tbt_w2a8", True)])
def test_size_of_a_made_model_is_that_of_its_study(family, is_quantized, tmp_path):
    """The file holds rows for six scales per matrix; its size in bits counts those that the paper counts.

    A quantized embedding costs the bits of the family and, for each row, a scale in half precision.
    """
    shape = LlamaShape(
        vocab_size=768, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=6,
        scales_per_matrix=6, quantized_embedding=is_quantized,
    )  # fmt: skip
    config = TokenizerConfig(vocab_size=300)
    with write_artifact(tmp_path / "tokenizer", "tokenizer", config, {}) as draft:
        (draft.folder / "tokenizer.json").write_text(Tokenizer(BPE({"<|endoftext|>": 0}, [])).to_str())
        write_json(draft.folder / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
        draft.metrics["vocab_size"] = 300
    counts = save_model(Llama(shape, family), family, "float16", open_artifact(tmp_path / "tokenizer"), tmp_path)
    norms = 96 if family == "bitnet" else 96 * 5
    linear = 2 * (4 * 96**2 + 3 * 96 * 192)
    assert counts["num_parameters"] == linear + norms + 2 * 768 * 96
    assert counts["num_counted_parameters"] == linear + norms + 2 * 384 * 96
    embedding = 1.58 * 384 * 96 + 16 * 384 if is_quantized else 16 * 384 * 96
    assert counts["model_size_bits"] == pytest.approx(1.58 * linear + embedding + 16 * (norms + 384 * 96))
    content = read_yaml(ROOT / "studies/paper-mini.yaml")
    row = {key: value for key, value in shape.model_dump().items() if key in SizeConfig.model_fields}
    recipe = content["families"]["trilm"] | {"peak_lr": {"x": 1e-3}, "quantized_embedding": is_quantized}
    study = Study.model_validate(
        content | {"base": None, "tokenizer": config.model_dump(), "sizes": {"x": row}, "families": {family: recipe}}
        | {"quantization": None, "seed": 1}
    )  # fmt: skip
    assert study.sizes_in_bits == {f"{family}/x": counts["model_size_bits"]}


def test_tasks_are_the_published_ones(study):
    suites = study.evaluation.suites
    tasks = [task for suite in suites.values() for task in suite.tasks]
    assert len(tasks) == len(set(tasks))
    published = {*SUITE["evaluation"]["tasks"], "bigbench_bbq_lite_json_multiple_choice"}
    corpora = {"wikitext", "slimpajama_validation", *CORPORA.values()}
    assert set(suites["perplexity"].tasks) == corpora - {"lambada_openai"} and suites["perplexity"].skip_missing
    assert set(CORPORA) == set(SUITE["evaluation"]["perplexity_corpora_in_figure_only"])
    ours = {"held_out_text", "bbq", "toxigen"}  # loss and perplexity on the test split; no cell of the paper
    assert set(tasks) == published | corpora | ours and suites["toxicity"].skip_missing
    for suite in suites.values():
        assert (suite.num_fewshot, suite.batch_size) == (
            SUITE["evaluation"]["shots"],
            SUITE["evaluation"]["batch_size"],
        )


def test_silent_points_follow_one_file_of_the_code_base(study):
    """configs/1-3B.yml of EleutherAI/gpt-neox, as it stood: warm-up 0.01, decay 0.1, clip 1.0, eps 1e-8, min_lr lr / 10."""
    for run in study.pretrained.values():
        assert run.warmup_steps == round(0.01 * run.max_steps)
        assert (run.weight_decay, run.gradient_clip_norm, run.adam_eps) == (0.1, 1.0, 1e-8)
        assert run.shape.initialization == "small_init"
        if run.schedule == "cosine":
            assert run.min_lr == pytest.approx(run.peak_lr / 10)


@pytest.mark.parametrize(
    ("line", "variant"),
    [
        ("  initialization: small_init", "  initialization: scaled_normal"),
        ("  warmup_fraction: 0.01", "  warmup_fraction: 0.0025"),
        ("  adam_eps: 1.0e-8", "  adam_eps: 1.0e-5"),
        ("    batch_tokens: 1_048_576", "    batch_tokens: 1_081_344"),
        ("  desc_act: false", "  desc_act: true"),
    ],
)
def test_rival_of_an_assumption_is_a_change_of_one_line(study, line, variant, tmp_path):
    text = (ROOT / "studies/paper.yaml").read_text()
    (own,) = [each for each in text.splitlines() if each.split("  #")[0].rstrip() == line]
    assert own == line or "ASSUME" in own
    (tmp_path / "paper.yaml").write_text(text.replace(line, variant))
    other = load_study(tmp_path / "paper.yaml")
    assert (other.pretrained, other.quantized) != (study.pretrained, study.quantized)


def test_assumptions_are_printed_with_their_evidence():
    finished = CliRunner().invoke(app, ["assumptions", str(ROOT / "studies/paper.yaml")])
    assert finished.exit_code == 0
    lines = finished.output.splitlines()
    text = (ROOT / "studies/paper.yaml").read_text()
    assert sum(line.startswith("studies/paper.yaml:") for line in lines) == text.count("# ASSUME:")
    for key in (
        "initialization",
        "warmup_fraction",
        "adam_eps",
        "gradient_clip_norm",
        "min_lr_fraction",
        "weight_decay",
    ):
        assert any(f" {key}: " in line and "NeoX 1-3B" in line for line in lines), key
    assert any("embedding and head are, as in GPT-NeoX" in line for line in lines)


def test_held_out_text_comes_from_the_test_split_of_the_token_files(study):
    assert study.splits == ["train", "valid", "test"] and study.token_files.test_fraction > 0
    assert "held_out_text" in study.evaluation.built_tasks.tasks
    assert "held_out_text" not in study.lm_eval_tasks


def test_ablations_are_those_of_the_paper(study):
    """The models of its ablation tables: resources/paper/results.csv and suite.yaml."""
    ablations, fineweb, bilm = (
        load_study(ROOT / f"studies/{name}.yaml")
        for name in ("paper-ablations", "paper-ablations-fineweb", "paper-bilm")
    )
    schedules = {f"trilm/1.1B{variant}" for variant in ("", "+only-lr-drop", "+only-decay-stop", "+none")}
    assert set(ablations.models) == {"floatlm/1.1B", "bitnet/1.1B", *schedules}
    assert SUITE["bitnet_replication"]["size"] == "1.1B" and len(SUITE["schedule_ablation"]) > 4
    assert set(fineweb.models) == {"floatlm/1.1B", "trilm/1.1B"} and list(fineweb.corpus.sources) == ["fineweb_edu"]
    assert set(bilm.models) == {f"bilm/{size}" for size in SUITE["bi_linear"]["trained_sizes"]}
    ours = {"model_id", "family", "max_steps", "warmup_steps", "lr_drop_step", "weight_decay_stop_step"}
    ours |= {"checkpoint_every_steps", "valid_every_steps"}
    for each, tokens in ((ablations, 100e9), (fineweb, 100e9), (bilm, 300e9)):
        for model_id, run in each.pretrained.items():
            assert run.max_steps * run.tokens_per_step == pytest.approx(tokens, rel=1e-4)
            model = ModelId.parse(model_id)
            if model.variant:
                continue
            twin = study.pretrained[f"{'floatlm' if model.family == 'floatlm' else 'trilm'}/{model.size}"]
            assert run.model_dump(exclude=ours) == twin.model_dump(exclude=ours), model_id
    both = ablations.pretrained["trilm/1.1B"]
    drop, stop = both.lr_drop_step / both.max_steps, both.weight_decay_stop_step / both.max_steps
    interventions = SUITE["schedule_ablation"]["interventions_at_fraction"]
    assert drop == pytest.approx(interventions["peak_lr"], rel=1e-4)
    assert stop == pytest.approx(interventions["weight_decay"], rel=1e-4)


def test_mini_paper_goes_the_path_of_the_paper_below_a_million_parameters(study):
    mini = load_study(ROOT / "studies/paper-mini.yaml")
    assert len(mini.compared_models) == 54 and not set(mini.sizes) & set(study.sizes)
    scales = [row.scales_per_matrix for row in mini.sizes.values()]
    assert scales == [row.scales_per_matrix for row in study.sizes.values()]
    rows = [mini.pretrained[f"trilm/{size}"].shape.vocab_size for size in mini.sizes]
    assert rows == [384, 384, 384, 384, 384, 512, 512, 384, 768]  # padded as the paper's 50,304, 50,432 and 50,688
    counts = [mini.pretrained[f"trilm/{size}"].shape.num_parameters for size in mini.sizes]
    assert counts == sorted(counts) and counts[-1] < 1_000_000
    assert [f"{count / 1e6:.2f}M" for count in counts] == list(mini.sizes)
    tasks, whole = (
        {task for suite in each.evaluation.suites.values() for task in suite.tasks} for each in (mini, study)
    )
    corpora = {*study.evaluation.suites["perplexity"].tasks} - {"wikitext"}  # no file holds them
    assert whole - tasks == {"mmlu_continuation", "bigbench_bbq_lite_json_multiple_choice"} | corpora
    for run in mini.pretrained.values():
        assert 28 <= len(run.checkpoint_steps) <= 29
    floatlm, trilm = mini.pretrained["floatlm/0.14M"], mini.pretrained["trilm/0.14M"]
    assert floatlm.tokens_per_step == 2 * trilm.tokens_per_step
    assert (
        (floatlm.schedule, trilm.schedule) == ("cosine", "linear")
        and trilm.lr_drop_step
        and trilm.weight_decay_stop_step
    )


@pytest.mark.slow
def test_tasks_exist_in_the_harness(study):
    from lm_eval.tasks import TaskManager

    known = TaskManager(include_path=CORPORA_TASKS).task_index
    assert study.lm_eval_tasks and not [task for task in study.lm_eval_tasks if task not in known]
