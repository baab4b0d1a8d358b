import pytest

from openspectra.model_ids import ModelId


@pytest.mark.parametrize(
    "text",
    [
        "trilm/99M",
        "floatlm/1.1B",
        "trilm/99M+seed1",
        "trilm/99M+lr4e-3",
        "trilm/1.1B+no-drop@500",
        "quantlm/99M-4bit",
        "quantlm/99M+lr1.6e-2@20-3bit-c2",
    ],
)
def test_id_survives_parsing(text):
    assert str(ModelId.parse(text)) == text


def test_variant_and_bits_are_told_apart():
    assert ModelId.parse("quantlm/0.4M+lr4e-3-6bit") == ModelId("quantlm", "0.4M", variant="lr4e-3", bits=6)


@pytest.mark.parametrize(
    ("text", "without", "twin"),
    [
        ("trilm/99M+distilled", "trilm/99M", "floatlm/99M"),
        ("trilm/99M+distilled-seed2@8", "trilm/99M+seed2@8", "floatlm/99M+seed2@8"),
        ("trilm/99M+lr4e-3-distilled", "trilm/99M+lr4e-3", "floatlm/99M+lr4e-3"),
        ("trilm/99M+lr4e-3", "trilm/99M+lr4e-3", "floatlm/99M+lr4e-3"),
        ("trilm/99M", "trilm/99M", "floatlm/99M"),
    ],
)
def test_the_twin_of_a_distilled_model_is_the_float_one_without_the_word(text, without, twin):
    model = ModelId.parse(text)
    assert (str(model.undistilled), str(model.float_parent)) == (without, twin)


@pytest.mark.parametrize("text", ["quantlm/99M", "trilm/99M-4bit", "trilm/../x", "99M", "trilm/99M+", "trilm/9 9"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="not a model id"):
        ModelId.parse(text)
