"""QuantLMs against the reference GPTQ, plain rounding, the mere cast to float16, and gptqmodel without this project.

`python benchmarks/quantization.py results/demo floatlm/1.1M [floatlm/...]` quantizes trained FloatLMs at 2, 3, 4, 6 and
8 bits with the settings of the study and prints a table in Markdown: KL to the FloatLM on the validation split by way
of quantizing, perplexity of ours and of the plain run, most distinct values in a group.
"""

import argparse
import copy
import math
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from openspectra.artifacts import open_artifact
from openspectra.data.order import sequence_at
from openspectra.data.tokens import Tokens
from openspectra.quantization.calibration import draw_calibration
from openspectra.quantization.config import QuantizeConfig
from openspectra.quantization.gptq import BATCH_SIZE, SETTINGS, quantize

os.environ.update(SETTINGS)
WIDTHS = {2: 128, 3: 128, 4: 128, 6: -1, 8: -1}
"""Group size by width: the paper's at 3 and 4 bits."""
VALID_SEQUENCES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a study's folder")
    parser.add_argument("models", nargs="+", help="FloatLMs in it")
    parser.add_argument("--samples", type=int, default=64, help="calibration sequences")
    parser.add_argument("--length", type=int, default=256, help="tokens of each")
    arguments = parser.parse_args()
    print(
        "| model | bits | KL, ours | reference | rounding | cast to float16 | ours/reference | rounding/ours |", end=""
    )
    print(" perplexity, ours | plain gptqmodel | most values in a group |")
    print("| --- " + "| ---: " * 10 + "|")
    for name in arguments.models:
        for bits, group_size in WIDTHS.items():
            config = QuantizeConfig(
                model_id=name.replace("floatlm", "quantlm") + f"-{bits}bit",
                bits=bits,
                group_size=group_size,
                num_calibration_samples=arguments.samples,
                calibration_sequence_length=arguments.length,
                seed=1,
            )
            with tempfile.TemporaryDirectory() as folder:
                with redirect_stdout(sys.stderr):  # gptqmodel's progress
                    found = row(arguments.results, name, config, Path(folder))
                print(found, flush=True)


def row(results: Path, name: str, config: QuantizeConfig, folder: Path) -> str:
    import torch
    from reference_gptq import gptq_model

    from openspectra.quantization.divergence import divergences, load_float32, rounded

    model = open_artifact(results / name)
    train, valid = (open_artifact(results / "tokens" / split) for split in ("train", "valid"))
    (folder / "ours").mkdir()
    quantize(config, model, train, valid, folder / "ours")
    samples = draw_calibration(config, Tokens(train), folder / "calibration.csv")
    length, tokens = config.calibration_sequence_length, Tokens(valid)
    available = tokens.num_sequences(length, "")
    sequences = tokens.sequences(sequence_at(range(VALID_SEQUENCES), available, config.seed), length)
    reference = load_float32(model.folder)
    half = copy.deepcopy(reference).half().float()
    by_way = {
        "ours": load_float32(folder / "ours"),
        "reference": gptq_model(reference, samples, config.bits, config.group_size, config.damp_percent),
        "rounding": rounded(copy.deepcopy(reference), config.bits, config.group_size),
        "half": half,
        "plain": plain(config, model.folder, samples.tolist(), folder / "plain"),
    }
    found = dict(zip(by_way, divergences(reference, list(by_way.values()), sequences), strict=True))
    kl = {way: each[0] for way, each in found.items()}
    with torch.inference_mode():
        own = torch.from_numpy(sequences.astype("int64"))
        loss = sum(reference(s[None], labels=s[None]).loss.item() for s in own) / len(own)
    perplexity = {way: math.exp(loss + each[1]) for way, each in found.items()}
    cells = [f"{kl[way]:.2e}" for way in ("ours", "reference", "rounding", "half")]
    cells += [f"{kl['ours'] / kl['reference']:.2f}", f"{kl['rounding'] / kl['ours']:.2f}"]
    cells += [f"{perplexity['ours']:.4f}", f"{perplexity['plain']:.4f}"]
    cells.append(str(most_values(by_way["ours"], config.group_size)))
    return f"| {name} | {config.bits} | " + " | ".join(cells) + " |"


def plain(config: QuantizeConfig, folder: Path, samples: list[list[int]], out: Path):
    """Return what gptqmodel makes by itself, with its packed weights and its own products in float16."""
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel import QuantizeConfig as GPTQConfig

    settings = GPTQConfig(
        bits=config.bits,
        group_size=config.group_size,
        desc_act=False,
        act_group_aware=False,
        damp_percent=config.damp_percent,
        device="cpu",
    )
    model = GPTQModel.load(str(folder), settings, dtype=torch.float32)
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples], batch_size=BATCH_SIZE)
    model.save(str(out))
    return GPTQModel.load(str(out), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model.eval()


def most_values(model, group_size: int) -> int:
    """Return the most distinct values that a group of any matrix holds."""
    import torch

    most = 0
    for layer in model.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            width = group_size if group_size > 0 else layer.weight.shape[1]
            most = max(most, *(len(group.unique()) for group in layer.weight.reshape(-1, width)))
    return most


if __name__ == "__main__":
    main()
