"""The training loop in process, on random tokens: policies, records, and what is saved."""

import json
import math
import shutil

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from conftest import kills_at_file_operations
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from openspectra.data.tokens import Span
from openspectra.errors import ConfigError, DamagedArtifactError, Interrupted, OpenSpectraError
from openspectra.model.config import LlamaShape
from openspectra.model.distillation import Teacher
from openspectra.model.families import load_family
from openspectra.model.llama import Llama
from openspectra.training.batches import StepData
from openspectra.training.checkpoint import KEPT, CheckpointFolder
from openspectra.training.config import Distillation, PretrainConfig
from openspectra.training.curves import Curves
from openspectra.training.instruments import BIN_COLUMNS, Instruments
from openspectra.training.interruption import Interruption
from openspectra.training.loss_scaler import HYSTERESIS, WINDOW, LossScaler
from openspectra.training.matrices import means_by_step
from openspectra.training.metrics_file import METRICS_FILE, read_lines
from openspectra.training.module import Checkpointing, Pretraining
from openspectra.training.pretrain import _train, build_trainer
from openspectra.training.recipe import learning_rate
from openspectra.training.spikes import WINDOW as SPIKE_WINDOW
from openspectra.training.spikes import Spikes
from openspectra.training.validation import ValidationSample
from openspectra.training.world import World

torch.set_num_threads(1)  # models this small gain nothing from a second thread, and lose much on a busy machine

WORLD = World(micro_batch=2)  # two micro batches a step
SHAPE = LlamaShape(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, scales_per_matrix=2
)


TAUGHT = {"distillation": Distillation(teacher="floatlm/x", hidden_states=True)}


def teacher_of(settings: PretrainConfig) -> Teacher | None:
    """A FloatLM that has not learned, of another draw than the student's; None for a config without distillation."""
    if not settings.distillation:
        return None
    llama = Llama(settings.shape, "floatlm")
    llama.reset_parameters(seed=11)
    return Teacher(llama, settings.distillation.hidden_states)


def config(**changes) -> PretrainConfig:
    settings = {
        "model_id": "trilm/x",
        "family": "trilm",
        "shape": SHAPE,
        "seed": 3,
        "precision": "32-true",
        "sequence_length": 16,
        "global_batch_size": 4,
        "max_steps": 12,
        "warmup_steps": 2,
        "schedule": "linear",
        "peak_lr": 0.01,
        "min_lr": 0.0,
        "weight_decay": 0.1,
        "adam_betas": [0.9, 0.95],
        "adam_eps": 1e-8,
        "gradient_clip_norm": 1.0,
        "checkpoint_every_steps": 5,
        "valid_every_steps": 4,
        "valid_sequences": 5,
        "log_every_steps": 3,
        "export_dtype": "float32",
    }
    return PretrainConfig(**settings | changes)


class RandomTokens:
    """Stands where a split's `Tokens` stand, with tokens drawn by seed: every second one is 0, which can be learned."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.tokens = rng.integers(0, 64, 4000) * rng.integers(0, 2, 4000)

    def num_sequences(self, sequence_length: int) -> int:
        return (len(self.tokens) - 1) // sequence_length

    def sequences(self, indices, sequence_length: int):
        return np.stack([self.tokens[i * sequence_length :][: sequence_length + 1] for i in indices])

    def trace(self, indices, sequence_length: int):
        """The first half of the split is of source `a`, the second of `b`; the border lies inside a sequence."""
        half = len(self.tokens) // 2 + 5
        spans = []
        for start in (int(i) * sequence_length for i in indices):
            of_a = min(max(half - start, 0), sequence_length + 1)
            pieces = [("a", start, of_a), ("b", start + of_a - half, sequence_length + 1 - of_a)]
            spans.append([Span(f"{name}:0", name, first, count) for name, first, count in pieces if count])
        return spans


class At(L.Callback):
    """Calls something before the first micro batch of a step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.step == self.step:
            self.action(module)


