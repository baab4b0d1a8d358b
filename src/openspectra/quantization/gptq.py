"""QuantLM: GPTQ of a FloatLM with gptqmodel, the successor that auto-gptq names (paper, QuantLM).

The artifact is a plain Llama folder with the dequantized weights, which is what gets evaluated, and `gptq/` with the
packed ones. What would not be GPTQ is an error that names the layer: a fallback to round-to-nearest, activations that are
no finite numbers, a Hessian that gptqmodel alters beyond its damping.
"""

import csv
import gc
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact, write_csv
from openspectra.data.tokenizer import TOKENIZER_FILES
from openspectra.data.tokens import Tokens
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.model.size import bits_per_weight, model_size_bits
from openspectra.quantization.calibration import draw_calibration
from openspectra.quantization.config import QuantizeConfig

BATCH_SIZE = 8
"""Calibration sequences per forward pass; fixed, because it changes the order of sums."""
SETTINGS = {
    "GPTQMODEL_CPU_WORKERS": "2",  # its default, half of the cores, is refused on a machine with two
    "TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1",
    "TORCHDYNAMO_DISABLE": "1",  # gptqmodel compiles its dequantization: 20 s for work of milliseconds
    "HF_HUB_OFFLINE": "1",
    "LOGBAR_DISABLE_NOTEBOOK_DETECTION": "1",  # a failing import for each of a thousand lines
    "LOGBAR_PROGRESS_OUTPUT_INTERVAL": "1000",
}


def quantize(
    config: QuantizeConfig, model: Artifact, tokens_train: Artifact, tokens_valid: Artifact, folder: Path
) -> dict[str, Any]:
    """Write the QuantLM of one FloatLM into `folder`; return its counts, mean layer error and distance from the FloatLM.

    Raises `ConfigError` for a model that is no FloatLM, `OpenSpectraError` naming the layer that GPTQ failed on.
    """
    if model.manifest.config.get("family") != "floatlm":
        raise ConfigError([f"--model: {model.folder} is a {model.manifest.config.get('family')}; give a floatlm."])
    model.verify()
    os.environ.update(SETTINGS)
    packed = folder / "gptq"
    samples = draw_calibration(config, Tokens(tokens_train), folder / "calibration.csv").tolist()
    rows = _run_gptq(config, model.folder, samples, packed)
    write_csv(folder / "layers.csv", rows[0], rows)
    _write_dense(packed, folder)
    for target in (folder, packed):  # gptqmodel writes a tokenizer of its own, with other settings
        for name in TOKENIZER_FILES:
            shutil.copyfile(model.file(name), target / name)
    from openspectra.quantization.divergence import compare

    errors = {
        "mean_layer_loss": sum(row["loss"] for row in rows) / len(rows),
        "num_damping_retries": sum(row["retries"] for row in rows),
    }
    return _counts(config, model) | errors | compare(config, model.folder, folder, Tokens(tokens_valid))


def _run_gptq(
    config: QuantizeConfig, model_folder: Path, samples: list[list[int]], packed: Path
) -> list[dict[str, Any]]:
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel import QuantizeConfig as GPTQConfig

    from openspectra.device import device

    gc.freeze()  # gptqmodel collects garbage at every step, and would search all that the libraries hold
    settings = GPTQConfig(
        bits=config.bits,
        group_size=config.group_size,
        sym=config.sym,
        desc_act=config.desc_act,
        damp_percent=config.damp_percent,
        act_group_aware=False,  # gptqmodel's default reorders the groups, which GPTQ does not
        fallback=None,
        offload_to_disk=False,  # its temporary folder's name would enter config.json
        device=device(),
    )
    # the default on a CPU is bfloat16, which would round the weights before GPTQ sees them
    model = GPTQModel.load(str(model_folder), settings, dtype=torch.float32)
    with _errors_let_through(), _nothing_but_gptq(config.model_id):
        model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples], batch_size=BATCH_SIZE)
    model.save(str(packed), max_shard_size=None)  # one file, as exports read it; 3.9B at 8 bits is more than 4 GB
    with (packed / "quant_log.csv").open(newline="") as file:
        rows = [_layer_row(row, config, settings.damp_auto_increment) for row in csv.DictReader(file)]
    rows.sort(key=lambda row: (row["layer"], row["module"]))  # written by parallel workers in any order
    (packed / "quant_log.csv").unlink()  # it holds times; layers.csv has the rest
    return rows


