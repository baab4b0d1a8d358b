"""What each job asks for follows from its size and the site's nodes."""

from pathlib import Path

import pytest
from test_tokenizers import byte_level, llama_style

from openspectra.errors import ConfigError
from openspectra.resources import (
    GB,
    LOCAL,
    USABLE,
    Layout,
    StudyResources,
    gpu_bytes,
    host_bytes,
    layout_of,
    save_bytes,
    training_seconds,
)
from openspectra.site import LayoutWish, Site, load_site
from openspectra.strict_yaml import read_yaml
from openspectra.study import load_study

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))
TABLE = {  # GB on a GPU at micro batch 8 and 1, GB of host memory at a save (12 bytes per parameter), by hand
    "99M": (6, 2, 1.2),
    "1.1B": (45, 24, 14),
    "3.9B": (123, 78, 48),
}


@pytest.fixture(scope="module")
def paper():
    return load_study(ROOT / "studies/paper.yaml")


def load(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # studies name their tables from there
    return load_study(Path("studies", f"{name}.yaml"))


@pytest.mark.parametrize("size", TABLE)
def test_memory_is_the_table_computed_by_hand(paper, size):
    run, (eight, one, save) = paper.pretrained[f"trilm/{size}"], TABLE[size]
    for micro, expected in ((8, eight), (1, one)):
        assert gpu_bytes(run, 1, "ddp", micro, "none") / GB == pytest.approx(expected, rel=0.04, abs=0.7)
    assert host_bytes(run, LOCAL) / GB == pytest.approx(4 + save / 3 + save, rel=0.03)
    eight_nodes = Layout(nodes=8, devices=8, strategy="fsdp2")  # no process holds a whole state there
    assert save_bytes(run, eight_nodes) / GB == pytest.approx(save * 8 / 12, rel=0.03)


@pytest.mark.parametrize("study", STUDIES)
def test_one_machine_keeps_what_it_always_had(study, monkeypatch):
    resources = StudyResources(load(study, monkeypatch), None)
    trained = resources.study.pretrained
    assert {resources.layout(model) for model in trained} == ({LOCAL} if trained else set())
    threaded = {"build_tokenizer"} | (
        {"tokenize_part"} if resources.study.corpus else set()
    )  # ready tokens are indexed
    assert all(resources.needs(rule, model).threads == (2 if rule in threaded else 1) for rule, model in resources.jobs)
    assert resources.problems() == []


@pytest.mark.parametrize(
    "site", [Site(), Site(gpus=4, gpu_memory_gb=40, nodes=8), Site(gpus=1, gpu_memory_gb=140, nodes=1)]
)
def test_every_job_of_the_paper_fits_into_the_sites_nodes(paper, site):
    resources = StudyResources(paper, site)
    assert resources.problems() == []
    for rule, model in resources.jobs:
        needs = resources.needs(rule, model)
        assert needs.nodes <= site.nodes and needs.devices <= site.gpus and needs.threads <= site.cores
        assert needs.mem_mb <= site.memory_gb * 1000 and 0 < needs.minutes <= site.hours * 60
    for model, run in paper.pretrained.items():
        layout = resources.layout(model)
        assert run.global_batch_size % (layout.ranks * layout.micro_batch) == 0
        used = gpu_bytes(run, layout.ranks, layout.strategy, layout.micro_batch, layout.recompute)
        assert used <= USABLE * site.gpu_memory_gb * GB


def test_larger_models_take_more_gpus_and_end_in_time(paper):
    site = Site()
    layouts = {size: layout_of(paper.pretrained[f"trilm/{size}"], site) for size in paper.sizes}
    ranks = [layout.ranks for layout in layouts.values()]
    assert ranks == sorted(ranks) and ranks[0] == 1 and ranks[-1] == 16
    assert layouts["99M"] == Layout(1, 1, "ddp", 8, "none") and layouts["3.9B"].strategy == "fsdp2"
    for size, layout in layouts.items():
        assert training_seconds(paper.pretrained[f"trilm/{size}"], site, layout) <= 14 * 86400


def test_a_small_run_has_the_layout_and_threads_of_a_laptop_on_a_cluster(monkeypatch):
    study = load("tiny", monkeypatch)
    here, there = StudyResources(study, None), StudyResources(study, Site(gpus=2, memory_gb=70, cores=16, nodes=2))
    for model in study.pretrained:
        layout = there.layout(model)
        assert (layout.ranks, layout.strategy, layout.recompute) == (1, "ddp", "none")
        for rule in ("pretrain_model", "evaluate_model"):
            assert here.needs(rule, model).threads == there.needs(rule, model).threads == 1


def test_a_wish_holds_and_the_rest_follows_from_it(paper):
    run, site = (
        paper.pretrained["trilm/3.9B"],
        Site(layouts={"3.9B": LayoutWish(nodes=4), "1.1B": LayoutWish(devices=2)}),
    )
    assert layout_of(run, site).nodes == 4
    wished = layout_of(run, site, LayoutWish(nodes=1, recompute="blocks"))
    assert (wished.nodes, wished.devices, wished.recompute) == (1, 8, "blocks")
    resources = StudyResources(paper, site)
    assert resources.needs("pretrain_model", "trilm/1.1B").devices == 2
    assert (
        resources.needs("pretrain_model", "trilm/1.1B").mem_mb
        < StudyResources(paper, Site()).needs("pretrain_model", "trilm/1.1B").mem_mb
    )


@pytest.mark.parametrize(
    ("site", "told"),
    [
        (Site(gpus=1, nodes=1), "trilm/3.9B: needs 80 GB on each GPU at least, and a GPU of the site has 80 GB"),
        (Site(memory_gb=64), "pretrain_model trilm/3.9B: needs 191.7 GB a node, the site has 64 (`memory_gb`"),
        (Site(hours=1), "evaluate_model trilm/3.9B: takes 7 hours, a job of the site has 1 (`hours`"),
        (
            Site(layouts={"3.9B": LayoutWish(devices=3)}),
            "no number of GPUs that a job may have divides its batch of 512",
        ),
        (Site(layouts={"trilm/3.9B": LayoutWish(micro_batch=3)}), "micro batches of 3 do not divide its batch of 512"),
        (Site(layouts={"3.9B": LayoutWish(nodes=8)}), "needs 8 nodes, the site has 4 (`nodes`"),
    ],
)
def test_what_cannot_fit_is_one_line(paper, site, told):
    problems = StudyResources(paper, site).problems()
    assert any(told in line for line in problems), problems
    assert all("\n" not in line for line in problems)


def test_the_shipped_site_file_is_the_assumption_and_its_mistakes_are_told_at_once(tmp_path):
    assert load_site(ROOT / "slurm/site.yaml") == Site()
    assert set(read_yaml(ROOT / "slurm/site.yaml")) == set(Site.model_fields) - {"layouts"}
    path = tmp_path / "site.yaml"
    path.write_text('gpu: 4\nhours: 0\nmemory_gb: "64"\n')
    with pytest.raises(ConfigError) as error:
        load_site(path)
    assert len(error.value.problems) == 3 and "did you mean `gpus`?" in str(error.value)
    path.write_text("")
    with pytest.raises(ConfigError, match="give the numbers of a node"):
        load_site(path)


def test_data_jobs_ask_for_the_memory_of_the_longest_document(monkeypatch, tmp_path):
    """Nothing more for usual ones; a tokenizer that cannot be given a document in pieces holds all of its encoding."""
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path))
    usual = load("tiny", monkeypatch)

    def memory(rule: str, **keys) -> int:
        corpus = usual.corpus.model_copy(update={"max_document_bytes": 100_000_000} if keys else {})
        tokenizer = usual.tokenizer.model_copy(update=keys)
        return (
            StudyResources(usual.model_copy(update={"corpus": corpus, "tokenizer": tokenizer}), Site())
            .needs(rule)
            .mem_mb
        )

    tokenizer = byte_level()
    tokenizer.save(str(tmp_path / "pieces.json"))
    llama_style().save(str(tmp_path / "whole.json"))
    pieces, whole = ({"file": file, "post_processor": "remove"} for file in ("pieces.json", "whole.json"))
    for rule in ("read_source", "build_part", "tokenize_part", "check_contamination"):
        assert memory(rule) >= 3000 and memory(rule, **pieces) >= memory(rule) + 2000
    assert memory("tokenize_part", **whole) == memory("tokenize_part", **pieces) + 25_000
    assert memory("build_part", **whole) == memory("build_part", **pieces)


