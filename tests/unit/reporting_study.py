"""A made-up study on disk, of the shape that the stages write, for the tests of the report and of tracking.

The module holds no test of its own.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from openspectra.artifacts import Artifact, ArtifactDraft, open_artifact, write_artifact
from openspectra.data.config import CorpusConfig, StdlibSource, TokenizerConfig, TokensConfig
from openspectra.evaluation.config import EvaluateConfig, TasksConfig
from openspectra.model.config import LlamaShape
from openspectra.model_ids import ModelId
from openspectra.quantization.config import QuantizeConfig
from openspectra.training.config import CheckpointConfig, PretrainConfig

WIDTHS = {"0.4M": 64, "1.1M": 128, "2.6M": 256}
PAPER_WIDTHS = {
    label: 96 * number
    for number, label in enumerate(("99M", "190M", "390M", "560M", "830M", "1.1B", "1.5B", "2.4B", "3.9B"), 1)
}
"""Stand-ins for the paper's sizes, under its labels."""
CHANCE = {"cloze": 0.25, "continuation": 0.25, "minimal_pairs": 0.5}
PENALTY = {None: 0.0, 8: 0.0002, 6: 0.0015, 4: 0.03, 3: 0.12}
"""Nats per token that quantizing to so many bits costs in this study."""
BITS_PER_WEIGHT = {"floatlm": 16, "trilm": 1.58, "bilm": 1, "bitnet": 1.58, 8: 8, 6: 6, 4: 4.25, 3: 3.25}
TBT_COSTS = {"tbt_w2a16": 0.1, "tbt_w2a8": 0.11, "tbt_w2a2": 0.5, "tbt_w1a16": 0.25, "tbt_w1a8": 0.27, "tbt_w1a1": 0.9}
"""Nats per token above FloatLM."""
BITS_PER_WEIGHT |= {family: 1.58 if family.startswith("tbt_w2") else 1 for family in TBT_COSTS}
TEACHER_GAIN = 0.05
ATTENTION_PLACES = ("query", "key", "value", "probabilities", "qkv", "out")
LAYER_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BIN_EDGES = np.arange(-3, 3.25, 0.25)


