"""Released weights: a folder in the authors' layout becomes a model of a study, or is refused with the reason."""

import json
import shutil

import pytest
import torch
from conftest import ROOT

from openspectra.config import validate
from openspectra.data.tokenizer import loader_settings
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.model.config import LlamaShape, ReleaseConfig
from openspectra.model.release import import_release
from openspectra.model.size import model_size_bits
from openspectra.strict_yaml import read_yaml
from openspectra.study import Study

SHAPE = LlamaShape(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    scales_per_matrix=2,
)
SOURCE = "SpectraSuite/TriLM_2L_Unpacked"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A data folder with a TriLM in the layout of the release: half precision, unpacked, two scales a matrix."""
    from transformers import LlamaConfig, LlamaForCausalLM

    data = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    config = LlamaConfig(**{name: getattr(SHAPE, name) for name in names}, pretraining_model_parallel=2)
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if "_proj" in name:
            halves = weight.data.chunk(2)
            weight.data = torch.cat(
                [half.sign() * (half.abs() > 0.01) * scale for half, scale in zip(halves, (0.5, 0.25), strict=True)]
            )
    model.half().save_pretrained(data / SOURCE)
    (data / SOURCE / "tokenizer.json").write_text("{}")
    (data / SOURCE / "tokenizer_config.json").write_text(json.dumps(loader_settings("<|end|>", {})))
    return data


@pytest.fixture
def data(published, tmp_path, monkeypatch):
    shutil.copytree(published, tmp_path / "data")
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def config(**changes) -> ReleaseConfig:
    given = {
        "model_id": "trilm/2L",
        "family": "trilm",
        "source": SOURCE,
        "shape": SHAPE,
        "vocab_size": 400,
        "tokens_seen": 300,
    }
    return ReleaseConfig(**given | changes)


def test_a_local_folder_becomes_a_model_with_its_counts(data, tmp_path):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    out.mkdir()
    metrics = import_release(config(), out)
    released = AutoModelForCausalLM.from_pretrained(data / SOURCE, dtype="auto").state_dict()
    taken = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert all(torch.equal(taken[name], weight) and weight.dtype == torch.float16 for name, weight in released.items())
    linear = SHAPE.num_linear_parameters
    assert metrics["num_parameters"] == SHAPE.num_parameters and metrics["num_linear_parameters"] == linear
    assert metrics["num_counted_parameters"] == SHAPE.num_parameters  # 400 entries are 512 rows, as the file has
    assert metrics["model_size_bits"] == model_size_bits(linear, SHAPE.num_parameters, 1.58)
    rows = (out / "states.csv").read_text().splitlines()
    assert rows[0] == "layer,num_weights,num_scales,sparsity" and len(rows) == 8
    zeros = sum((weight == 0).sum() for name, weight in released.items() if "_proj" in name)
    assert metrics["sparsity"] == pytest.approx(float(zeros) / linear, abs=1e-6)
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    again = tmp_path / "again"
    again.mkdir()
    assert import_release(config(), again) == metrics
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in out.iterdir())


def test_what_is_not_the_model_of_the_study_is_refused(data, tmp_path):
    folder = data / SOURCE
    wider = SHAPE.model_copy(update={"hidden_size": 128, "scales_per_matrix": 1})
    with pytest.raises(
        ConfigError, match="hidden_size 64, not 128, pretraining_model_parallel 2, not 1; name the folder"
    ):
        import_release(config(shape=wider), tmp_path)
    embedded = SHAPE.model_copy(update={"quantized_embedding": True})
    with pytest.raises(OpenSpectraError, match="several magnitudes in a row: .* drop `families.trilm.quantized_emb"):
        import_release(config(shape=embedded), tmp_path)
    with pytest.raises(ConfigError, match="no folder .*none, and no name of a repository"):
        import_release(config(source="none"), tmp_path)
    (folder / "tokenizer.json").rename(folder / "aside")
    with pytest.raises(OpenSpectraError, match="tokenizer.json: missing; put the model's tokenizer there"):
        import_release(config(), tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(OpenSpectraError, match="config.json: not readable"):
        import_release(config(), tmp_path)


@pytest.mark.parametrize("damage", ["latent", "missing"])
def test_weights_that_are_no_released_ones_are_refused(data, tmp_path, damage):
    from safetensors.torch import load_file, save_file

    path = data / SOURCE / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    if damage == "latent":
        weights[name] = torch.randn(weights[name].shape).half()
    else:
        del weights[name]
    save_file(weights, path, {"format": "pt"})
    message = {"latent": r"up_proj.weight holds [\d,]+ magnitudes where 2 scales", "missing": f"no weights for {name}"}
    with pytest.raises(OpenSpectraError, match=message[damage]):
        import_release(config(), tmp_path)


def test_a_study_of_released_weights_trains_nothing_and_may_have_no_text():
    tiny = read_yaml(ROOT / "studies/tiny.yaml")
    released = {"floatlm": {"2L": "a/b"}, "trilm": {"2L": "a/c"}}
    study = validate(Study, tiny | {"released": released}, "x.yaml")
    assert study.pretrained == {} and list(study.imported) == ["floatlm/2L", "trilm/2L"] and len(study.quantized) == 4
    assert (
        set(study.artifacts.values()) >= {"release", "quantize", "evaluate", "tokens"}
        and "pretrain" not in study.artifacts.values()
    )
    pinned = validate(Study, tiny | {"released": {"floatlm": {"2L": "a/b@c0ffee"}}}, "x.yaml").imported["floatlm/2L"]
    assert (pinned.source, pinned.revision) == ("a/b", "c0ffee") and study.imported["trilm/2L"].revision is None
    alone = {"released": released, "corpus": None, "quantization": None, "evaluation": None}
    assert set(validate(Study, tiny | alone, "x.yaml").artifacts.values()) == {"release"}
    for change, message in (
        ({"corpus": None}, "`quantization` and `evaluation.built_tasks` need text"),
        ({"released": {"trilm": {"3L": "a/c"}}}, "released.trilm: 3L: no row in `sizes`"),
        ({"released": {"bilm": {"2L": "a/c"}}}, "released.bilm: add the family"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(Study, tiny | {"released": released} | change, "x.yaml")
