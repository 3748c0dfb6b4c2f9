from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.nn import functional

from indexing import tower_lesson as module
from indexing.contrastive import ContrastiveConfig, softmax_loss
from indexing.history import Histories, HistoryConfig, HistoryEncoder
from indexing.item_tower import ItemFeatures, ItemTower, ItemTowerConfig
from indexing.tower_lesson import train_towers
from indexing.training_config import TrainingConfig

TEXT_DIM, DIM, N_ITEMS = 8, 16, 12
CIRCLE = [[(start + step) % N_ITEMS for step in range(5)] for start in range(N_ITEMS)]
CONFIG = ContrastiveConfig(
    tower_epochs=200, tower_max_steps=150, tower_batch_size=16, tower_learning_rate=5e-3, temperature=0.1,
    validation_users=0,
)  # fmt: skip
TRAINING = TrainingConfig(precision="fp32", patience=0)


def histories_of(lists: list[list[int]], **parts: np.ndarray) -> Histories:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Histories(offsets, np.array([row for rows in lists for row in rows], dtype=np.int32), **parts)


def texts(rows: int = N_ITEMS) -> np.ndarray:
    vectors = np.random.default_rng(5).normal(size=(rows, TEXT_DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Pair:
    """Both towers after a training."""

    def __init__(self, lists=None, config: ContrastiveConfig = CONFIG, *, training=TRAINING, **changes) -> None:
        given = changes.pop("histories", None) or histories_of(CIRCLE if lists is None else lists)
        counts = np.full(N_ITEMS, 5.0, dtype=np.float32)
        self.features = ItemFeatures(texts(), sp.csr_matrix((N_ITEMS, 0), dtype=np.float32), np.arange(N_ITEMS), counts)
        torch.manual_seed(0)
        shape = HistoryConfig(max_length=changes.pop("max_length", 4), dim=16, dropout=0.1)
        self.tower = ItemTower(ItemTowerConfig(dim=DIM), text_dim=TEXT_DIM, n_words=0, n_items=N_ITEMS)
        self.encoder = HistoryEncoder(shape, item_dim=DIM, n_event_kinds=changes.pop("n_event_kinds", 1))
        self.tower.start(self.features, sp.csr_matrix((N_ITEMS, N_ITEMS), dtype=np.float32), seed=0)
        state = torch.get_rng_state()
        self.steps = train_towers(
            self.tower, self.encoder, given, self.features, config,
            training=training, device="cpu", **{"seed": 1, **changes},
        )  # fmt: skip
        assert torch.equal(torch.get_rng_state(), state)

    def weights(self) -> dict[str, torch.Tensor]:
        return {**self.tower.state_dict(), **{f"user {k}": v for k, v in self.encoder.state_dict().items()}}

    def equals(self, other: Pair) -> bool:
        return all(torch.equal(tensor, other.weights()[name]) for name, tensor in self.weights().items())

    def hits(self, lists=CIRCLE, **parts) -> float:
        """How often the item that follows is the nearest one that was not taken yet."""
        vectors = self.tower.encode(self.features)
        users = self.encoder.encode(histories_of([rows[:-1] for rows in lists], **parts), vectors)
        cosines = users @ vectors.T
        for row, taken in enumerate(lists):
            cosines[row, taken[:-1]] = -1.0
        return float(np.mean(cosines.argmax(axis=1) == [rows[-1] for rows in lists]))


@pytest.fixture(scope="module")
def trained() -> Pair:
    return Pair()


class TestTrainTowers:
    def test_learns_which_item_follows(self, trained):
        untrained = Pair(config=replace(CONFIG, tower_epochs=0))
        assert untrained.steps == 0
        assert not trained.encoder.training
        assert not trained.tower.training
        assert trained.hits() > 0.7 > 0.3 > untrained.hits()

    def test_repeats_its_bits_for_a_seed(self, trained):
        assert trained.equals(Pair())
        assert not trained.equals(Pair(seed=2))

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"config": replace(CONFIG, tower_max_steps=3)}, 3),
            ({"max_steps": 7}, 7),
            ({"config": replace(CONFIG, tower_epochs=2), "max_steps": 100}, 6),  # 48 events a pass, 16 a step
        ],
    )
    def test_stops_at_the_limit(self, changes, expected):
        assert Pair(**changes, training=replace(TRAINING, checks=1)).steps == expected

    def test_stops_when_time_is_up(self):
        endless = replace(CONFIG, tower_epochs=10**6, tower_max_steps=10**5)
        pair = Pair(config=endless, max_seconds=0.5)
        assert 0 < pair.steps < 10**5

    @pytest.mark.parametrize("lists", [[], [[1], [2], []]])
    def test_takes_no_step_where_no_history_has_two_events(self, lists):
        pair = Pair(lists)
        assert pair.steps == 0
        assert not pair.encoder.project_out.weight.any()

    def test_reads_histories_longer_than_its_window(self):
        long = [[(start + step) % N_ITEMS for step in range(11)] for start in range(N_ITEMS)]
        pair = Pair(long, max_length=3)
        assert pair.hits(CIRCLE) > 0.7

    def test_of_a_sample_learns_as_well_and_looks_for_hard_ones(self, monkeypatch):
        calls = []
        hardest = module.TowerLesson._hardest

        def counted(self, *arguments, **named):
            found = hardest(self, *arguments, **named)
            calls.append(found)
            return found

        monkeypatch.setattr(module.TowerLesson, "_hardest", counted)
        sampled = replace(CONFIG, full_softmax_items=4, n_negatives=8, n_hard=3, hard_share=0.4)
        pair = Pair(config=sampled, max_steps=100)
        assert pair.hits() > 0.7
        assert len(calls) == 40
        assert all(len(rows) <= 3 and len(rows.unique()) == len(rows) for rows in calls)

    def test_of_a_sample_corrects_for_how_often_an_item_is_drawn(self, monkeypatch):
        seen = []
        monkeypatch.setattr(
            module, "softmax_loss", lambda *args, **named: seen.append((args, named)) or softmax_loss(*args, **named)
        )
        sampled = replace(CONFIG, full_softmax_items=4, n_negatives=6, n_hard=0, tower_batch_size=1000)
        lists = [[0, 1, 2], [0, 1], [0, 1]]
        Pair(lists, sampled, max_steps=1)
        (_, choices, targets), named = seen[0]
        assert len(choices) == len(named["log_expected"])
        frequency = np.bincount([row for rows in lists for row in rows], minlength=N_ITEMS) / 7
        expected = np.log(6 / N_ITEMS + 4 * frequency)
        found = named["log_expected"].numpy()
        assert (np.abs(found[:, None] - expected).min(axis=1) < 1e-5).all()
        assert found[targets].max() == pytest.approx(expected[1])

    def test_shows_progress_when_asked(self, capfd):
        Pair(max_steps=2, progress=True)
        captured = capfd.readouterr()
        assert "train towers" in captured.err
        assert captured.out == ""


