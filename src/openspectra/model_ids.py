"""The one way to name a model: `<family>/<size>[+variant][@step]`, and for GPTQ `quantlm/...-<bits>bit[-c<k>]`."""

import re
from dataclasses import dataclass, replace

QUANTLM = "quantlm"
_PATTERN = re.compile(
    r"(?P<family>[a-z][a-z0-9_]*)/(?P<size>[0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)"
    r"(?:\+(?P<variant>[A-Za-z0-9.-]*?[A-Za-z0-9]))?(?:@(?P<step>\d+))?"
    r"(?:-(?P<bits>\d+)bit(?:-c(?P<calibration>\d+))?)?"
)
_SEED = re.compile(r"(^|-)seed\d+$")
DISTILLED = "distilled"
"""Part of the variant of a model that learned from a teacher too."""
_DISTILLED = re.compile(rf"(^|-){DISTILLED}(?=-|$)")


@dataclass(frozen=True)
class ModelId:
    """The parts of a model's name. `size` is an opaque label; `bits` is set for QuantLMs only."""

    family: str
    size: str
    variant: str | None = None
    step: int | None = None
    bits: int | None = None
    calibration: int | None = None

    def __str__(self) -> str:
        text = f"{self.family}/{self.size}"
        text += f"+{self.variant}" if self.variant else ""
        text += f"@{self.step}" if self.step is not None else ""
        text += f"-{self.bits}bit" if self.bits else ""
        return text + (f"-c{self.calibration}" if self.calibration is not None else "")

    @classmethod
    def parse(cls, text: str) -> "ModelId":
        """Return the parts of `text`. Raises `ValueError` with the pattern where it is no model id."""
        match = _PATTERN.fullmatch(text)
        if not match or (match["family"] == QUANTLM) != bool(match["bits"]):
            raise ValueError(
                f"not a model id: {text!r}; expected e.g. trilm/99M, trilm/99M+seed1@500 or quantlm/99M-4bit."
            )
        numbers = {key: int(match[key]) if match[key] else None for key in ("step", "bits", "calibration")}
        return cls(match["family"], match["size"], match["variant"], **numbers)

    @property
    def kind(self) -> str:
        """The family, for QuantLMs with the bits: the six columns of the study (`quantlm-4bit`, `trilm`, ...)."""
        return f"{self.family}-{self.bits}bit" if self.bits else self.family

    @property
    def float_parent(self) -> "ModelId":
        """The FloatLM of the same size, variant and step: what a QuantLM is made from, and what every gap is to.

        FloatLMs are not distilled: that of `trilm/99M+distilled` is `floatlm/99M`.
        """
        return replace(self.undistilled, family="floatlm", bits=None, calibration=None)

    @property
    def undistilled(self) -> "ModelId":
        """The same model without a teacher: `trilm/99M` for `trilm/99M+distilled`."""
        return replace(self, variant=_DISTILLED.sub("", self.variant or "").removeprefix("-") or None)

    @property
    def first_seed(self) -> "ModelId":
        """The same model with the seed of the study: `trilm/99M` for `trilm/99M+seed2`."""
        return replace(self, variant=_SEED.sub("", self.variant or "") or None)


def seed_label(seed: int) -> str:
    """Return a seed of training as it stands at the end of a variant."""
    return f"seed{seed}"


def rate_label(rate: float) -> str:
    """Return a rate as it stands in model ids: 0.004 -> `4e-3`."""
    mantissa, exponent = f"{rate:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
