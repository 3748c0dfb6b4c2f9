from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from indexing import contrastive as module
from indexing.contrastive import ContrastiveConfig, in_batch_loss, prefix_loss, train_history_encoder, tune_encoder
from indexing.encoder import BiEncoder, EncoderConfig
from indexing.history import Histories, HistoryConfig, HistoryEncoder

DIM, N_ITEMS = 8, 12
TOPICS = ("pan", "shoe", "lamp", "book")


def unit(rows: int, seed: int) -> torch.Tensor:
    vectors = torch.randn((rows, DIM), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def histories_of(lists: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Histories(offsets, np.array([row for rows in lists for row in rows], dtype=np.int32))


def softmax_loss(positive: float, others: list[float]) -> float:
    return math.log(math.exp(positive) + sum(map(math.exp, others))) - positive


class TestContrastiveConfig:
    def test_refuses_negative_encoder_steps(self):
        with pytest.raises(ValueError, match="encoder_steps=-1 must be 0 or more"):
            ContrastiveConfig(encoder_steps=-1)

    @pytest.mark.parametrize("name", ["encoder_batch_size", "history_batch_size", "n_negatives"])
    def test_refuses_batches_without_a_negative(self, name):
        with pytest.raises(ValueError, match="batch sizes and n_negatives must be at least 2"):
            ContrastiveConfig(**{name: 1})

    @pytest.mark.parametrize("name", ["history_epochs", "history_max_steps"])
    def test_refuses_negative_lengths(self, name):
        with pytest.raises(ValueError, match="history_epochs and history_max_steps must be 0 or more"):
            ContrastiveConfig(**{name: -1})

    @pytest.mark.parametrize("name", ["encoder_learning_rate", "history_learning_rate", "temperature", "max_grad_norm"])
    def test_refuses_what_must_be_positive(self, name):
        with pytest.raises(ValueError, match="learning rates, temperature and max_grad_norm must be positive"):
            ContrastiveConfig(**{name: 0.0})

    def test_takes_fewer_steps_on_a_cpu_unless_told(self):
        assert ContrastiveConfig().steps_on("cpu") == 80
        assert ContrastiveConfig().steps_on("cuda:0") == 2000
        assert ContrastiveConfig(encoder_steps=7).steps_on("cuda") == 7
        assert ContrastiveConfig(encoder_steps=0).steps_on("cpu") == 0


class TestInBatchLoss:
    @pytest.mark.parametrize("temperature", [1.0, 0.05])
    def test_equals_a_loop_over_pairs(self, temperature):
        anchors, positives = unit(6, 0), unit(6, 1)
        same = torch.rand((6, 6), generator=torch.Generator().manual_seed(2)) < 0.3
        log_frequency = torch.log(torch.tensor([0.1, 0.2, 0.05, 0.3, 0.25, 0.1]))
        expected = []
        for row in range(6):
            scores = [
                float(anchors[row] @ positives[column]) / temperature - float(log_frequency[column])
                for column in range(6)
            ]
            negatives = [scores[column] for column in range(6) if column != row and not same[row, column]]
            expected.append(softmax_loss(scores[row], negatives))
        loss = in_batch_loss(anchors, positives, same=same, log_frequency=log_frequency, temperature=temperature)
        assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)

    @pytest.mark.parametrize("temperature", [0.05, 1e-6])
    def test_of_a_fully_masked_batch_is_zero_with_finite_gradients(self, temperature):
        anchors, positives = unit(3, 0).requires_grad_(), unit(3, 1)
        same = torch.ones((3, 3), dtype=torch.bool)
        loss = in_batch_loss(anchors, positives, same=same, log_frequency=torch.zeros(3), temperature=temperature)
        loss.backward()
        assert loss.item() == 0.0
        assert anchors.grad is not None
        assert not anchors.grad.any()


class TestPrefixLoss:
    @pytest.mark.parametrize("temperature", [1.0, 0.05])
    def test_equals_a_loop_over_prefixes(self, temperature):
        users, targets, negatives = unit(5, 0), unit(5, 1), unit(7, 2)
        masked = torch.rand((5, 7), generator=torch.Generator().manual_seed(3)) < 0.4
        expected = [
            softmax_loss(
                float(users[row] @ targets[row]) / temperature,
                [float(users[row] @ negatives[m]) / temperature for m in range(7) if not masked[row, m]],
            )
            for row in range(5)
        ]
        loss = prefix_loss(users, targets, negatives, masked=masked, temperature=temperature)
        assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)

    def test_of_fully_masked_negatives_is_zero_with_finite_gradients(self):
        users = unit(2, 0).requires_grad_()
        masked = torch.ones((2, 3), dtype=torch.bool)
        loss = prefix_loss(users, unit(2, 1), unit(3, 2), masked=masked, temperature=1e-6)
        loss.backward()
        assert loss.item() == 0.0
        assert users.grad is not None
        assert torch.isfinite(users.grad).all()