class TestWhatIsMasked:
    def masks(self, monkeypatch, lists) -> list[np.ndarray]:
        """For each event to predict, which items are no negatives of it."""
        seen = []
        monkeypatch.setattr(
            module, "softmax_loss", lambda *args, **named: seen.append((args, named)) or softmax_loss(*args, **named)
        )
        Pair(lists, replace(CONFIG, tower_batch_size=1000), max_steps=1)
        (users, choices, targets), named = seen[0]
        assert len(choices) == N_ITEMS
        hidden = named["masked"].numpy()
        assert hidden.shape == (len(users), len(choices))
        return sorted((int(target), np.flatnonzero(row).tolist()) for target, row in zip(targets, hidden, strict=True))

    def test_is_every_item_of_the_user(self, monkeypatch):
        found = self.masks(monkeypatch, [[5, 0, 6], [], [1, 2]])
        assert found == [(0, [0, 5, 6]), (2, [1, 2]), (6, [0, 5, 6])]

    def test_is_also_what_lies_in_other_windows_as_far_as_is_looked(self, monkeypatch):
        lists = [[7, 8], [0, 1, 2, 3, 4, 5, 6], [9, 10]]  # windows of five events that share one: 0 to 4 and 4 to 6
        whole = [(item, list(range(7))) for item in range(1, 7)]
        assert self.masks(monkeypatch, lists) == [*whole, (8, [7, 8]), (10, [9, 10])]
        monkeypatch.setattr(module, "MOST_BESIDE", 1)
        near = [(item, list(range(6))) for item in range(1, 5)] + [(item, list(range(3, 7))) for item in (5, 6)]
        assert self.masks(monkeypatch, lists) == [*near, (8, [7, 8]), (10, [9, 10])]