def train(
    settings: PretrainConfig,
    folder,
    *callbacks,
    interruption=None,
    trainer=None,
    world=WORLD,
    seconds=math.inf,
    teacher=None,
) -> Pretraining:
    checkpoints = CheckpointFolder(folder, settings, {})
    checkpoints.prepare()
    module = Pretraining(settings, RandomTokens(1), world, teacher or teacher_of(settings))
    saver = Checkpointing(checkpoints, interruption or Interruption(), seconds)
    saver.restore(module)
    trainer = trainer or build_trainer(settings, module.step, world, [saver, *callbacks])
    trainer.callbacks[:0] = [] if saver in trainer.callbacks else [saver, *callbacks]
    trainer.fit(module, DataLoader(StepData(settings, RandomTokens(0), module.step, world), batch_size=None))
    return module


def weights(module: Pretraining) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.llama.named_parameters()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_ends_the_run_before_the_update_and_again_after_resume(tmp_path, value):
    def poison(module):
        with torch.no_grad():
            module.llama.lm_head.weight[0, 0] = value

    seen = {}
    remember = At(7, lambda module: seen.update(weights(module)))
    for _ in range(2):  # the second run goes on from step 5, and ends at the same step
        with pytest.raises(
            OpenSpectraError, match=r"trilm/x: loss is nan, gradient norm nan at step 7; lower its peak"
        ):
            train(config(), tmp_path, At(7, poison), remember)
        states = sorted(path.name for path in tmp_path.glob("checkpoints/*/step-*.pt"))
        assert states == ["step-00000005.pt"]
    straight = train(config(), tmp_path / "clean")
    clean = train(config(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights(clean).values(), weights(straight).values(), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        TAUGHT,
        TAUGHT | {"precision": "bf16-mixed"},
        {"family": "tbt_w2a2", "shape": SHAPE.model_copy(update={"quantized_embedding": True})},
    ],
    ids=["trilm", "taught", "taught in half precision", "quantized embedding"],
)
def test_interrupted_run_records_the_same_as_an_undisturbed_one(tmp_path, changes):
    settings = config(**changes)
    straight = train(settings, tmp_path / "straight")
    interruption = Interruption()
    stop = At(6, lambda module: setattr(interruption, "requested", True))
    first = train(settings, tmp_path / "stopped", stop, interruption=interruption)
    assert first.step == 7
    second = train(settings, tmp_path / "stopped")
    assert second.records.tables == straight.records.tables
    assert torch.equal(torch.stack(second.records.valid_losses), torch.stack(straight.records.valid_losses))
    for name, parameter in straight.llama.named_parameters():
        assert torch.equal(parameter, dict(second.llama.named_parameters())[name]), name


def test_states_by_the_clock_cost_no_bit_and_a_kill_costs_no_more_than_the_time_between_them(tmp_path):
    class Killed(Exception):
        pass

    def kill(module):
        raise Killed

    straight = train(config(), tmp_path / "straight")
    with pytest.raises(Killed):
        train(config(), tmp_path / "killed", At(9, kill), seconds=0)
    states = sorted(path.stem for path in tmp_path.glob("killed/checkpoints/*/step-*.pt"))
    assert states == ["step-00000008", "step-00000009"]  # the interval of steps alone would have left 5
    second = train(config(), tmp_path / "killed", seconds=0)
    assert second.records.tables == straight.records.tables
    for name, parameter in straight.llama.named_parameters():
        assert torch.equal(parameter, dict(second.llama.named_parameters())[name]), name