@contextmanager
def _errors_let_through() -> Iterator[None]:
    """Have gptqmodel's workers hand an exception to who waits for it; they would end the process, past all handlers."""
    from gptqmodel.utils.threadx import _DeviceWorker

    abort = _DeviceWorker._abort_process

    def abort_unless_handed_on(worker, error: BaseException) -> None:
        if worker._pending_warmups:  # before any task: nobody is told
            abort(worker, error)

    _DeviceWorker._abort_process = abort_unless_handed_on
    try:
        yield
    finally:
        _DeviceWorker._abort_process = abort


@contextmanager
def _nothing_but_gptq(model_id: str) -> Iterator[None]:
    """Refuse the Hessians that gptqmodel would mend, by a floor on the diagonal, and name the layer of whatever fails."""
    import torch
    from gptqmodel.quantization.gptq import GPTQ

    invert, solve = GPTQ.hessian_inverse, GPTQ.quantize

    def checked_inverse(layer, hessian):
        if not torch.isfinite(hessian).all():
            raise ValueError(
                "its inputs are no finite numbers on the calibration text; the FloatLM is broken, train it anew or take a "
                "checkpoint from before"
            )
        diagonal = hessian.diagonal().clone()
        factor, damping = invert(layer, hessian)
        if factor is None or not torch.equal(hessian.diagonal(), diagonal):
            raise ValueError("its Hessian has no inverse, whatever the damping below 1; use more calibration samples")
        return factor, damping

    def named(layer, **keys):
        try:
            return solve(layer, **keys)
        except ValueError as error:
            raise OpenSpectraError(f"{model_id}: {layer._named_module.full_name}: {error}.") from error

    GPTQ.hessian_inverse, GPTQ.quantize = checked_inverse, named
    try:
        yield
    finally:
        GPTQ.hessian_inverse, GPTQ.quantize = invert, solve


def _layer_row(row: dict[str, str], config: QuantizeConfig, damping_step: float) -> dict[str, Any]:
    """Return the error of a layer, the damping it needed, and the steps by which that was raised until an inverse was found."""
    try:
        loss = float(row["loss"])
    except ValueError:
        loss = math.nan
    if not math.isfinite(loss) or loss >= 999999999:  # gptqmodel's mark for a layer without a GPTQ error
        raise OpenSpectraError(
            f"{config.model_id}: GPTQ failed on layer {row['layer']} {row['module']} (loss {row['loss']}); "
            "use more calibration samples or a larger damp_percent."
        )
    damping = float(row["damp"])
    return {
        "layer": int(row["layer"]),
        "module": row["module"],
        "loss": loss,
        "num_samples": int(row["samples"]),
        "damp_percent": damping,
        "retries": round((damping - config.damp_percent) / damping_step),
    }


def _write_dense(packed: Path, folder: Path) -> None:
    """Write the dequantized weights of a packed folder as an unquantized Llama folder."""
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear.torch import dequantize_model

    loaded = GPTQModel.load(str(packed), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    dequantize_model(loaded.model).save_pretrained(folder)


def _counts(config: QuantizeConfig, model: Artifact) -> dict[str, Any]:
    metrics = model.manifest.metrics
    linear, counted = metrics["num_linear_parameters"], metrics["num_counted_parameters"]
    width = bits_per_weight(f"quantlm-{config.bits}bit", config.group_size)
    return {
        "num_parameters": metrics["num_parameters"],
        "num_counted_parameters": counted,
        "num_linear_parameters": linear,
        "bits_per_weight": width,
        "model_size_bits": model_size_bits(linear, counted, width),
        **({"tokens_seen": metrics["tokens_seen"]} if "tokens_seen" in metrics else {}),
    }