class TestWhatIsSetAside:
    # One check at the end: the validation loss is measured, but decides nothing.
    once = replace(TRAINING, checks=1)
    config = replace(CONFIG, tower_max_steps=12, validation_users=1000)

    def test_is_never_learnt_from(self):
        histories = histories_of(CIRCLE)
        aside = module._set_aside(histories, self.config, seed=1)
        assert len(aside) == 1
        for users, same in ((aside, True), ((aside + 1) % N_ITEMS, False)):
            rows = histories.item_rows.copy()
            rows[histories.offsets[users + 1] - 1] = 11 - rows[histories.offsets[users + 1] - 1]
            changed = replace(histories, item_rows=rows)
            first = Pair(histories=histories, config=self.config, training=self.once)
            second = Pair(histories=changed, config=self.config, training=self.once)
            assert first.equals(second) is same

    def test_is_learnt_from_where_the_steps_are_given(self):
        first, second = (Pair(lists, self.config, max_steps=12) for lists in (CIRCLE, self.with_other_ends()))
        assert not first.equals(second)

    def with_other_ends(self) -> list[list[int]]:
        aside = module._set_aside(histories_of(CIRCLE), self.config, seed=1)
        return [[*rows[:-1], 11 - rows[-1]] if user in aside else rows for user, rows in enumerate(CIRCLE)]

    def test_the_loss_leaves_out_what_a_user_took_before_as_lists_do(self):
        lists = [[0, 1, 2, 3, 4, 5, 6, 7], [3, 8], [9, 2, 10]]
        pair, histories, aside = Pair(lists), histories_of(lists), np.array([0, 2])
        learnt = histories.without_last(aside)
        windows, _ = module._windows(learnt, pair.encoder.config.max_length)
        lesson = module.TowerLesson(
            pair.tower, pair.encoder, learnt, windows, pair.features, CONFIG, device="cpu", seed=0, steps=1
        )
        lesson.set_aside(histories, aside)
        lesson.eval()
        vectors = pair.tower.encode(pair.features)
        cosines = pair.encoder.encode(learnt.take(aside), vectors) @ vectors.T
        gained = []
        for row, user in enumerate(aside):
            others = np.setdiff1d(np.arange(N_ITEMS), lists[user])
            gained.append(1 / np.log2(2 + (cosines[row, others] > cosines[row, lists[user][-1]]).sum()))
        with torch.no_grad():
            assert lesson.validation_loss() == pytest.approx(1 - np.mean(gained), abs=1e-6)

    def test_is_at_most_a_tenth_and_as_many_as_asked_of_users_with_three_events(self):
        lists = [[1, 2, 3]] * 30 + [[1, 2]] * 100
        aside = module._set_aside(histories_of(lists), self.config, seed=0)
        assert len(aside) == len(set(aside.tolist())) == 3
        assert aside.max() < 30
        assert len(module._set_aside(histories_of(lists), replace(CONFIG, validation_users=2), seed=0)) == 2
        assert len(module._set_aside(histories_of(lists), replace(CONFIG, validation_users=0), seed=0)) == 0

    def test_brings_back_the_weights_that_did_best_on_it(self, monkeypatch):
        """Losses as written: the second check is the best one, and training ends two checks later."""
        losses, weights = iter([2.0, 1.0, 3.0, 3.0, 0.0]), []

        def scripted(self):
            weights.append(self.encoder.project_out.weight.detach().clone())
            return next(losses)

        monkeypatch.setattr(module.TowerLesson, "validation_loss", scripted)
        pair = Pair(
            config=replace(self.config, tower_max_steps=40),
            training=TrainingConfig(precision="fp32", patience=2, checks=10),
        )
        assert len(weights) == 4
        assert torch.equal(pair.encoder.project_out.weight, weights[1])
        assert pair.steps == 8  # of the weights that were kept

    def test_loss_falls(self):
        losses = []
        original = module.TowerLesson.validation_loss
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                module.TowerLesson, "validation_loss", lambda lesson: losses.append(original(lesson)) or losses[-1]
            )
            many = [[(start + step) % N_ITEMS for step in range(6)] for start in range(N_ITEMS)] * 5
            Pair(many, replace(self.config, tower_max_steps=150))
        assert len(losses) == 10
        assert losses[-1] < 0.7 * losses[0]

    def test_loss_is_measured_in_a_sample_of_many_items_too(self):
        sampled = replace(self.config, full_softmax_items=4, n_negatives=8, tower_max_steps=5)
        assert 0 < Pair(CIRCLE * 2, sampled).steps <= 5


