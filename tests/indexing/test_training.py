from __future__ import annotations

import signal
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from indexing import training as module
from indexing.training import Lesson, train
from indexing.training_config import TrainingConfig

BATCHES = [np.arange(3) + step for step in range(20)]


class Toy(Lesson):
    """One weight that is pulled to 3; remembers what it was shown."""

    def __init__(self, losses: list[float] | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[list[int], int]] = []
        self.checked: list[float] = []
        self.losses = losses
        self.noise: list[float] = []

    def groups(self):
        return [{"params": [self.weight], "lr": 0.2}]

    def step_loss(self, rows, step):
        assert self.training
        self.seen.append((rows.tolist(), step))
        self.noise.append(float(torch.rand(())))
        return ((self.weight - 3.0) ** 2).sum()

    def validation_loss(self):
        if self.losses is None:
            return None
        assert not self.training
        assert not torch.is_grad_enabled()
        self.checked.append(float(self.weight))
        return self.losses[len(self.checked) - 1]


def run(lesson: Lesson, config: TrainingConfig | None = None, batches=BATCHES, **changes) -> int:
    asked = {"name": "train toy", "device": "cpu", "seed": 0, **changes}
    return train(lesson, batches, config or TrainingConfig(precision="fp32"), **asked)


class TestTrainingConfig:
    def test_refuses_another_precision(self):
        with pytest.raises(ValueError, match='precision=\'fp8\' must be "auto", "fp32" or "bf16"'):
            TrainingConfig(precision="fp8")

    def test_refuses_another_logger(self):
        with pytest.raises(ValueError, match='logger=\'paper\' must be "tensorboard", "csv", "wandb" or "mlflow"'):
            TrainingConfig(logger="paper")

    @pytest.mark.parametrize("wrong", [{"patience": -1}, {"checks": 0}, {"n_devices": 0}, {"checkpoint_every": 0}])
    def test_refuses_numbers_that_are_too_small(self, wrong):
        with pytest.raises(ValueError, match="patience must be 0 or more, checks, n_devices and checkpoint_every 1 or"):
            TrainingConfig(**wrong)


def test_lesson_is_an_interface():
    with pytest.raises(NotImplementedError):
        Lesson().groups()
    with pytest.raises(NotImplementedError):
        Lesson().step_loss(np.arange(2), 0)
    assert Lesson().validation_loss() is None


class TestTrain:
    def test_shows_every_batch_once_in_order_and_learns(self):
        lesson = Toy()
        assert run(lesson) == 20
        assert lesson.seen == [(batch.tolist(), step) for step, batch in enumerate(BATCHES)]
        assert not lesson.training
        assert 1.0 < lesson.weight.item() < 3.5

    def test_of_nothing_takes_no_step(self):
        lesson = Toy()
        assert run(lesson, batches=[]) == 0
        assert not lesson.training
        assert lesson.weight.item() == 0.0

    def test_repeats_its_draws_for_a_seed_and_leaves_the_global_generator_alone(self):
        first, second, other = Toy(), Toy(), Toy()
        state = torch.get_rng_state()
        run(first)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(99)
        run(second)
        run(other, seed=1)
        assert first.noise == second.noise != other.noise
        assert len(set(first.noise)) == 20

    def test_stops_when_time_is_up(self):
        lesson = Toy()
        assert 1 <= run(lesson, max_seconds=0.0) < 20
        assert len(lesson.seen) < 20

    def test_lets_an_interrupt_through(self):
        class Interrupted(Toy):
            def step_loss(self, rows, step):
                if step == 3:
                    raise KeyboardInterrupt
                return super().step_loss(rows, step)

        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(Interrupted())
        assert signal.getsignal(signal.SIGINT) is handler

    def test_lets_an_exit_through(self):
        class Leaving(Toy):
            def step_loss(self, rows, step):
                raise SystemExit(3)

        with pytest.raises(SystemExit, match="3"):
            run(Leaving())

    def test_lets_an_error_through(self):
        class Broken(Toy):
            def step_loss(self, rows, step):
                raise RuntimeError("broken lesson")

        with pytest.raises(RuntimeError, match="broken lesson"):
            run(Broken())

    def test_says_nothing_and_warns_of_nothing(self, capfd, caplog):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(Toy(losses=[1.0] * 20))
        captured = capfd.readouterr()
        assert (captured.out, captured.err) == ("", "")
        assert not caplog.records

    def test_shows_a_bar_on_stderr_when_asked(self, capfd):
        run(Toy(losses=[1.0] * 20), progress=True)
        captured = capfd.readouterr()
        assert captured.out == ""
        assert "train toy" in captured.err

    def test_the_rate_rises_over_a_tenth_and_falls_to_zero(self):
        lesson = Toy()
        lesson.total_steps = 100
        rates = [lesson._rate(step) for step in range(101)]
        assert np.all(np.diff(rates[:10]) > 0)
        assert rates[10] == pytest.approx(1.0)
        assert np.all(np.diff(rates[11:]) < 0)
        assert rates[-1] == pytest.approx(0.0)