def test_the_update_of_half_precision_counts_where_the_passes_keep_less(paper):
    """AdamW beside a loss scaler is not fused: it holds 4 bytes more per parameter, when activations are gone."""
    run = paper.pretrained["trilm/3.9B"]
    parameters = run.shape.num_parameters
    assert run.uses_loss_scaling
    assert gpu_bytes(run, 1, "ddp", 1, "blocks") == 20 * parameters  # by hand: 79.8 GB
    assert gpu_bytes(run, 1, "ddp", 1, "none") == 20 * parameters  # kept by the passes: 8 + 6.4 + 0.3 GB of 16
    fused = run.model_copy(update={"precision": "bf16-mixed"})
    assert gpu_bytes(fused, 1, "ddp", 1, "blocks") < 18.5 * parameters
    assert gpu_bytes(run, 1, "ddp", 8, "none") == gpu_bytes(fused, 1, "ddp", 8, "none")  # 51 GB of activations
    assert gpu_bytes(run, 16, "fsdp2", 1, "blocks") == gpu_bytes(fused, 16, "fsdp2", 1, "blocks")  # a sixteenth of it


def test_quantlms_and_evaluations_are_checked_against_a_gpus_memory(paper):
    """By hand at 3.9B: two models in float32 are 31.9 GB and their logits 1.9; weights in float16 are 8 GB."""
    needs = StudyResources(paper, Site()).needs
    assert needs("quantize_model", "quantlm/3.9B-4bit").gpu_mb == pytest.approx(33_800, rel=0.01)
    assert needs("evaluate_model", "trilm/3.9B").gpu_mb == pytest.approx(9_150, rel=0.01)
    assert needs("quantize_model", "quantlm/99M-4bit").gpu_mb == pytest.approx(5_000, rel=0.1)  # GPTQ's samples: 4.3 GB
    small = StudyResources(paper, Site(gpu_memory_gb=32, nodes=8, days_per_training=100))
    problems = small.problems()
    told = (
        "quantize_model quantlm/3.9B-4bit: needs 37.56 GB on a GPU, a tenth kept free, the site has 32 (`gpu_memory_gb`"
    )
    assert any(told in line for line in problems) and not any("2.4B" in line or "evaluate" in line for line in problems)


def test_ready_token_files_are_indexed_with_what_that_takes(paper, tmp_path, monkeypatch):
    """One thread and a block of tokens; hours for the largest file, as a job that is cut off begins it anew."""
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path))
    needs = StudyResources(paper, Site()).needs("tokenize_part")
    assert (needs.threads, needs.mem_mb, needs.minutes) == (1, 3000, 12 * 60)
    assert StudyResources(paper, Site(hours=6)).needs("tokenize_part").minutes == 6 * 60


def test_text_that_becomes_tokens_keeps_its_threads(monkeypatch):
    needs = StudyResources(load("paper-text", monkeypatch), Site()).needs("tokenize_part")
    assert (needs.threads, needs.mem_mb, needs.minutes) == (16, 18000, 60)