class TestWeights:
    backwards = tuple(rows[::-1] for rows in CIRCLE)

    def test_of_zero_teach_nothing(self):
        worth = np.repeat(np.float32([1.0, 0.0]), 60)
        lists = [*CIRCLE, *self.backwards]
        told = Pair(histories=histories_of(lists, weights=worth))
        other = Pair(histories=histories_of(lists, weights=1 - worth))
        assert told.hits() > 0.7
        assert told.hits(self.backwards) < 0.3
        assert other.hits(self.backwards) > 0.7

    def test_that_are_all_zero_do_no_harm(self):
        pair = Pair(histories=histories_of(CIRCLE, weights=np.zeros(60, dtype=np.float32)), max_steps=3)
        assert all(torch.isfinite(tensor).all() for tensor in pair.weights().values())
        assert not pair.encoder.project_out.weight.any()

    def test_count_relative_to_each_other(self):
        # Adam forgets a common factor: the loss itself tells.
        rng, targets = torch.Generator().manual_seed(0), torch.arange(4)
        users, choices = (functional.normalize(torch.randn(n, 8, generator=rng), dim=1) for n in (4, 6))
        plain, one, two = (
            softmax_loss(users, choices, targets, temperature=0.1, weights=weights).item()
            for weights in (None, torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([2.0, 2.0, 2.0, 2.0]))
        )
        uneven = softmax_loss(users, choices, targets, temperature=0.1, weights=torch.tensor([9.0, 1.0, 1.0, 1.0]))
        assert plain == pytest.approx(one) == pytest.approx(two)
        assert uneven.item() != pytest.approx(one)


class TestKindsAndGaps:
    """The same items, but whether one goes up or down the circle shows in what kind of event it was, or how slow."""

    lists = (*CIRCLE, *(rows[::-1] for rows in CIRCLE))
    direction = np.repeat([0, 1], 60)

    # One item alone says nothing about the direction.
    asked = tuple([rows[0], rows[1]] for rows in lists)

    def test_kinds_of_events_are_learnt_from(self):
        kinds = self.direction.astype(np.int16)
        pair = Pair(histories=histories_of(self.lists, event_rows=kinds), n_event_kinds=2)
        assert pair.encoder.event_kinds.weight.any(dim=1).all()
        first = np.repeat([0, 1], N_ITEMS).astype(np.int16)
        assert pair.hits(self.asked, event_rows=first) > 0.7
        assert pair.hits(self.asked, event_rows=1 - first) < 0.3

    def test_gaps_are_learnt_from(self):
        lists = [[start, (start + 1) % N_ITEMS, (start + far) % N_ITEMS] for far in (2, 7) for start in range(N_ITEMS)]
        passed = np.repeat([60.0, 86_400.0], N_ITEMS)
        pair = Pair(histories=histories_of(lists, seconds=self.seconds(passed, 3)), config=self.patient)
        assert pair.encoder.gaps.weight.any(dim=1).nonzero()[:, 0].tolist() == [0, 6, 17]
        assert pair.hits(lists, seconds=self.seconds(passed, 2)) > 0.7
        assert pair.hits(lists, seconds=self.seconds(passed[::-1], 2)) < 0.3

    patient = replace(CONFIG, tower_max_steps=250)

    def seconds(self, passed, length: int) -> np.ndarray:
        return (passed[:, None] * np.arange(length)).ravel()


class TestWindows:
    def test_cover_every_step_from_one_event_to_the_next_once(self):
        lists = [[0, 1, 2, 3, 4, 5, 6], [7], [], [8, 9], [1, 2, 3, 4]]
        histories = histories_of(lists)
        windows, lengths = module._windows(histories, 3)
        items = np.where(windows >= 0, histories.item_rows[windows], -1)
        steps = sorted((a, b) for row in items.tolist() for a, b in itertools.pairwise(row) if b >= 0)
        assert steps == sorted((a, b) for rows in lists for a, b in itertools.pairwise(rows))
        assert items.tolist()[:2] == [[0, 1, 2, 3], [3, 4, 5, 6]]
        assert lengths.tolist() == [3, 3, 1, 3]

    def test_of_short_histories_are_none(self):
        windows, lengths = module._windows(histories_of([[1], []]), 3)
        assert windows.shape == (0, 4)
        assert lengths.shape == (0,)
