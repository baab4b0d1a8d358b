"""Studies: what is wrong is refused at once, with file, key and remedy; what is right resolves as the paper says."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from conftest import run

from openspectra.errors import ConfigError
from openspectra.model_ids import ModelId, rate_label
from openspectra.resources import StudyResources
from openspectra.strict_yaml import read_yaml
from openspectra.study import load_study, resolved_configs
from openspectra.work import jobs_of

ROOT = Path(__file__).parents[2]
TINY = ROOT / "studies" / "tiny.yaml"


def changed(tmp_path, *changes: tuple[str, object]) -> Path:
    """Write the tiny study with values at dotted paths replaced."""
    study = read_yaml(TINY)
    for path, value in changes:
        *parents, last = path.split("/")
        target = study
        for key in parents:
            target = target[int(key) if key.isdigit() else key]
        target[last] = value
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path / "study.yaml"


def problems(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert all(str(path) in line for line in caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_study_is_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load_study(path).models, f"{path} no longer fits the schema: mend the study or the schema"


def test_schema_file_is_the_one_the_types_give():
    path = ROOT / "workflow" / "schemas" / "study.schema.json"
    printed = run("openspectra", "schema", cwd=ROOT).stdout
    assert path.read_text() == printed, "run `openspectra schema > workflow/schemas/study.schema.json`"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training/total_tokns", 1, "did you mean `total_tokens`"),
        ("sizes/2L/hiden_size", 1, "did you mean `hidden_size`"),
        ("families/trilm/peak_lrs", {}, "did you mean `peak_lr`"),
        ("quantization/bits", [9], "should be 2, 3, 4, 5, 6, 7 or 8; got 9"),
        ("training/total_tokens", "many", "training.total_tokens: input should be a valid integer; got 'many'"),
        ("training/total_tokens", True, "valid integer; got True"),
        ("training/total_tokens", 0, "greater than or equal to 1; got 0"),
        ("training/adam_eps", float("nan"), "adam_eps: "),
        (
            "families/trilm/batch_tokens",
            500,
            "must be a multiple of training.sequence_length, 128; got 500. The next one is 512",
        ),
        (
            "families/floatlm/interventions",
            ["none"],
            "chooses among `lr_drop` and `weight_decay_stop_at`; got ['none'] without both",
        ),
        ("families/trilm/interventions", ["neither"], "should be 'both', 'only-lr-drop', 'only-decay-stop' or 'none'"),
        ("training/gradient_clip_norm", float("inf"), "gradient_clip_norm: "),
        ("corpus/test_fraction", -0.1, "test_fraction: input should be greater than 0; got -0.1"),
        (
            "families/trilm/peak_lr",
            {"9B": 1e-3},
            "families.trilm.peak_lr must have one entry for each of `sizes` (2L); unknown: ['9B']",
        ),
        (
            "families/trilm/lr_drop",
            {"at": 0.02, "to": 0.5},
            "families.trilm.lr_drop.at: the drop must follow the warm-up of 2 steps; got 0.02 of 40",
        ),
        ("families/trilm/lr_drop", {"at": 0.5, "to": 0.0}, "lr_drop.to"),
        ("training/total_tokens", 512, "families.trilm.lr_drop.at: the drop must follow the warm-up of 0 steps"),
        ("families/trilm/lr_drop", {"at": 0.5, "to": {}}, "families.trilm.lr_drop.to must have one entry"),
        ("sizes/2L/num_attention_heads", 5, "heads of even width; got 5 and 128"),
        ("sizes/2L/scales_per_matrix", 3, "sizes.2L.scales_per_matrix: must divide `hidden_size`; got 3 and 128"),
        ("families/floatlm/micro_batch_size", 2, "families.floatlm.micro_batch_size: unknown key"),
        (
            "quantization/group_size",
            {4: 256, 3: 128, 6: -1, 8: -1},
            "must divide `hidden_size` of size 2L; got 256 and 128",
        ),
        ("quantization/group_size", {4: 128}, "needs an entry for every width"),
        ("tokenizer/vocab_size", 10**30, "less than or equal to"),
        ("families/floatlm/peak_lr", {"table": "missing.csv"}, "missing.csv: cannot be read"),
        ("evaluation/suites", {}, "evaluation.suites"),
        (
            "evaluation/built_tasks/tasks",
            ["cloze", "continuation"],
            "suites.held_out.tasks: held_out_text, minimal_pairs must be built; add to evaluation.built_tasks.tasks",
        ),
        ("training/precision", "8-bit", "precision"),
        (
            "families/trilm/quantized_embedding",
            True,
            "families.trilm.quantized_embedding: trilm has no rule for an embedding; got true. Drop it; these have one: "
            "tbt_w1a1, tbt_w1a16, tbt_w1a8, tbt_w2a16, tbt_w2a2, tbt_w2a8.",
        ),
        ("families/trilm/quantized_embedding", "yes", "should be a valid boolean; got 'yes'"),
    ],
)
def test_bad_value_is_refused_with_its_key(tmp_path, key, value, message):
    assert message in problems(changed(tmp_path, (key, value)))


def test_all_problems_come_at_once(tmp_path):
    text = problems(changed(tmp_path, ("seed", "x"), ("quantization/bits", [5]), ("training/unknown", 1)))
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2: duplicate key 'a'; keep one"),
        ("a: &x [1]\nb: *x\n", "aliases are not allowed"),
        ("a: [1\n", "correct the YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("\ttab: 1\n", "correct the YAML"),
        ("", "study.yaml"),
        ("- 1\n", "study.yaml"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert message in problems(path)


def test_missing_and_binary_files_are_refused(tmp_path):
    assert "no such file; check the path" in problems(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in problems(tmp_path / "binary.yaml")


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "1E-3", "0.001"])
def test_exponents_are_numbers(tmp_path, text):
    (tmp_path / "x.yaml").write_text(f"rate: {text}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"rate": 0.001}


def test_formatting_and_order_change_no_config(tmp_path):
    reordered = dict(reversed(read_yaml(TINY).items()))
    (tmp_path / "tiny.yaml").write_text("# a comment\n" + yaml.safe_dump(reordered, default_flow_style=True))
    assert resolved_configs(load_study(TINY), "tiny") == resolved_configs(load_study(tmp_path / "tiny.yaml"), "tiny")


def test_a_list_of_rates_makes_variants(tmp_path):
    study = load_study(changed(tmp_path, ("families/trilm/peak_lr", {"2L": [1e-3, 4e-3]})))
    assert set(study.pretrained) == {"floatlm/2L", "trilm/2L+lr1e-3", "trilm/2L+lr4e-3"}
    assert study.pretrained["trilm/2L+lr4e-3"].peak_lr_after_drop == pytest.approx(0.0025)


def test_rates_come_from_the_row_with_the_lowest_validation_loss(tmp_path):
    table = tmp_path / "rates.csv"
    with table.open("w") as file:
        file.write("# a comment with date and machine\n")
        writer = csv.writer(file)
        writer.writerows([["family", "size", "peak_lr", "valid_loss"], ["floatlm", "2L", 0.001, 5.0]])
        writer.writerows([["floatlm", "2L", 0.002, 4.0], ["floatlm", "2L", 0.004, 4.5], ["trilm", "2L", 0.008, 1.0]])
    study = load_study(changed(tmp_path, ("families/floatlm/peak_lr", {"table": str(table)})))
    assert study.pretrained["floatlm/2L"].peak_lr == 0.002


@pytest.mark.parametrize("name", ["demo-rates", "tbt-rates"])
def test_sweep_plans_nothing_that_reads_the_test_split(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    study = load_study(ROOT / "studies" / f"{name}.yaml")
    planned = resolved_configs(study, name)
    assert not [path for path in planned if path.startswith(("tasks", "evaluation", "tokens/test"))]


def test_demo_and_its_sweep_train_the_same_way(monkeypatch):
    monkeypatch.chdir(ROOT)
    demo, sweep = (load_study(ROOT / "studies" / f"{name}.yaml") for name in ("demo", "demo-rates"))
    for model_id, recipe in demo.pretrained.items():
        twin = sweep.pretrained[f"{model_id}+lr{rate_label(recipe.peak_lr)}"]
        assert recipe.model_dump(exclude={"model_id"}) == twin.model_dump(exclude={"model_id"})


def test_low_bit_activations_are_trained_as_their_sweep_and_400_steps_of_the_demo(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    shorter = tmp_path / "demo.yaml"
    shorter.write_text(
        (ROOT / "studies/demo.yaml").read_text().replace("total_tokens: 819_200", "total_tokens: 409_600")
    )
    study, sweep = (load_study(ROOT / "studies" / f"{name}.yaml") for name in ("tbt", "tbt-rates"))
    demo = load_study(shorter)
    plain = {model_id: run for model_id, run in study.pretrained.items() if not ModelId.parse(model_id).variant}
    assert len(plain) == 10 and study.data_configs == demo.data_configs
    for model_id, recipe in plain.items():
        twin = demo.pretrained.get(model_id) or sweep.pretrained[f"{model_id}+lr{rate_label(recipe.peak_lr)}"]
        rates = {"peak_lr", "min_lr"} if model_id in demo.pretrained else set()  # the demo has those of 800 steps
        other = {"model_id"} | rates
        assert recipe.model_dump(exclude=other) == twin.model_dump(exclude=other)
    assert len({tuple(rates) for rates in sweep.rates.values()}) == 1  # as many chances for each family


@pytest.mark.parametrize(("rate", "label"), [(0.004, "4e-3"), (0.016, "1.6e-2"), (1.0, "1e0"), (0.00024, "2.4e-4")])
def test_rate_label(rate, label):
    assert rate_label(rate) == label


def test_schedule_ablation_is_a_switch(tmp_path):
    switch = ["both", "only-lr-drop", "only-decay-stop", "none"]
    runs = load_study(changed(tmp_path, ("families/trilm/interventions", switch))).pretrained
    found = {
        model_id: (run.lr_drop_step, run.peak_lr_after_drop, run.weight_decay_stop_step)
        for model_id, run in runs.items()
        if run.family == "trilm"
    }
    assert found == {
        "trilm/2L": (20, 0.005, 27),
        "trilm/2L+only-lr-drop": (20, 0.005, None),
        "trilm/2L+only-decay-stop": (None, None, 27),
        "trilm/2L+none": (None, None, None),
    }


def test_a_quantized_embedding_is_a_switch_that_no_other_config_knows(tmp_path):
    on, off = (read_yaml(TINY)["families"]["floatlm"] for _ in range(2))
    on["quantized_embedding"] = True
    study = load_study(changed(tmp_path, ("families/tbt_w1a1", on), ("families/tbt_w1a8", off)))
    on, off = (study.pretrained[f"tbt_{family}/2L"] for family in ("w1a1", "w1a8"))
    assert on.shape == off.shape.model_copy(update={"quantized_embedding": True})
    written = [json.loads(run.model_dump_json())["shape"] for run in (on, off)]
    assert written[0] == written[1] | {"quantized_embedding": True} and "quantized_embedding" not in written[1]
    assert on == type(on).model_validate_json(on.model_dump_json())
    learned = study.sizes_in_bits["tbt_w1a1/2L"] - study.sizes_in_bits["tbt_w1a8/2L"]
    activations, embedding, rows = 16 * 2 * 8, 512 * 128 * (1 - 16), 16 * 512
    assert learned == pytest.approx(activations + embedding + rows)


def test_seeds_make_variants_that_differ_in_the_seed_of_training_alone(tmp_path):
    plain, study = load_study(TINY), load_study(changed(tmp_path, ("seeds", [1, 2, 3])))
    variants = {"floatlm/2L", "floatlm/2L+seed2", "floatlm/2L+seed3", "trilm/2L", "trilm/2L+seed2", "trilm/2L+seed3"}
    assert set(study.pretrained) == variants
    assert study.pretrained["trilm/2L"] == plain.pretrained["trilm/2L"]  # what was trained before stays as it is
    other = study.pretrained["trilm/2L+seed2"].model_dump()
    assert other == plain.pretrained["trilm/2L"].model_dump() | {"model_id": "trilm/2L+seed2", "seed": 2}
    quantized = study.quantized["quantlm/2L+seed3-4bit"]
    assert quantized.seed == plain.seed  # calibrated on the same text
    assert str(ModelId.parse("quantlm/2L+seed3-4bit").first_seed) == "quantlm/2L-4bit"
    assert str(ModelId.parse("trilm/2L+lr4e-3-seed2@8").first_seed) == "trilm/2L+lr4e-3@8"
    for seeds in ([2, 3], [1, 1]):
        assert "`seeds` must hold `seed`, 1, and each seed once" in problems(changed(tmp_path, ("seeds", seeds)))


def test_distillation_makes_a_variant_taught_by_the_twin_of_its_seed(tmp_path):
    plain = load_study(TINY)
    study = load_study(changed(tmp_path, ("families/trilm/distillation", {"hidden_states": True}), ("seeds", [1, 2])))
    taught = {name: run.distillation for name, run in study.pretrained.items() if run.distillation}
    assert {name: (section.teacher, section.hidden_states) for name, section in taught.items()} == {
        "trilm/2L+distilled": ("floatlm/2L", True),
        "trilm/2L+distilled-seed2": ("floatlm/2L+seed2", True),
    }
    assert list(study.pretrained)[-2:] == list(taught)  # after their teachers
    run, twin = study.pretrained["trilm/2L+distilled"], study.pretrained["trilm/2L"]
    assert run.summary == f"{twin.summary}, taught by floatlm/2L"
    config = json.loads(run.model_dump_json())
    assert config.pop("distillation") == {"teacher": "floatlm/2L", "hidden_states": True}
    # without a teacher a config is, byte for byte, what it was before there was a choice
    assert config == json.loads(twin.model_dump_json()) | {"model_id": "trilm/2L+distilled"}
    assert twin.model_dump_json() == plain.pretrained["trilm/2L"].model_dump_json()
    assert all(ModelId.parse(name).first_seed.variant is None for name in study.quantized)  # of the teachers alone

    jobs = {job.name: job for job in jobs_of(study)}
    job, other = jobs["trilm/2L+distilled"], jobs["trilm/2L"]
    assert job.after == (*other.after, "floatlm/2L")
    teacher = 2 * run.shape.num_parameters * run.max_steps * run.tokens_per_step
    assert job.flop - other.flop == pytest.approx(teacher)
    resources = StudyResources(study, None)
    assert (
        resources.needs("pretrain_model", "trilm/2L+distilled").mem_mb
        > resources.needs("pretrain_model", "trilm/2L").mem_mb
    )


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"floatlm/distillation": {}, "trilm/distillation": {"sizes": ["9L"]}},
            [
                "families.floatlm.distillation: floatlm is the teacher, and learns from none; drop it",
                "families.trilm.distillation.sizes: 9L: no row in `sizes` (2L)",
            ],
        ),
        (
            {"trilm/distillation": {"sizes": ["2L"]}, "floatlm/peak_lr": {"2L": [4e-3, 8e-3]}},
            [
                "families.trilm.distillation: the teacher must be one model, and floatlm of size 2L is 2; give it one rate"
            ],
        ),
        (
            {"trilm/distillation": {"teacher": "bitnet"}},
            ["distillation.teacher: input should be 'floatlm'; got 'bitnet'"],
        ),
        ({"trilm/distillation": {"size": ["2L"]}}, ["distillation.size: unknown key; did you mean `size"]),
    ],
)
def test_distillation_without_one_teacher_is_refused(tmp_path, changes, messages):
    text = problems(changed(tmp_path, *((f"families/{key}", value) for key, value in changes.items())))
    assert len(text.splitlines()) == len(messages)
    assert all(message in text for message in messages), text


def test_distillation_needs_its_teacher_among_the_families(tmp_path):
    recipe = read_yaml(TINY)["families"]["trilm"] | {"distillation": {}}
    path = changed(tmp_path, ("families", {"trilm": recipe}), ("quantization", None))
    assert "families.trilm.distillation.teacher: floatlm is not among `families`; add it" in problems(path)


def test_checkpoints_are_evaluated_by_a_line(tmp_path):
    named = ["trilm/2L@8", "quantlm/2L@16-4bit"]
    study = load_study(changed(tmp_path, ("evaluation/checkpoints", named)))
    added = {place: stage for place, stage in study.artifacts.items() if "@" in place}
    suites = study.evaluation.suites
    assert added == {
        "trilm/2L@8": "checkpoint",
        "floatlm/2L@16": "checkpoint",  # what the QuantLM is made from, and is not evaluated itself
        "quantlm/2L@16-4bit": "quantize",
        **{f"evaluation/{name}/{suite}": "evaluate" for name in named for suite in suites},
    }
    assert set(study.models) == set(load_study(TINY).models)
    every = load_study(changed(tmp_path, ("evaluation/checkpoints", "all")))
    kept = {f"{name}@{step}" for name, run in every.pretrained.items() for step in run.checkpoint_steps}
    assert set(every.evaluated_checkpoints) == kept and len(kept) > 4
    jobs = {job.name: job for job in jobs_of(study)}
    assert StudyResources(study, None).needs("publish_checkpoint", "floatlm/2L@16").minutes > 0
    assert jobs["quantlm/2L@16-4bit"].after[0] == "floatlm/2L@16" and jobs["floatlm/2L@16"].after == ("floatlm/2L",)
    for name, message in {
        "trilm/2L@7": "no weights are kept of this step; kept: 1, 2, 4, 8",
        "trilm/9L@8": "no model is trained to keep it; name one of floatlm/2L, trilm/2L",
        "trilm/2L": "no weights are kept of this step",
        "quantlm/2L@16-5bit": "the study makes no quantlm/2L-5bit",
        "tri": "not a model id",
    }.items():
        assert message in problems(changed(tmp_path, ("evaluation/checkpoints", [name])))


def test_large_runs_are_compiled_and_small_ones_are_not(monkeypatch):
    monkeypatch.chdir(ROOT)
    demo, paper = (load_study(ROOT / "studies" / f"{name}.yaml") for name in ("demo", "paper"))
    assert not any(run.is_compiled for run in demo.pretrained.values())
    assert all(run.is_compiled for run in paper.pretrained.values())


def test_twins_share_seed_order_and_shape(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load_study(ROOT / "studies" / "demo.yaml")
    own = {"model_id", "family", "schedule", "peak_lr", "min_lr", "lr_drop_step", "peak_lr_after_drop"}
    own |= {"weight_decay_stop_step"}
    for size in study.sizes:
        twins = [study.pretrained[f"{family}/{size}"].model_dump(exclude=own) for family in ("floatlm", "trilm")]
        assert twins[0] == twins[1]