@pytest.mark.parametrize(
    ("steps", "said"), [(0, "stopped before its first step"), (3, "stopped at step 3, state saved")]
)
def test_a_stopped_run_says_what_is_saved(tmp_path, monkeypatch, steps, said):
    monkeypatch.setattr("openspectra.training.pretrain.Tokens", lambda artifact: RandomTokens(0))
    interruption = Interruption()
    checkpoints = CheckpointFolder(tmp_path, config(), {})
    checkpoints.prepare()

    class StopAt(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            interruption.requested = module.step == steps - 1

    interruption.requested = steps == 0
    parents = {"tokens_train": None, "tokens_valid": None}
    with pytest.raises(Interrupted, match=f"trilm/x: {said}; the same command continues"):
        _train(config(), parents, checkpoints, StopAt(), World(), interruption)
    assert len(list(checkpoints.folder.glob("step-*.pt"))) == bool(steps)


def test_run_that_goes_on_keeps_the_form_of_attention_it_began_with(tmp_path, monkeypatch):
    settings = config(precision="bf16-mixed")
    straight = train(settings, tmp_path / "straight")
    assert straight.attention == "products"
    interruption = Interruption()
    stop = At(6, lambda module: setattr(interruption, "requested", True))
    train(settings, tmp_path / "stopped", stop, interruption=interruption)
    # from here on as on a machine with a GPU, where a run that begins takes the other form
    monkeypatch.setattr("openspectra.training.module.device_kind", lambda: "cuda")
    resumed = train(settings, tmp_path / "stopped")
    assert resumed.attention == "products"
    assert resumed.records.tables == straight.records.tables
    assert train(settings, tmp_path / "other").attention == "fused"


@pytest.mark.parametrize(
    ("device", "precision", "length", "form"),
    [
        ("cpu", "32-true", 16, "fused"),
        ("cpu", "bf16-mixed", 256, "products"),
        ("cpu", "bf16-mixed", 257, "fused"),
        ("cpu", "16-mixed", 256, "products"),
        ("cuda", "bf16-mixed", 256, "fused"),
    ],
)
def test_form_of_attention_follows_device_precision_and_length(device, precision, length, form):
    assert config(precision=precision, sequence_length=length).attention_form(device) == form


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_blocks_computed_again_leave_every_bit(tmp_path, precision):
    calls = {"none": 0, "blocks": 0}

    def train_with(recompute: str) -> Pretraining:
        def count(*_):
            calls[recompute] += 1

        hook = At(0, lambda module: module.step or module.llama.model.layers[0].mlp.register_forward_pre_hook(count))
        world = World(micro_batch=4, recompute=recompute)
        return train(config(precision=precision), tmp_path / recompute, hook, world=world)

    kept, computed = train_with("none"), train_with("blocks")
    assert computed.records.tables == kept.records.tables
    assert all(torch.equal(a, b) for a, b in zip(weights(computed).values(), weights(kept).values(), strict=True))
    validations = 3 * 2
    assert calls["blocks"] - validations == 2 * (calls["none"] - validations) == 2 * 12


def test_listeners_hear_every_row_and_change_nothing(tmp_path):
    heard = []
    listen = At(
        0, lambda module: module.records.listeners or module.records.listeners.append(lambda *row: heard.append(row))
    )
    listened, quiet = train(config(), tmp_path / "a", listen), train(config(), tmp_path / "b")
    assert listened.records.tables == quiet.records.tables
    for name, rows in quiet.records.tables.items():  # measured before the first step, when nobody listened yet
        assert [row for table, row in heard if table == name] == [row for row in rows if row["step"]], name
    assert {table for table, _ in heard} == {"train", "valid", "valid_sources", "ternary", "checkpoints"}


def test_curves_hold_every_point_once_after_a_kill_and_change_nothing(tmp_path):
    path = tmp_path / METRICS_FILE

    def killed(module):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config(), tmp_path / "a", Curves(path), At(9, killed))  # the state is of step 5
    with path.open("a") as file:
        file.write('{"time": 1, "st')  # a line that the kill cut off
    shown, quiet = train(config(), tmp_path / "a", Curves(path)), train(config(), tmp_path / "b")
    assert shown.records.tables == quiet.records.tables
    assert all(torch.equal(a, b) for a, b in zip(weights(shown).values(), weights(quiet).values(), strict=True))
    lines = [line for line, _ in read_lines(path)]
    points = [(line["step"], name, value) for line in lines for name, value in line["metrics"].items()]
    tables = quiet.records.tables
    rows = [*tables["train"], *tables["valid"], *means_by_step(tables["ternary"])]
    expected = {(row["step"], name, value) for row in rows for name, value in row.items() if value is not None}
    assert sorted(points) == sorted(point for point in expected if point[1] != "step")
    assert [line["step"] for line in lines if not line["metrics"]] == [0, 5]  # the two starts