class Table(Lesson):
    """A table of vectors, whose gradients many threads add up."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = torch.nn.Parameter(torch.zeros(50, 128))
        self.targets = torch.randn(20_000, 128, generator=torch.Generator().manual_seed(0))

    def groups(self):
        return [{"params": list(self.parameters()), "lr": 0.1}]

    def step_loss(self, rows, step):
        return ((self.vectors[torch.arange(20_000) % 50] - self.targets) ** 2).mean()


def test_the_same_seed_gives_the_same_weights_to_the_bit_and_the_global_setting_stays():
    weights = []
    for _ in range(4):
        lesson = Table()
        run(lesson, batches=BATCHES[:5])
        weights.append(lesson.vectors.detach().numpy().tobytes())
    assert len(set(weights)) == 1
    assert not torch.are_deterministic_algorithms_enabled()


class TestEarlyStopping:
    def test_brings_the_best_weights_back(self):
        lesson = Toy(losses=[5.0, 4.0, 1.0, 2.0, 2.0, 2.0, 0.0])
        kept = run(lesson, TrainingConfig(precision="fp32", patience=3, checks=10))
        assert len(lesson.checked) == 6  # every two steps; the third was best, and three more were waited for
        assert lesson.weight.item() == lesson.checked[2] != lesson.checked[5]
        assert len(lesson.seen) == 12
        assert kept == 6

    def test_never_stops_without_patience_and_still_keeps_the_best(self):
        lesson = Toy(losses=[3.0, 1.0, *[2.0] * 8])
        run(lesson, TrainingConfig(precision="fp32", patience=0, checks=10))
        assert len(lesson.seen) == 20
        assert lesson.weight.item() == lesson.checked[1]

    def test_needs_something_set_aside(self):
        lesson = Toy()
        assert run(lesson, TrainingConfig(precision="fp32", patience=1, checks=20)) == 20


class TestCheckpoints:
    def config(self, folder: Path) -> TrainingConfig:
        return TrainingConfig(precision="fp32", checkpoint_folder=str(folder), checkpoint_every=5)

    def interrupted(self, folder: Path, at: int = 12) -> None:
        class Cut(Toy):
            def step_loss(self, rows, step):
                if step == at:
                    raise RuntimeError("power cut")
                return super().step_loss(rows, step)

        with pytest.raises(RuntimeError, match="power cut"):
            run(Cut(), self.config(folder))

    def test_are_resumed_from(self, tmp_path):
        self.interrupted(tmp_path)
        lesson = Toy()
        assert run(lesson, self.config(tmp_path)) == 20
        assert lesson.seen == [(batch.tolist(), step) for step, batch in enumerate(BATCHES)][10:]
        whole = Toy()
        run(whole)
        assert lesson.weight.item() == pytest.approx(whole.weight.item(), abs=1e-6)

    def test_of_a_finished_training_leave_nothing_to_do(self, tmp_path):
        run(Toy(), self.config(tmp_path))
        again = Toy()
        assert run(again, self.config(tmp_path)) == 20
        assert again.seen == []
        assert again.weight.item() > 1.0

    @pytest.mark.parametrize("patience", [0, 3])
    def test_remember_the_best_weights(self, tmp_path, patience):
        class Judged(Toy):
            """Best where its weight is nearest to 0.3, soon after the start."""

            def validation_loss(self):
                return abs(float(self.weight) - 0.3)

        config = replace(self.config(tmp_path), checks=10, patience=patience)
        whole = Judged()
        kept = run(whole, replace(config, checkpoint_folder=None))
        assert kept < 10

        class Cut(Judged):
            def step_loss(self, rows, step):
                if step == 7:
                    raise RuntimeError("power cut")
                return super().step_loss(rows, step)

        with pytest.raises(RuntimeError, match="power cut"):
            run(Cut(), config)
        for resumed in (Judged(), Judged()):  # the second finds a training that has ended
            assert run(resumed, config) == kept
            assert resumed.weight.item() == pytest.approx(whole.weight.item(), abs=1e-6)

    def test_of_another_plan_are_left_alone(self, tmp_path):
        self.interrupted(tmp_path)
        for changes in ({"seed": 1}, {"name": "train other"}, {"batches": BATCHES[:-1]}, {"batches": BATCHES[::-1]}):
            lesson = Toy()
            run(lesson, self.config(tmp_path), **changes)
            assert lesson.seen[0][1] == 0
        assert len(list(tmp_path.iterdir())) == 5

    def test_hold_nothing_that_must_be_unpickled(self, tmp_path):
        run(Toy(), self.config(tmp_path))
        (checkpoint,) = tmp_path.glob("train-toy-*/last.ckpt")
        assert torch.load(checkpoint, weights_only=True)["global_step"] == 20

    def test_are_not_written_unless_asked(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        run(Toy())
        assert not list(tmp_path.iterdir())


class TestLogs:
    def test_of_csv_hold_both_losses(self, tmp_path):
        config = TrainingConfig(precision="fp32", log_folder=str(tmp_path), logger="csv")
        run(Toy(losses=[1.0] * 20), config)
        (path,) = tmp_path.rglob("metrics.csv")
        header = path.read_text().splitlines()[0].split(",")
        assert {"loss", "validation_loss", "step"} <= set(header)
        assert "train-toy" in str(path)

    def test_of_tensorboard_are_written(self, tmp_path):
        pytest.importorskip("tensorboard")
        run(Toy(), TrainingConfig(precision="fp32", log_folder=str(tmp_path)))
        assert list((tmp_path / "train-toy").rglob("events.out.tfevents.*"))


class TestPrecision:
    @pytest.mark.parametrize(("asked", "expected"), [("fp32", False), ("bf16", True)])
    def test_is_the_one_asked_for(self, asked, expected):
        assert module.wants_bf16(TrainingConfig(precision=asked), "cpu") is expected

    def test_bf16_keeps_the_weights_in_float32(self):
        lesson = Toy()
        run(lesson, TrainingConfig(precision="bf16"))
        assert lesson.weight.dtype == torch.float32
        assert lesson.weight.item() > 1.0

    def test_one_gpu_is_the_one_named(self):
        assert module._devices("cuda:1", TrainingConfig()) == [1]
        assert module._devices("cuda", TrainingConfig()) == [0]
        assert module._devices("cuda", TrainingConfig(n_devices=4)) == 4
