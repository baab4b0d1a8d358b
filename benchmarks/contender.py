"""One contender of the benchmark in a process of its own: its real training loop, let on k optimizer steps at a time.

`python contender.py settings.json` starts the training program that the settings name, as a user would. The program
is not changed: a hook that torch calls after every optimizer step blocks it until the driver asks for more steps. A
step is therefore everything from the end of one update to the end of the next: data, forward, backward, clipping,
update, and whatever the program does between.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

ENDLESS = 10**6
"""Steps that a contender believes it has to do."""


class Gate:
    """Stops the training loop after the steps that were asked for, and tells the driver how long they took."""

    def __init__(self):
        self.reply = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what the program prints goes to the log
        self.left, self.started = 1, time.perf_counter()

    def __call__(self, *_) -> None:
        self.left -= 1
        if self.left:
            return
        seconds, memory = self.measure()
        print(seconds, memory, file=self.reply)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left, self.started = int(line), time.perf_counter()

    def measure(self) -> tuple[float, int]:
        """Return the seconds since the steps began, and the most bytes that torch has held on the GPU (0 without one)."""
        if not torch.cuda.is_available():
            return time.perf_counter() - self.started, 0
        torch.cuda.synchronize()
        return time.perf_counter() - self.started, torch.cuda.max_memory_reserved()


class TokenRows(torch.utils.data.Dataset):
    """Row i: `length` tokens of the shared file from token i * sequence_length on."""

    def __init__(self, settings: SimpleNamespace, length: int):
        self.tokens = np.memmap(f"{settings.data}/train.bin", dtype="<u2", mode="r")
        self.stride, self.length = settings.sequence_length, length

    def __len__(self) -> int:
        return (len(self.tokens) - self.length) // self.stride

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * self.stride
        return torch.from_numpy(self.tokens[start : start + self.length].astype(np.int64))


def openspectra(settings: SimpleNamespace) -> None:
    """`openspectra pretrain`, with the config that the driver resolved from a study."""
    from openspectra.cli import main
    from openspectra.model import llama
    from openspectra.training.config import PretrainConfig

    # the size of the run decides whether blocks are compiled; here both are wanted
    PretrainConfig.is_compiled = property(lambda config: settings.compile)
    if settings.attention:
        PretrainConfig.attention_form = lambda config, device: settings.attention
    if settings.float32_stream:
        llama.stream_dtype = lambda x: x.dtype
    data = settings.data
    sys.argv = ["openspectra", "pretrain", "--config", settings.config, "--out", settings.work]
    sys.argv += ["--train", f"{data}/train", "--valid", f"{data}/valid", "--tokenizer", f"{data}/tokenizer"]
    sys.argv += ["--threads", str(torch.get_num_threads()), "--micro-batch", str(settings.batch_size)]
    sys.argv += ["--recompute", settings.recompute]
    main()


def nanogpt(settings: SimpleNamespace) -> None:
    """`python train.py` with the options of its README's run on a CPU, at the shape of the benchmark."""
    shape = settings.shape
    os.chdir(Path(settings.peers) / "nanoGPT")
    sys.path.insert(0, ".")
    sys.argv = ["train.py", f"--device={settings.device}", f"--compile={settings.compile}", "--dropout=0.0"]
    sys.argv += [f"--dataset={settings.data}", f"--out_dir={settings.work}", "--log_interval=1"]
    sys.argv += [f"--block_size={settings.sequence_length}", f"--batch_size={settings.batch_size}"]
    sys.argv += [f"--n_layer={shape['num_hidden_layers']}", f"--n_head={shape['num_attention_heads']}"]
    sys.argv += [f"--n_embd={shape['hidden_size']}", "--gradient_accumulation_steps=1", f"--max_iters={ENDLESS}"]
    sys.argv += ["--eval_iters=1", f"--eval_interval={ENDLESS}"]
    sys.argv += [f"--dtype={'float32' if settings.precision == '32-true' else 'bfloat16'}"]
    source = Path("train.py").read_text()
    if settings.precision != "32-true":  # its switch for a lower precision is closed on a CPU
        source = source.replace("nullcontext() if device_type == 'cpu' else ", "")
    exec(compile(source, "train.py", "exec"), {"__name__": "__main__"})


def litgpt(settings: SimpleNamespace) -> None:
    """`litgpt pretrain`; it compiles always, so that its plain run is one with the compiler switched off."""
    import torch._dynamo
    from litgpt import pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.data import DataModule

    class Data(DataModule):
        def connect(self, tokenizer=None, batch_size=1, max_seq_length=None) -> None:
            self.rows = TokenRows(settings, settings.sequence_length + 1)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(self.rows, batch_size=settings.batch_size, shuffle=True)

        val_dataloader = train_dataloader

    torch._dynamo.config.disable = not settings.compile
    shape, batch = settings.shape, settings.batch_size
    config = Config(
        block_size=settings.sequence_length,
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        n_layer=shape["num_hidden_layers"],
        n_head=shape["num_attention_heads"],
        n_embd=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    pretrain.setup(
        "benchmark",
        model_config=config,
        out_dir=Path(settings.work),
        precision=settings.precision,
        data=Data(),
        train=TrainArgs(
            global_batch_size=batch,
            micro_batch_size=batch,
            max_tokens=ENDLESS * batch * settings.sequence_length,
            max_norm=1.0,
            save_interval=None,
            tie_embeddings=False,
        ),
        eval=EvalArgs(interval=ENDLESS, max_iters=1),
        devices=1,
        logger_name="csv",
    )


def transformers(settings: SimpleNamespace) -> None:
    """A Llama of transformers under its own `Trainer`, everything else at its defaults."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    class Rows(TokenRows):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            row = super().__getitem__(index)
            return {"input_ids": row, "labels": row}

    length = settings.sequence_length
    arguments = TrainingArguments(
        output_dir=settings.work,
        per_device_train_batch_size=settings.batch_size,
        max_steps=ENDLESS,
        max_grad_norm=1.0,
        use_cpu=settings.device == "cpu",
        bf16=settings.precision == "bf16-mixed",
        torch_compile=settings.compile,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    config = LlamaConfig(**settings.shape, max_position_embeddings=length, use_cache=False)
    Trainer(LlamaForCausalLM(config), arguments, train_dataset=Rows(settings, length)).train()


def product(settings: SimpleNamespace) -> None:
    """No training: one square matrix product a step, the rate that all others are held against."""
    dtype = torch.float32 if settings.precision == "32-true" else torch.bfloat16
    x, y = torch.randn(2, settings.product_size, settings.product_size, dtype=dtype, device=settings.device)
    while True:
        x @ y
        gate()


if __name__ == "__main__":
    settings = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    gate = Gate()
    register_optimizer_step_post_hook(gate)
    {run.__name__: run for run in (openspectra, nanogpt, litgpt, transformers, product)}[settings.program](settings)