class TestBatches:
    @pytest.mark.parametrize(("n", "batch_size", "steps"), [(10, 3, 8), (4, 4, 3), (5, 4, 1), (6, 2, 3)])
    def test_are_full_and_as_many_as_asked(self, n, batch_size, steps):
        batches = module._batches(n, batch_size, steps, seed=0)
        assert len(batches) == steps
        for batch in batches:
            assert len(set(batch.tolist())) == batch_size
            assert set(batch.tolist()) <= set(range(n))

    def test_of_one_pass_share_no_row_and_passes_differ(self):
        batches = module._batches(9, 3, 6, seed=1)
        first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
        assert sorted(first) == sorted(second) == list(range(9))
        assert first.tolist() != second.tolist()


class TestWindows:
    def test_cover_every_step_from_one_event_to_the_next_once(self):
        lists = [[0, 1, 2, 3, 4, 5, 6], [7], [], [8, 9], [1, 2, 3, 4]]
        windows = module._windows(histories_of(lists), 3)
        steps = sorted((a, b) for row in windows.tolist() for a, b in itertools.pairwise(row) if b >= 0)
        assert steps == sorted((a, b) for rows in lists for a, b in itertools.pairwise(rows))
        assert windows.tolist()[:2] == [[0, 1, 2, 3], [3, 4, 5, 6]]

    def test_of_short_histories_are_none(self):
        assert module._windows(histories_of([[1], []]), 3).shape == (0, 4)


def test_the_warm_up_rises_over_a_tenth_and_falls_to_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    for step in range(40):
        module._warm_up(optimizer, 2.0, step, 40)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert np.all(np.diff(rates[4:]) < 0)
    assert rates[-1] == pytest.approx(2.0 / 36)


class TestNegatives:
    def test_are_the_whole_catalogue_where_it_is_small(self):
        assert module._negatives(np.random.default_rng(0), 4, 4).tolist() == [0, 1, 2, 3]

    def test_are_drawn_from_a_larger_one(self):
        drawn = module._negatives(np.random.default_rng(0), 50, 20)
        assert drawn.shape == (20,)
        assert set(drawn.tolist()) <= set(range(50))


@pytest.fixture(scope="module")
def start(tiny_bert):
    return EncoderConfig(model=tiny_bert, max_tokens=16, precision="fp32")


class TestTuneEncoder:
    anchors = tuple(f"{topic} ba {row}" for row in range(8) for topic in TOPICS)
    positives = tuple(f"co {topic}" for row in range(8) for topic in TOPICS)
    users = np.arange(32)
    config = ContrastiveConfig(encoder_steps=6, encoder_batch_size=8, encoder_learning_rate=2e-3)

    def tuned(self, start, config=None, **changes) -> tuple[BiEncoder, int]:
        encoder = BiEncoder(start, device="cpu")
        asked = {"anchors": self.anchors, "positives": self.positives, "users": self.users, "seed": 3, **changes}
        return encoder, tune_encoder(encoder, config=config or self.config, device="cpu", **asked)

    def loss(self, encoder: BiEncoder) -> float:
        anchors, positives = (torch.from_numpy(encoder.encode(texts)) for texts in (self.anchors, self.positives))
        texts = np.array(self.positives)
        same = torch.from_numpy(texts[:, None] == texts[None, :])
        frequency = torch.full((32,), math.log(1 / 4))
        return float(in_batch_loss(anchors, positives, same=same, log_frequency=frequency, temperature=0.05))

    def test_lowers_the_loss(self, start):
        encoder, steps = self.tuned(start)
        assert steps == 6
        assert not encoder.model.training
        assert self.loss(encoder) < 0.8 * self.loss(BiEncoder(start, device="cpu"))

    def test_repeats_its_bits_for_a_seed_and_leaves_the_global_generator_alone(self, start):
        first, _ = self.tuned(start)
        torch.manual_seed(99)
        before = torch.get_rng_state()
        second, _ = self.tuned(start)
        assert torch.equal(torch.get_rng_state(), before)
        other, _ = self.tuned(start, seed=4)
        assert first.fingerprint() == second.fingerprint() != other.fingerprint()

    def test_does_nothing_when_frozen_or_without_a_second_pair(self, start):
        untouched = BiEncoder(start, device="cpu").fingerprint()
        frozen, steps = self.tuned(start, ContrastiveConfig(encoder_steps=0))
        assert (steps, frozen.fingerprint()) == (0, untouched)
        for n in (0, 1):
            few = {"anchors": self.anchors[:n], "positives": self.positives[:n], "users": self.users[:n]}
            encoder, steps = self.tuned(start, **few)
            assert (steps, encoder.fingerprint()) == (0, untouched)

    def test_takes_the_pairs_of_one_user_as_no_negatives(self, start):
        decay_only = ContrastiveConfig(encoder_steps=2, encoder_batch_size=8, temperature=1.0)
        masks = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                module,
                "in_batch_loss",
                lambda *args, **named: masks.append(named["same"]) or in_batch_loss(*args, **named),
            )
            self.tuned(start, decay_only, users=np.zeros(32, dtype=np.int64))
            self.tuned(start, decay_only)
        assert all(mask.all() for mask in masks[:2])
        assert not any(mask.all() for mask in masks[2:])
        for mask in masks:
            assert mask.diagonal().all()

    def test_shows_progress_when_asked(self, start, capfd):
        self.tuned(start, progress=True)
        assert "train text encoder" in capfd.readouterr().err