def test_kept_weights_are_log_spaced_then_regular(tmp_path):
    module = train(config(), tmp_path)
    assert [row["step"] for row in module.records.tables["checkpoints"]] == [1, 2, 4, 5, 10]
    assert sorted(config(max_steps=100, checkpoint_every_steps=30).checkpoint_steps) == [1, 2, 4, 8, 16, 30, 60, 90]
    statistics = module.records.tables["checkpoints"][0]
    assert statistics["rms_linear"] == pytest.approx(SHAPE.initializer_range, rel=0.2)
    assert statistics["tokens_seen"] == 64


def test_validation_is_the_mean_of_its_sequences(tmp_path):
    module = train(config(), tmp_path)
    assert [row["step"] for row in module.records.tables["valid"]] == [4, 8, 12]
    batch = torch.from_numpy(RandomTokens(1).sequences(module.validation.indices_S, 16))
    with torch.no_grad():
        each = module.llama(batch[:, :-1], batch[:, 1:], reduction="none").double().mean(dim=1)
    torch.testing.assert_close(module.records.valid_losses[-1], each, rtol=1e-6, atol=0)
    assert module.records.tables["valid"][-1]["valid_loss"] == pytest.approx(each.mean().item(), rel=1e-6)


def test_validation_reads_all_of_the_split_and_gives_the_loss_of_each_source(tmp_path):
    """The parts of a split stand in the order of their files: its first sequences would be those of one source."""
    tokens = RandomTokens(1)
    available, half = tokens.num_sequences(16), 2005
    sample = ValidationSample(tokens, 40, 16)
    assert len(set(sample.indices_S.tolist())) == 40
    assert 10 < sum(index < available // 2 for index in sample.indices_S) < 30
    assert np.array_equal(ValidationSample(tokens, 15, 16).indices_S, sample.indices_S[:15])
    whole = ValidationSample(tokens, 1000, 16)
    assert sorted(whole.indices_S) == list(range(available))
    for seed, micro_batch in ((3, 2), (4, 4)):
        settings = config(valid_sequences=1000, seed=seed)
        module = train(settings, tmp_path / str(seed), world=World(micro_batch=micro_batch))
        assert np.array_equal(module.validation.indices_S, whole.indices_S)  # whatever the seed of the run
        batch = torch.from_numpy(tokens.sequences(range(available), 16))
        with torch.no_grad():
            losses = module.llama(batch[:, :-1], batch[:, 1:], reduction="none").double().flatten()
        rows = {row["source"]: row for row in module.records.tables["valid_sources"] if row["step"] == 12}
        places = torch.arange(1, available * 16 + 1)
        for name, own in (("a", losses[places < half]), ("b", losses[places >= half])):
            assert rows[name]["num_tokens"] == len(own)
            assert rows[name]["valid_loss"] == pytest.approx(own.mean().item(), rel=1e-6)
        assert module.records.tables["valid"][-1]["valid_loss"] == pytest.approx(losses.mean().item(), rel=1e-6)


def half_precision_trainer(max_steps: int, scaler: LossScaler) -> L.Trainer:
    """A trainer under 16-mixed on the CPU with a loss scaler given by hand."""
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        max_steps=max_steps,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def test_loss_scaler_leaves_steps_out_and_goes_on_after_resume(tmp_path):
    settings = config(precision="16-mixed", log_every_steps=1)
    straight = train(settings, tmp_path / "a", trainer=half_precision_trainer(12, LossScaler("cpu", 2.0**22)))
    rows = straight.records.tables["train"]
    skipped = rows[-1]["skipped_steps"]
    assert 1 < skipped < 12
    # the first overflow only leaves its step out
    assert rows[-1]["loss_scale"] == 2.0 ** (23 - skipped) == straight.records.min_loss_scale
    for row, before in zip(rows[1:], rows[:-1], strict=True):  # a step left out holds the schedule
        assert row["learning_rate"] == learning_rate(settings, row["step"] - 1 - before["skipped_steps"])
    interruption = Interruption()
    stop = At(3, lambda module: setattr(interruption, "requested", True))
    trainer = half_precision_trainer(12, LossScaler("cpu", 2.0**22))
    first = train(settings, tmp_path / "b", stop, interruption=interruption, trainer=trainer)
    assert first.step == 4
    second = train(settings, tmp_path / "b", trainer=half_precision_trainer(8, LossScaler("cpu", 2.0**22)))
    for name, table in straight.records.tables.items():
        # as text: nan, the loss of a step left out, is not nan
        assert repr(second.records.tables[name]) == repr(table), name
    for name, parameter in straight.llama.named_parameters():
        assert torch.equal(parameter, dict(second.llama.named_parameters())[name]), name


def scales(overflows: set[int], count: int) -> list[float]:
    """Return the loss scale before each of `count` steps of a single weight, with overflows at the given steps."""
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer, scaler, found = torch.optim.SGD([weight], lr=0.0), LossScaler("cpu", 2.0**10), []
    for step in range(count):
        found.append(scaler.get_scale())
        scaler.scale(weight * (math.inf if step in overflows else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.has_skipped == (step in overflows)
        optimizer.zero_grad()
    return found


def test_loss_scale_follows_the_rule_of_deepspeed():
    def changes(overflows: set[int], count: int) -> dict[int, float]:
        found = scales(overflows, count)
        return {step: found[step] / found[0] for step in range(1, count) if found[step] != found[step - 1]}

    assert (WINDOW, HYSTERESIS) == (1000, 2)
    assert changes(set(), 3002) == {1001: 2, 2001: 4, 3001: 8}
    assert changes({10}, 1013) == {1012: 2}
    assert changes({10, 11}, 1014) == {12: 0.5, 1013: 1}
    assert changes({10, 500, 501}, 1000) == {501: 0.5, 502: 0.25}  # finite steps between do not forgive
    assert changes({10, 1500, 1501}, 1600) == {1012: 2, 1502: 1}  # a doubling does


def test_run_ends_where_no_loss_scale_is_left(tmp_path):
    def poison(module):
        with torch.no_grad():
            module.llama.lm_head.weight[0, 0] = math.inf

    trainer = half_precision_trainer(12, LossScaler("cpu", 4.0))
    with pytest.raises(OpenSpectraError, match="gradient is not finite at any loss scale at step 5"):
        train(config(precision="16-mixed"), tmp_path, At(2, poison), trainer=trainer)


@pytest.mark.parametrize(("precision", "kernel"), [("32-true", "fused"), ("16-mixed", "foreach")])
def test_optimizer_moves_all_parameters_at_once(precision, kernel):
    """With neither of the two torch takes a loop over the parameters."""
    module = Pretraining(config(precision=precision), RandomTokens(1), WORLD)
    assert module.configure_optimizers().defaults[kernel] is True


def test_changed_recipe_starts_anew_and_says_what_differs(tmp_path, caplog):
    caplog.set_level("INFO")
    train(config(), tmp_path)
    changed = train(config(peak_lr=0.02, weight_decay=0.2), tmp_path)
    assert changed.step == 12
    assert "starts at step 0 in a new checkpoint folder: config.peak_lr, config.weight_decay differ" in caplog.text
    assert len(list(tmp_path.glob("checkpoints/*"))) == 2


def test_stray_temporary_files_go_and_a_foreign_state_is_refused(tmp_path):
    train(config(), tmp_path)
    folder = CheckpointFolder(tmp_path, config(), {}).folder
    (folder / ".step-00000010.pt.123.tmp").write_bytes(b"half")
    CheckpointFolder(tmp_path, config(), {}).prepare()
    assert not list(folder.glob(".*.tmp"))
    newest = folder / "step-00000012.pt"
    newest.rename(folder / "step-00000099.pt")
    newest.with_suffix(".sha256").rename(folder / "step-00000099.sha256")
    with pytest.raises(DamagedArtifactError, match="step-00000099.pt: holds step 12 of run .*remove it"):
        CheckpointFolder(tmp_path, config(), {}).load_newest()
    assert json.loads((folder / "run.json").read_text())["config"]["seed"] == 3


def test_full_disk_names_the_bytes_and_keeps_the_state_before(tmp_path, monkeypatch):
    def no_space(path, content):
        if path.suffix == ".pt":
            raise OSError(28, "No space left on device")

    train(config(), tmp_path)
    checkpoints = CheckpointFolder(tmp_path, config(), {})
    monkeypatch.setattr("openspectra.training.checkpoint.write_atomically", no_space)
    with pytest.raises(
        OpenSpectraError, match=r"step-00000013.pt: cannot be written \(No space left on device\), [\d,]+ bytes"
    ):
        checkpoints.save(13, {"step": 13})
    assert checkpoints.load_newest()["step"] == 12


@pytest.mark.parametrize("before", [0, 1, KEPT, KEPT + 1])  # none yet; one; as many as are kept; one too many
def test_killed_at_any_file_operation_a_save_leaves_the_state_before_or_the_new_one(tmp_path, before):
    train(config(max_steps=1), tmp_path / "run")
    trained = CheckpointFolder(tmp_path / "run", config(max_steps=1), {}).load_newest()
    checkpoints = CheckpointFolder(tmp_path, config(), {})

    def save(step: int) -> None:
        checkpoints.prepare()
        checkpoints.save(step, trained | {"step": step})

    def set_up() -> None:
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
        for step in range(1, before + 1):
            save(step)

    found = []
    for _ in kills_at_file_operations(set_up, lambda: save(9)):
        state = checkpoints.load_newest()
        found.append(state["step"] if state else 0)
        checkpoints.prepare()
        assert not list(checkpoints.folder.glob(".*"))
        states, recorded = (sorted(checkpoints.folder.glob(f"step-*{suffix}")) for suffix in (".pt", ".sha256"))
        assert len(states) <= KEPT  # the one that was to be removed when the kill came is gone too
        assert [path.stem for path in states] == [path.stem for path in recorded]
    assert found == sorted(found) and set(found) == {before, 9}
    assert checkpoints.load_newest()["step"] == 9


def test_ranks_and_micro_batches_read_the_sequences_of_a_step():
    tokens = RandomTokens(0)
    settings = config(max_steps=1)
    expected = [torch.cat(list(StepData(settings, tokens, 0, WORLD)))]
    for world_size, micro in ((1, 4), (1, 1), (2, 2), (2, 1), (4, 1)):
        ranks = [World(rank, world_size, micro_batch=micro) for rank in range(world_size)]
        parts = [batch for rank in ranks for batch in StepData(settings, tokens, 0, rank)]
        assert sorted(torch.cat(parts).tolist()) == sorted(expected[0].tolist())


@pytest.mark.parametrize(("batch", "size", "micro"), [(512, 1, 8), (4, 1, 4), (4, 2, 2), (528, 4, 6), (22, 2, 1)])
def test_micro_batch_is_the_most_that_divide_a_ranks_share(batch, size, micro):
    assert World(size=size).micro_batch_of(batch) == micro


@pytest.mark.parametrize(("size", "micro"), [(3, 0), (2, 3), (1, 8)])
def test_ranks_and_micro_batches_that_do_not_divide_a_step_are_refused(size, micro):
    with pytest.raises(ConfigError, match=rf"{size} ranks with micro batches of . do not divide a batch of 4 .*change"):
        World(size=size, micro_batch=micro).micro_batch_of(4)


def test_spike_is_five_deviations_above_the_window():
    spikes = Spikes()
    quiet = [4.0, 4.2] * (SPIKE_WINDOW // 2)
    assert [spikes.observe(loss) for loss in quiet] == [None] * SPIKE_WINDOW
    assert spikes.observe(4.59) is None  # mean 4.1, deviation 0.1
    found = Spikes(quiet).observe(4.61)
    assert found == {"window_mean": pytest.approx(4.1), "window_deviation": pytest.approx(0.1)}


def test_instruments_count_flips_zeros_and_bins():
    model = Llama(SHAPE, "trilm")
    model.reset_parameters(seed=0)
    instruments = Instruments()
    first = instruments.measure(model)
    assert {row["flip_rate"] for row in first} == {0.0}
    with torch.no_grad():
        weight = model.model.layers[0].mlp.down_proj.weight
        weight[:, : 48 // 4] *= -1  # a quarter of the columns: every state that is not zero flips
    rows = {row["layer"]: row for row in instruments.measure(model)}
    row = rows["model.layers.0.mlp.down_proj"]
    group = model.model.layers[0].mlp.down
    states, scales = load_family("trilm").states_and_scales(group.latent_weight().detach(), group.shards)
    flipped = (states.view(32, 48)[:, :12] != 0).sum().item() / (32 * 48)
    assert row["flip_rate"] == pytest.approx(flipped)
    assert row["sparsity"] == pytest.approx((states == 0).double().mean().item())
    assert row["scale"] == pytest.approx(scales.double().mean().item(), rel=1e-6)
    assert sum(row[column] for column in BIN_COLUMNS) == pytest.approx(1)
    inner = sum(row[f"latents_from_{edge}"] for edge in ("-0.5", "-0.25", "0", "0.25"))
    assert inner == pytest.approx(row["sparsity"], abs=1e-3)  # the zeros lie between -1/2 and 1/2 of the scale
    assert rows["model.layers.1.mlp.down_proj"]["flip_rate"] == 0.0


def test_floatlm_has_no_instruments():
    assert Instruments().measure(Llama(SHAPE, "floatlm")) == []


def test_every_family_learns(tmp_path):
    for family in ("floatlm", "trilm", "bilm", "bitnet", "tbt_w2a2", "tbt_w1a1"):
        module = train(
            config(family=family, model_id=f"{family}/x", max_steps=60, schedule="cosine"), tmp_path / family
        )
        losses = [row["train_loss"] for row in module.records.tables["train"]]
        assert losses[-1] < losses[0] - 0.5, family


def test_learned_scales_move_by_a_share_of_themselves(tmp_path):
    """At a rate far above them: Adam's own steps would carry each past zero."""
    seen: list[dict[str, torch.Tensor]] = []

    def remember(module):
        seen.append(weights(module))

    settings = config(family="tbt_w1a1", peak_lr=0.5, warmup_steps=0)
    run = train(settings, tmp_path, At(2, remember), At(3, remember))
    seen.append(weights(run))
    scales = [{name: value.item() for name, value in each.items() if name.endswith(".alpha")} for each in seen]
    assert min(scales[0].values()) < 0.5 and all(value > 0 for each in scales for value in each.values())
    assert all(before != after for before, after in zip(scales[0].values(), scales[-1].values(), strict=True))
    for name, before in scales[0].items():
        assert 0.2 * before < scales[1][name] < 1.8 * before