@dataclass
class FakeStudy:
    """Artifacts below `root` and how to add to them."""

    root: Path
    num_documents: int = 40
    num_points: int = 20
    """Rows of each training curve."""
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def add(self, name: str, stage: str, config, parents: dict[str, str], fill) -> Artifact:
        """Write the artifact `name` with what `fill(draft)` puts in it."""
        with write_artifact(
            self.root / name, stage, config, {role: self.artifacts[of] for role, of in parents.items()}
        ) as draft:
            fill(draft)
        self.artifacts[name] = open_artifact(self.root / name)
        return self.artifacts[name]

    def add_data(self) -> None:
        """Add corpus, tokenizer, tokens and tasks."""
        corpus = CorpusConfig(
            sources={"stdlib": StdlibSource(adapter="python_stdlib")}, valid_fraction=0.1, test_fraction=0.2
        )
        counts = {"train": 700, "valid": 100, "test": 200}
        self.add("corpus", "corpus", corpus, {}, lambda draft: draft.metrics.update(documents=counts, bytes=counts))
        self.add(
            "tokenizer", "tokenizer", TokenizerConfig(vocab_size=1024), {"corpus": "corpus"},
            lambda draft: draft.metrics.update(vocab_size=1024, bytes_per_token=3.1),
        )  # fmt: skip
        for split, count in (("train", 3_000_000), ("valid", 400_000)):
            self.add(
                f"tokens/{split}", "tokens", TokensConfig(split=split), {"corpus": "corpus", "tokenizer": "tokenizer"},
                lambda draft, count=count: draft.metrics.update(num_tokens=count, num_documents=700),
            )  # fmt: skip
        facts = {task: {"num_items": 200, "chance": chance, "main_metric": "acc"} for task, chance in CHANCE.items()}
        tasks = TasksConfig(seed=1, num_documents=self.num_documents, document_characters=600, num_items=200)
        self.add("tasks", "tasks", tasks, {"corpus": "corpus"}, lambda draft: draft.metrics.update(facts))

    def add_pretrained(
        self,
        model_id: str,
        peak_lr: float = 4e-3,
        valid_loss: float | None = None,
        seed: int = 1,
        records: dict[str, pd.DataFrame] | None = None,
    ) -> Artifact:
        """Add a FloatLM or a model of another family whose validation loss follows from its size, unless one is given.

        `records` replaces or adds tables (`spikes.csv`) and `valid_losses.npy`, a table without names there.
        """
        return self.add(
            model_id, "pretrain", pretrain_config(model_id, peak_lr, seed),
            {"tokens_train": "tokens/train", "tokens_valid": "tokens/valid", "tokenizer": "tokenizer"},
            lambda draft: self._fill_pretrained(draft, model_id, valid_loss, records or {}),
        )  # fmt: skip

    def add_checkpoint(self, model_id: str, step: int) -> Artifact:
        """Add the weights of one step of a run."""
        name, config = f"{model_id}@{step}", pretrain_config(model_id)
        return self.add(
            name, "checkpoint", CheckpointConfig(model_id=name, family=config.family, step=step), {"model": model_id},
            lambda draft: draft.metrics.update(
                **size_metrics(config.shape, BITS_PER_WEIGHT[config.family]), tokens_seen=step * config.tokens_per_step
            ),
        )  # fmt: skip

    def add_quantized(self, size: str, bits: int, calibration_set: int = 0, step: int | None = None) -> Artifact:
        """Add the QuantLM of a size at a width, or of its checkpoint; the earlier, the less the width costs."""
        config = QuantizeConfig(
            model_id=str(ModelId("quantlm", size, step=step, bits=bits, calibration=calibration_set or None)), bits=bits, group_size=128 if bits < 6 else -1,
            num_calibration_samples=32, calibration_sequence_length=128, seed=1,
        )  # fmt: skip
        return self.add(
            config.model_id, "quantize", config, {"model": f"floatlm/{size}", "tokens_train": "tokens/train"},
            lambda draft: self._fill_quantized(draft, size, bits, calibration_set, step or 1500),
        )  # fmt: skip

    def add_evaluation(
        self,
        model_id: str,
        suite: str = "held_out",
        tasks: tuple[str, ...] = tuple(CHANCE),
        parts: tuple[str, ...] = (),
    ) -> Artifact:
        """Add the evaluation of a model on test documents and on `tasks`, of which groups have `parts`."""
        config = EvaluateConfig(tasks=["held_out_text", *tasks], batch_size=16, dtype="float32")
        return self.add(
            f"evaluation/{model_id}/{suite}", "evaluate", config, {"model": model_id, "tasks": "tasks"},
            lambda draft: self._fill_evaluation(draft, model_id, tasks + parts),
        )  # fmt: skip

    def add_demo(self, sizes=tuple(WIDTHS), widths=(8, 6, 4, 3)) -> None:
        """Add an ordinary study: FloatLM, TriLM and QuantLMs of every size, evaluated."""
        self.add_data()
        for size in sizes:
            for family in ("floatlm", "trilm"):
                self.add_pretrained(f"{family}/{size}")
            for bits in widths:
                self.add_quantized(size, bits)
            for model_id in [f"floatlm/{size}", f"trilm/{size}", *(f"quantlm/{size}-{bits}bit" for bits in widths)]:
                self.add_evaluation(model_id)

    def add_low_bit_activations(self, size: str = "0.4M", left_out: tuple[str, ...] = ()) -> None:
        """Add FloatLM, TriLM, BiLM, BitNet and the six TBT families of one size, one of them distilled too; evaluated."""
        self.add_data()
        families = [name for name in ("floatlm", "trilm", "bilm", "bitnet", *TBT_COSTS) if name not in left_out]
        for model_id in [*(f"{family}/{size}" for family in families), f"tbt_w2a2/{size}+distilled"]:
            family = model_id.partition("/")[0]
            config = pretrain_config(model_id)
            levels = {"levels.csv": level_rows(config)} if family in ("tbt_w2a2", "tbt_w1a1") else {}
            self.add_pretrained(model_id, records=levels)
            self.add_evaluation(model_id)

    def add_sweep(self, sizes=("0.4M",), rates=(2e-3, 4e-3, 8e-3, 1.6e-2)) -> None:
        """Add a sweep: FloatLM best at an inner rate, TriLM at the highest."""
        self.add_data()
        for size in sizes:
            for index, rate in enumerate(rates):
                label = f"lr{rate:.0e}".replace("e-0", "e-")
                self.add_pretrained(f"floatlm/{size}+{label}", rate, valid_loss=3.2 + 0.05 * (index - 1) ** 2)
                self.add_pretrained(f"trilm/{size}+{label}", rate, valid_loss=3.5 - 0.04 * index)

    def _fill_pretrained(
        self, draft: ArtifactDraft, model_id: str, valid_loss: float | None, records: dict[str, pd.DataFrame]
    ) -> None:
        config = pretrain_config(model_id)
        final = expected_loss(ModelId.parse(model_id)) if valid_loss is None else valid_loss
        steps = np.unique(np.linspace(1, config.max_steps, self.num_points).astype(int))
        curve = pd.DataFrame({"step": steps, "tokens_seen": steps * config.tokens_per_step})
        decay = final + (math.log(1024) - final) * np.exp(-6 * steps / config.max_steps)
        noise = 0.02 * np.random.default_rng(len(model_id)).standard_normal(len(steps))
        train = curve.assign(train_loss=decay + noise, learning_rate=config.peak_lr, gradient_norm=0.7)
        valid = curve.assign(valid_loss=decay).iloc[:: max(1, len(curve) // 10)]
        tables = {"train.csv": train, "valid.csv": valid, "valid_losses.npy": losses_by_sequence(valid, model_id)}
        if config.family != "floatlm":
            tables["ternary.csv"] = ternary_rows(config)
        for name, table in (tables | records).items():
            if name.endswith(".npy"):
                np.save(draft.folder / name, table.to_numpy())
            else:
                table.to_csv(draft.folder / name, index=False)
        draft.metrics |= {"num_loss_spikes": len(records.get("spikes.csv", ())), "num_skipped_steps": 0}
        weights = np.random.default_rng(0).normal(0, 0.02, (64, 64)).astype(np.float16)
        save_file({"model.layers.0.mlp.up_proj.weight": weights}, draft.folder / "model.safetensors")
        draft.metrics |= size_metrics(config.shape, BITS_PER_WEIGHT[config.family])
        draft.metrics |= {"tokens_seen": int(curve["tokens_seen"].iloc[-1]), "valid_loss": float(final)}
        draft.metrics["final_train_loss"] = float(final)

    def _fill_quantized(self, draft: ArtifactDraft, size: str, bits: int, calibration_set: int, step: int) -> None:
        row = {"layer": 0, "module": "q_proj", "loss": 0.01, "num_samples": 32, "damp_percent": 0.01, "retries": 0}
        pd.DataFrame([row]).to_csv(draft.folder / "layers.csv", index=False)
        draft.metrics |= size_metrics(pretrain_config(f"floatlm/{size}").shape, BITS_PER_WEIGHT[bits])
        draft.metrics |= {"mean_layer_loss": 0.01, "num_damping_retries": 0, "tokens_seen": step * 16 * 128}
        cost = (PENALTY[bits] + 0.0001 * calibration_set) * step / 1500
        draft.metrics |= {"kl": cost, "rounding_kl": 4 * cost, "added_loss": cost, "rounding_added_loss": 3 * cost}

    def _fill_evaluation(self, draft: ArtifactDraft, model_id: str, tasks: tuple[str, ...]) -> None:
        loss = expected_loss(ModelId.parse(model_id))
        documents = documents_of(loss, self.num_documents, seed=len(model_id))
        documents.to_csv(draft.folder / "documents.csv", index=False)
        skill = (4 - loss) / 2
        scores = [
            {"task": task, "metric": metric, "filter": "none", "value": CHANCE.get(task, 0.25) + 0.3 * skill,
             "stderr": 0.03, "num_samples": 200, "chance": CHANCE.get(task, 0.25)}
            for task in tasks
            for metric in ("acc", "acc_norm")
        ]  # fmt: skip
        text = {"task": "held_out_text", "filter": "none", "num_samples": self.num_documents, "stderr": "N/A"}
        scores.append(text | {"metric": "bits_per_byte", "value": loss / 2.1})
        pd.DataFrame(scores).to_csv(draft.folder / "scores.csv", index=False)
        if tasks:
            items_of(tasks, skill, seed=len(model_id)).to_parquet(draft.folder / "items.parquet", index=False)
        draft.metrics |= {f"{row['task']}/{row['metric']}": row["value"] for row in scores}


def pretrain_config(model_id: str, peak_lr: float = 4e-3, seed: int = 1) -> PretrainConfig:
    """Return a valid config of a model of one of the sizes of this study; TriLM has its schedule, others FloatLM's."""
    parsed = ModelId.parse(model_id)
    trilm = parsed.family == "trilm"
    width = (WIDTHS | PAPER_WIDTHS)[parsed.size]
    return PretrainConfig(
        model_id=model_id, family=parsed.family,
        shape=LlamaShape(
            vocab_size=1024, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=128,
        ),
        seed=seed, precision="bf16-mixed", sequence_length=128, global_batch_size=16, max_steps=1500,
        warmup_steps=60, schedule="linear" if trilm else "cosine", peak_lr=peak_lr, min_lr=0.0 if trilm else 0.1 * peak_lr,
        lr_drop_step=750 if trilm else None, peak_lr_after_drop=0.6 * peak_lr if trilm else None, weight_decay=0.1,
        weight_decay_stop_step=1000 if trilm else None, adam_betas=[0.9, 0.95], adam_eps=1e-8, gradient_clip_norm=1.0,
        checkpoint_every_steps=500, valid_every_steps=100, valid_sequences=64, log_every_steps=10, export_dtype="float32",
    )  # fmt: skip


def size_metrics(shape: LlamaShape, bits: float) -> dict:
    """Return parameter counts and the size in bits by the paper's rule."""
    linear, total = shape.num_linear_parameters, shape.num_parameters
    size = bits * linear + 16 * (total - linear)
    return {"num_parameters": total, "num_linear_parameters": linear, "bits_per_weight": bits, "model_size_bits": size}


def expected_loss(model_id: ModelId) -> float:
    """Return the loss in nats per token of a model of this study: TriLM starts above FloatLM and ends below."""
    if model_id.size in PAPER_WIDTHS:
        width = PAPER_WIDTHS[model_id.size]
        base, gap = 2.0 + 14 / width**0.5, 8 / width - 0.02
    else:
        base = {"0.4M": 3.42, "1.1M": 3.11, "2.6M": 2.87}[model_id.size]
        gap = {"0.4M": 0.09, "1.1M": 0.04, "2.6M": -0.015}[model_id.size]
    gap = gap if model_id.family == "trilm" else 0.0
    gap += ({"bilm": 0.2, "bitnet": 0.12} | TBT_COSTS).get(model_id.family, 0.0)
    gap -= TEACHER_GAIN if model_id.variant == "distilled" else 0.0
    return base + gap + PENALTY[model_id.bits] + 0.005 * (model_id.calibration or 0)


def losses_by_sequence(valid: pd.DataFrame, model_id: str) -> pd.DataFrame:
    """Return losses [validations, 64 sequences]: the difficulty of each is common to all models, a part is the model's own."""
    common, own = np.random.default_rng(0), np.random.default_rng(len(model_id))
    difficulty, noise = 0.4 * common.standard_normal(64), 0.06 * own.standard_normal((len(valid), 64))
    losses = difficulty - difficulty.mean() + noise - noise.mean(axis=1, keepdims=True)
    return pd.DataFrame(valid["valid_loss"].to_numpy()[:, None] + losses)


def ternary_rows(config: PretrainConfig) -> pd.DataFrame:
    """Return rows by step and matrix of latents that are normal and grow wider than their scale; BiLM has no zeros."""
    cdf = np.vectorize(lambda edge, deviation: 0.5 * (1 + math.erf(edge / deviation / math.sqrt(2))))
    rows = []
    for step in range(0, config.max_steps + 1, config.max_steps // 10):
        done = step / config.max_steps
        for depth in range(config.shape.num_hidden_layers):
            for number, kind in enumerate(LAYER_KINDS):
                block = "self_attn" if number < 4 else "mlp"
                below = cdf(BIN_EDGES, 1.25 + 0.4 * done * (1 + number / 7))
                shares = np.diff([0, *below, 1])
                zeros = shares[np.searchsorted(BIN_EDGES, -0.5) + 1 : np.searchsorted(BIN_EDGES, 0.5) + 1].sum()
                rows.append(
                    {
                        "step": step,
                        "tokens_seen": step * config.tokens_per_step,
                        "layer": f"model.layers.{depth}.{block}.{kind}",
                        "num_weights": config.shape.hidden_size**2 * (1 if number < 4 else 3),
                        "sparsity": 0.0
                        if config.family == "bilm" or config.family.startswith("tbt_w1")
                        else zeros + 0.02 * done * math.sin(2 * depth),
                        "flip_rate": 0.2 * (1 - done) if step else 0.0,
                        "scale": 0.064 * (1 + done) * 16 / math.sqrt(config.shape.hidden_size),
                        "latents_below": shares[0],
                        **{f"latents_from_{edge:g}": share for edge, share in zip(BIN_EDGES, shares[1:], strict=True)},
                    }
                )
    return pd.DataFrame(rows)


def level_rows(config: PretrainConfig) -> pd.DataFrame:
    """Return rows by step and place of learned scales that shrink, unlike in the blocks; shares of three or two levels."""
    rows = []
    for step in (500, 1500):
        for depth in range(config.shape.num_hidden_layers):
            for place in (*(f"self_attn.{name}" for name in ATTENTION_PLACES), "mlp.gate_up", "mlp.down"):
                shares = {-1: 0.25, 0: 0.5, 1: 0.25} if config.family == "tbt_w2a2" else {-1: 0.5, 1: 0.5}
                if place.endswith("probabilities"):
                    shares = {0: 0.9, 1: 0.095, 2: 0.005} if config.family == "tbt_w2a2" else {0: 0.75, 1: 0.25}
                rows.append(
                    {
                        "step": step,
                        "tokens_seen": step * config.tokens_per_step,
                        "place": f"model.layers.{depth}.{place}",
                    }
                    | {"scale": (1 + depth) * (2 - step / 1500)}
                    | {f"share_of_{number}": shares.get(number, 0.0) for number in (-1, 0, 1, 2)}
                    | {"entropy_bits": -sum(share * math.log2(share) for share in shares.values())}
                )
    return pd.DataFrame(rows)


def items_of(tasks: tuple[str, ...], skill: float, seed: int, num_items: int = 60) -> pd.DataFrame:
    """Return scored items, three of each document: what is hard is common to all models, a small part is the model's own."""
    frames = []
    for number, task in enumerate(tasks):
        common, own = np.random.default_rng(number), np.random.default_rng([number, seed])
        ease = 0.3 + 0.6 * skill - common.random(num_items) + 0.1 * own.standard_normal(num_items)
        right = (ease > 0).astype(float)
        ids = {"item_id": [f"{task}-{item:05}" for item in range(num_items)], "filter": "none"}
        documents = [f"{item // 3:016x}" for item in range(num_items)]
        frames.append(pd.DataFrame(ids | {"task": task, "document_id": documents, "acc": right, "acc_norm": right}))
    return pd.concat(frames)


def documents_of(loss: float, num_documents: int, seed: int) -> pd.DataFrame:
    """Return scored documents: the difficulty of each is common to all models, a small part is the model's own."""
    common, own = np.random.default_rng(0), np.random.default_rng(seed)
    tokens = common.integers(80, 260, num_documents)
    difficulty = 0.5 * common.standard_normal(num_documents)
    noise = 0.02 * own.standard_normal(num_documents)
    return pd.DataFrame(
        {
            "task": "held_out_text",
            "document_id": [f"{index:016x}" for index in range(num_documents)],
            "num_tokens": tokens,
            "num_bytes": 3 * tokens,
            "lost_bytes": 0,
            "log_likelihood": -(loss + difficulty + noise) * tokens,
        }
    )
