from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexing.contrastive import ContrastiveConfig, plan, softmax_loss

DIM = 8


def unit(rows: int, seed: int) -> torch.Tensor:
    vectors = torch.randn((rows, DIM), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


class TestContrastiveConfig:
    @pytest.mark.parametrize(
        "name", ["encoder_steps", "tower_max_steps", "tower_epochs", "n_hard", "validation_users", "adversarial"]
    )
    def test_refuses_negative_numbers(self, name):
        with pytest.raises(ValueError, match=f"contrastive: {name}=-1 must be 0 or more"):
            ContrastiveConfig(**{name: -1})

    @pytest.mark.parametrize("name", ["encoder_batch_size", "tower_batch_size", "n_negatives", "full_softmax_items"])
    def test_refuses_batches_without_a_negative(self, name):
        with pytest.raises(ValueError, match=f"contrastive: {name}=1 must be at least 2"):
            ContrastiveConfig(**{name: 1})

    @pytest.mark.parametrize("name", ["encoder_learning_rate", "tower_learning_rate", "temperature", "max_grad_norm"])
    def test_refuses_what_must_be_positive(self, name):
        with pytest.raises(ValueError, match=f"contrastive: {name}=0.0 must be positive"):
            ContrastiveConfig(**{name: 0.0})

    @pytest.mark.parametrize("name", ["word_dropout", "hard_share", "hard_margin", "cold_share"])
    @pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
    def test_refuses_shares_outside_their_range(self, name, share):
        with pytest.raises(ValueError, match=rf"contrastive: {name}={share} must lie in \[0, 1\)"):
            ContrastiveConfig(**{name: share})

    def test_takes_fewer_steps_on_a_cpu_unless_told(self):
        config = ContrastiveConfig()
        assert (config.encoder_steps_on("cpu"), config.encoder_steps_on("cuda:0")) == (250, 3000)
        assert (config.tower_steps_on("cpu"), config.tower_steps_on("cuda")) == (450, 20_000)
        told = ContrastiveConfig(encoder_steps=0, tower_max_steps=7)
        assert (told.encoder_steps_on("cuda"), told.tower_steps_on("cuda")) == (0, 7)


class TestSoftmaxLoss:
    users, choices = unit(6, 0), unit(9, 1)
    targets = torch.tensor([3, 0, 8, 3, 5, 1])
    log_expected = torch.log(torch.rand(9, generator=torch.Generator().manual_seed(2)) + 0.01)
    hidden = torch.rand((6, 9), generator=torch.Generator().manual_seed(3)) < 0.4
    worth = torch.tensor([1.0, 0.0, 2.5, 1.0, 0.25, 4.0])

    def by_loop(self, temperature, log_expected, hidden, worth) -> float:
        losses = []
        for row, target in enumerate(self.targets.tolist()):
            scores = [float(self.users[row] @ choice) / temperature for choice in self.choices]
            if log_expected is not None:
                scores = [score - float(log) for score, log in zip(scores, log_expected, strict=True)]
            there = [c for c in range(9) if c == target or hidden is None or not hidden[row, c]]
            losses.append(math.log(sum(math.exp(scores[c]) for c in there)) - scores[target])
        return float(np.average(losses, weights=None if worth is None else worth.numpy()))

    @pytest.mark.parametrize("temperature", [1.0, 0.05])
    @pytest.mark.parametrize("correct", [True, False])
    @pytest.mark.parametrize("hide", [True, False])
    @pytest.mark.parametrize("weigh", [True, False])
    def test_equals_a_loop(self, temperature, correct, hide, weigh):
        log_expected, hidden = self.log_expected if correct else None, self.hidden if hide else None
        worth = self.worth if weigh else None
        loss = softmax_loss(
            self.users, self.choices, self.targets,
            temperature=temperature, log_expected=log_expected, masked=hidden, weights=worth,
        )  # fmt: skip
        assert float(loss) == pytest.approx(self.by_loop(temperature, log_expected, hidden, worth), rel=1e-4)

    def test_where_everything_else_is_masked_is_zero_with_finite_gradients(self):
        users = unit(6, 0).requires_grad_()
        masked = torch.ones(6, 9, dtype=torch.bool)
        loss = softmax_loss(users, self.choices, self.targets, temperature=1e-6, masked=masked)
        loss.backward()
        assert loss.item() == 0.0
        assert torch.isfinite(users.grad).all()

    def test_what_is_worth_nothing_pulls_nowhere(self):
        users = unit(6, 0).requires_grad_()
        softmax_loss(users, self.choices, self.targets, temperature=0.1, weights=self.worth).backward()
        assert users.grad.any(dim=1).tolist() == (self.worth > 0).tolist()

    def test_of_events_that_are_all_worth_nothing_is_zero(self):
        users = unit(6, 0).requires_grad_()
        loss = softmax_loss(users, self.choices, self.targets, temperature=0.1, weights=torch.zeros(6))
        loss.backward()
        assert loss.item() == 0.0
        assert not users.grad.any()

    def test_corrected_for_the_draw_is_on_average_that_of_all_items(self):
        """Choices drawn in proportion to what is subtracted give the gradient of the full softmax."""
        users, items = unit(1, 4), unit(40, 5)
        popular = torch.linspace(1, 20, 40)
        full = users.clone().requires_grad_()
        softmax_loss(full, items, torch.tensor([0]), temperature=0.3).backward()
        generator = torch.Generator().manual_seed(0)
        corrected, raw = torch.zeros(1, DIM), torch.zeros(1, DIM)
        for _ in range(200):
            drawn = torch.multinomial(popular, 200, replacement=True, generator=generator)
            columns = torch.cat([torch.tensor([0]), drawn[drawn != 0]])
            log = torch.log(200 * popular / popular.sum())[columns]
            log[0] = 0.0  # the target is there for certain
            for total, log_expected in ((corrected, log), (raw, None)):
                sampled = users.clone().requires_grad_()
                softmax_loss(
                    sampled, items[columns], torch.tensor([0]), temperature=0.3, log_expected=log_expected
                ).backward()
                total += sampled.grad / 200
        assert (corrected - full.grad).norm() < 0.2 * (raw - full.grad).norm()


class TestPlan:
    @settings(max_examples=30, deadline=None)
    @given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=80), per_step=st.integers(1, 120))
    def test_covers_every_row_once_in_a_pass_and_keeps_to_the_size(self, sizes, per_step):
        sizes = np.array(sizes, dtype=np.int64)
        n_steps = self.steps_of_a_pass(sizes, per_step)
        batches = plan(sizes, per_step, 2 * n_steps, seed=0)
        for one_pass in (batches[:n_steps], batches[n_steps:]):
            assert sorted(np.concatenate(one_pass).tolist()) == list(range(len(sizes)))
        for batch in batches:
            assert sizes[batch].sum() < per_step + sizes[batch].max()

    def steps_of_a_pass(self, sizes, per_step) -> int:
        """Steps until every row was there."""
        seen: set[int] = set()
        for step, batch in enumerate(plan(sizes, per_step, 2 * len(sizes), seed=0)):
            seen |= set(batch.tolist())
            if len(seen) == len(sizes):
                return step + 1
        raise AssertionError("some row never comes")

    def test_puts_rows_of_like_size_together(self):
        sizes = np.tile([1, 10], 50).astype(np.int64)
        batches = plan(sizes, 50, 11, seed=0)
        mixed = [batch for batch in batches if len(set(sizes[batch])) > 1]
        assert len(mixed) == 1  # where the short ones end
        assert sorted(len(batch) for batch in batches)[-1] == 49

    def test_takes_passes_in_new_orders_that_follow_the_seed(self):
        sizes = np.ones(40, dtype=np.int64)
        batches = [batch.tolist() for batch in plan(sizes, 10, 10, seed=1)]
        assert sorted(map(sorted, batches[:5])) != sorted(map(sorted, batches[5:]))
        assert [batch.tolist() for batch in plan(sizes, 10, 10, seed=1)] == batches
        assert [batch.tolist() for batch in plan(sizes, 10, 10, seed=2)] != batches

    @pytest.mark.parametrize(("n", "steps"), [(0, 5), (3, 0)])
    def test_of_nothing_is_nothing(self, n, steps):
        assert plan(np.ones(n, dtype=np.int64), 10, steps, seed=0) == []
