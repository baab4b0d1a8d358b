"""Logits of a GPTQ folder on fixed token ids: ours are written to a file, those of another program held against them.

Usage: gptq_logits.py ours|auto-gptq|transformers FILE FOLDER... Runs in environments that lack this project.
"""

import os
import sys
from contextlib import redirect_stdout

import numpy as np
import torch

os.environ.update(TORCHAO_FORCE_SKIP_LOADING_SO_FILES="1", GPTQMODEL_CPU_WORKERS="2", TORCHDYNAMO_DISABLE="1")


def load(program: str, folder: str):
    """Return the model of a folder, as a program loads it."""
    if program == "ours":
        from openspectra.export.loading import load_model

        return load_model(folder).model
    if program == "auto-gptq":
        from auto_gptq import AutoGPTQForCausalLM

        settings = {"use_safetensors": True, "use_triton": False, "disable_exllama": True, "disable_exllamav2": True}
        return AutoGPTQForCausalLM.from_quantized(folder, device="cpu", **settings).model
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float16)


def logits(model) -> np.ndarray:
    """Return the logits (2, 64, vocabulary) of fixed token ids in float32."""
    ids = torch.arange(2 * 64).view(2, 64) * 7 % model.config.vocab_size
    with torch.no_grad():
        return model(input_ids=ids).logits.float().numpy()


def main() -> None:
    """Write our logits of each folder, or print the rows of another program."""
    program, path, *folders = sys.argv[1:]
    own = np.load(path) if program != "ours" else {}
    found = {}
    for folder in folders:
        try:
            with redirect_stdout(sys.stderr):  # what gptqmodel tells is no row
                found[folder] = logits(load(program, folder).eval())
        except Exception as error:  # what a program says is the result
            print(f"| {folder} | {program} | {type(error).__name__}: {str(error).splitlines()[0]} | | |")
            continue
        if folder in own:
            ours, theirs = own[folder], found[folder]
            same = (ours.argmax(-1) == theirs.argmax(-1)).mean()
            print(f"| {folder} | {program} | {np.abs(ours - theirs).max():.4f} | {ours.std():.2f} | {100 * same:.2f} |")
    if program == "ours":
        np.savez(path, **found)


if __name__ == "__main__":
    main()