class TestTrainHistoryEncoder:
    lists = tuple([(start + step) % N_ITEMS for step in range(5)] for start in range(N_ITEMS))
    vectors = unit(N_ITEMS, 5).numpy()
    config = ContrastiveConfig(history_epochs=50, history_batch_size=4, n_negatives=1024, history_learning_rate=5e-3)

    def train(self, lists=None, config=None, **changes) -> tuple[HistoryEncoder, int]:
        torch.manual_seed(0)
        encoder = HistoryEncoder(HistoryConfig(max_length=4, dim=16, dropout=0.1), item_dim=DIM)
        state = torch.get_rng_state()
        steps = train_history_encoder(
            encoder,
            histories_of(self.lists if lists is None else lists),
            self.vectors,
            changes.pop("text_rows", np.arange(N_ITEMS)),
            config or self.config,
            device="cpu",
            **{"seed": 1, **changes},
        )
        assert torch.equal(torch.get_rng_state(), state)
        return encoder, steps

    def hits(self, encoder: HistoryEncoder) -> float:
        """How often the item that follows in the circle is the nearest one that was not taken yet."""
        users = encoder.encode(histories_of([rows[:4] for rows in self.lists]), self.vectors)
        cosines = users @ self.vectors.T
        np.put_along_axis(cosines, np.array([rows[:4] for rows in self.lists]), -1.0, axis=1)
        return float(np.mean(cosines.argmax(axis=1) == [rows[4] for rows in self.lists]))

    def test_learns_which_item_follows(self):
        untrained, _ = self.train(config=ContrastiveConfig(history_epochs=0))
        encoder, steps = self.train()
        assert steps == 150
        assert not encoder.training
        assert self.hits(encoder) > 0.7 > 0.2 > self.hits(untrained)

    def test_repeats_its_bits_for_a_seed(self):
        (first, _), (second, _), (other, _) = self.train(), self.train(), self.train(seed=2)
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name])
        assert not torch.equal(first.project_out.weight, other.project_out.weight)

    def test_stops_at_the_limit(self):
        assert self.train(config=ContrastiveConfig(history_max_steps=3, history_batch_size=4))[1] == 3

    @pytest.mark.parametrize("lists", [[], [[1], [2], []]])
    def test_takes_no_step_where_no_history_has_two_events(self, lists):
        encoder, steps = self.train(lists)
        assert steps == 0
        assert not encoder.project_out.weight.any()

    def test_takes_no_item_of_the_same_text_or_window_as_a_negative(self, monkeypatch):
        masks = []
        monkeypatch.setattr(
            module, "prefix_loss", lambda *args, **named: masks.append(named["masked"]) or prefix_loss(*args, **named)
        )
        text_rows = np.array([0, 0, *range(1, 11)])  # items 0 and 1 share a text
        config = ContrastiveConfig(history_epochs=1, history_batch_size=2)
        self.train([[5, 0, 6]], config, text_rows=text_rows)
        expected = np.zeros((2, 12), dtype=bool)
        expected[:, [5, 0, 6]] = True
        expected[0, 1] = True  # the first target is item 0
        np.testing.assert_array_equal(masks[0].numpy(), expected)

    def test_shows_progress_when_asked(self, capfd):
        self.train(progress=True)
        assert "train history encoder" in capfd.readouterr().err
