from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from indexing.history import N_GAPS, Histories, HistoryConfig, HistoryEncoder, gap_buckets

DIM = 6
CONFIG = HistoryConfig(max_length=5, dim=8, n_layers=2, n_heads=2, dropout=0.3, decay=0.8)


def histories_of(*lists: list[int]) -> Histories:
    lengths = [len(rows) for rows in lists]
    flat = np.array([row for rows in lists for row in rows], dtype=np.int32)
    return Histories(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), flat)


def unit(rows: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_encoder(config: HistoryConfig = CONFIG, *, trained: bool = True, n_event_kinds: int = 1) -> HistoryEncoder:
    """An encoder whose correction is, where `trained`, as large as the mean that it corrects."""
    torch.manual_seed(0)
    encoder = HistoryEncoder(config, item_dim=DIM, n_event_kinds=n_event_kinds)
    if trained:
        for layer in (encoder.project_out, encoder.event_kinds, encoder.gaps):
            torch.nn.init.normal_(layer.weight, std=0.5)
    return encoder.eval()


class TestHistories:
    histories = histories_of([3, 1, 4], [], [1, 5, 9, 2, 6])
    described = replace(
        histories,
        event_rows=histories.item_rows.astype(np.int16),
        seconds=histories.item_rows * 1000.0,
        weights=histories.item_rows.astype(np.float32) / 2,
    )

    def test_of_gives_each_users_rows_oldest_first(self):
        assert [self.histories.of(user).tolist() for user in range(3)] == [[3, 1, 4], [], [1, 5, 9, 2, 6]]

    def test_len_and_lengths_count_users_and_events(self):
        assert len(self.histories) == 3
        assert self.histories.lengths.tolist() == [3, 0, 5]

    def test_slice_renumbers_the_users(self):
        part = self.histories.slice(1, 3)
        assert len(part) == 2
        assert [part.of(0).tolist(), part.of(1).tolist()] == [[], [1, 5, 9, 2, 6]]
        assert part.offsets.tolist() == [0, 0, 5]

    def test_slice_of_nobody_is_empty(self):
        assert len(self.histories.slice(2, 2)) == 0

    def test_take_gives_some_users_in_the_order_asked(self):
        some = self.described.take(np.array([2, 1, 0]))
        assert [some.of(user).tolist() for user in range(3)] == [[1, 5, 9, 2, 6], [], [3, 1, 4]]
        self.assert_parts_follow(some)
        assert len(self.described.take(np.zeros(0, dtype=np.int64))) == 0

    def test_newest_are_positions_oldest_first_padded_on_the_right(self):
        positions, there = self.histories.newest(4)
        rows = np.where(there, self.histories.item_rows[positions], -1)
        assert rows.tolist() == [[3, 1, 4, -1], [-1, -1, -1, -1], [5, 9, 2, 6]]
        assert positions.min() >= 0
        assert positions.max() < len(self.histories.item_rows)

    def test_keep_leaves_the_users_and_drops_the_other_items(self):
        kept = self.described.keep(np.isin(np.arange(10), [1, 4, 6]))
        assert [kept.of(user).tolist() for user in range(3)] == [[1, 4], [], [1, 6]]
        self.assert_parts_follow(kept)

    def test_without_last_takes_the_newest_event_of_the_users_asked(self):
        rest = self.described.without_last(np.array([2]))
        assert [rest.of(user).tolist() for user in range(3)] == [[3, 1, 4], [], [1, 5, 9, 2]]
        self.assert_parts_follow(rest)
        both = self.described.without_last(np.array([0, 2]))
        assert both.lengths.tolist() == [2, 0, 4]
        assert self.described.lengths.tolist() == [3, 0, 5]  # the original stays

    def test_without_last_of_nobody_is_the_same(self):
        rest = self.described.without_last(np.zeros(0, dtype=np.int64))
        assert rest.item_rows.tolist() == self.described.item_rows.tolist()

    def test_slices_take_kinds_times_and_weights_along(self):
        self.assert_parts_follow(self.described.slice(1, 3))
        self.assert_parts_follow(self.described.slice(0, 1))

    def assert_parts_follow(self, histories):
        """In `described` every part says which item its event was about."""
        assert histories.event_rows.tolist() == histories.item_rows.tolist()
        assert histories.seconds.tolist() == (histories.item_rows * 1000.0).tolist()
        assert histories.weights.tolist() == (histories.item_rows / 2).tolist()
        assert histories.event_rows.dtype == np.int16
        assert histories.offsets[-1] == len(histories.item_rows)


class TestGapBuckets:
    def of(self, *lists: list[float]) -> list[int]:
        histories = histories_of(*([0] * len(seconds) for seconds in lists))
        flat = np.array([second for seconds in lists for second in seconds], dtype=np.float64)
        buckets = gap_buckets(replace(histories, seconds=flat))
        return buckets.tolist()

    def test_are_one_and_the_logarithm_of_the_seconds(self):
        assert self.of([5.0, 5.0, 6.0, 8.0, 16.0, 16.0 + 2**20]) == [0, 1, 1, 2, 4, 21]

    def test_of_a_first_event_is_zero_whoever_came_before(self):
        assert self.of([1e9, 1e9 + 4], [], [7.0], [1e9]) == [0, 3, 0, 0]

    def test_stay_in_the_last_bucket_however_long_it_takes(self):
        assert self.of([-4e9, 4e12]) == [0, N_GAPS - 1]

    def test_of_unknown_times_are_none(self):
        assert gap_buckets(histories_of([1, 2])) is None


class TestHistoryConfig:
    @pytest.mark.parametrize("wrong", [{"max_length": 0}, {"dim": 0}, {"n_heads": 0}, {"n_layers": -1}])
    def test_refuses_empty_shapes(self, wrong):
        with pytest.raises(ValueError, match="max_length, dim and n_heads must be positive, n_layers 0 or more"):
            HistoryConfig(**wrong)

    def test_refuses_heads_that_do_not_divide_the_width(self):
        with pytest.raises(ValueError, match="n_heads=3 must divide dim=128"):
            HistoryConfig(n_heads=3)

    @pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"dropout": -0.1}, {"decay": 0.0}, {"decay": 1.0}])
    def test_refuses_shares_outside_their_range(self, wrong):
        with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\) and decay in \(0, 1\)"):
            HistoryConfig(**wrong)


class TestForward:
    @torch.no_grad()
    def test_is_causal(self):
        encoder = make_encoder()
        items = torch.from_numpy(unit(5))[None]
        before = encoder(items)
        for step in range(4):
            changed = items.clone()
            changed[0, step + 1 :] = torch.from_numpy(unit(4 - step, seed=step + 1))
            after = encoder(changed)
            torch.testing.assert_close(after[0, : step + 1], before[0, : step + 1])
            assert not torch.allclose(after[0, step + 1], before[0, step + 1], atol=1e-3)

    @torch.no_grad()
    def test_of_a_prefix_equals_the_prefix_of_the_whole(self):
        encoder = make_encoder()
        items = torch.from_numpy(unit(5))[None]
        torch.testing.assert_close(encoder(items[:, :3]), encoder(items)[:, :3])

    @torch.no_grad()
    def test_gives_unit_vectors(self):
        lengths = make_encoder()(torch.from_numpy(unit(10)).view(2, 5, DIM)).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones(2, 5))

    @torch.no_grad()
    def test_reads_the_order_of_the_events(self):
        items = torch.from_numpy(unit(4))[None]
        last, reversed_last = make_encoder()(items)[0, -1], make_encoder()(items.flip(1))[0, -1]
        assert not torch.allclose(last, reversed_last, atol=1e-3)


class TestEncode:
    vectors = unit(10)

    def test_of_an_untrained_encoder_is_the_decayed_mean(self):
        rows = [2, 7, 7, 1, 0, 3, 9]
        newest = rows[-CONFIG.max_length :]
        mean = sum(CONFIG.decay**age * self.vectors[row] for age, row in enumerate(reversed(newest)))
        encoded = make_encoder(trained=False).encode(histories_of(rows), self.vectors)
        np.testing.assert_allclose(encoded[0], mean / np.linalg.norm(mean), atol=1e-6)

    def test_of_one_untrained_click_is_the_item_itself(self):
        encoded = make_encoder(trained=False).encode(histories_of([4]), self.vectors)
        np.testing.assert_allclose(encoded[0], self.vectors[4], atol=1e-6)

    def test_of_an_empty_history_is_zero_and_of_others_unit_length(self):
        encoded = make_encoder().encode(histories_of([], [1], [], list(range(10))), self.vectors)
        assert encoded.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), [0, 1, 0, 1], atol=1e-6)

    def test_of_nobody_has_no_rows(self):
        assert make_encoder().encode(histories_of(), self.vectors).shape == (0, DIM)

    @pytest.mark.parametrize("trained", [True, False])
    def test_moves_with_one_click(self, trained):
        before, after = make_encoder(trained=trained).encode(histories_of([1, 2], [1, 2, 3]), self.vectors)
        assert np.abs(before - after).max() > 1e-2

    def test_reads_the_newest_events_only(self):
        encoded = make_encoder().encode(histories_of([8, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5]), self.vectors)
        np.testing.assert_allclose(encoded[0], encoded[1], atol=1e-6)

    def test_in_batches_equals_one_by_one(self):
        rng = np.random.default_rng(0)
        lists = [rng.integers(0, 10, size=rng.integers(0, 8)).tolist() for _ in range(9)]
        encoder = make_encoder()
        together = encoder.encode(histories_of(*lists), self.vectors)
        batched = encoder.encode(histories_of(*lists), self.vectors, batch_size=2)
        single = np.concatenate([encoder.encode(histories_of(rows), self.vectors) for rows in lists])
        np.testing.assert_allclose(batched, together, atol=1e-6)
        np.testing.assert_allclose(single, together, atol=1e-6)

    def test_equals_forward_at_the_last_event(self):
        encoder = make_encoder()
        with torch.no_grad():
            expected = encoder(torch.from_numpy(self.vectors[[3, 0, 6]])[None])[0, -1].numpy()
        np.testing.assert_allclose(encoder.encode(histories_of([3, 0, 6]), self.vectors)[0], expected, atol=1e-6)

    def test_drops_nothing_even_after_training_mode(self):
        encoder = make_encoder()
        expected = encoder.encode(histories_of([1, 2, 3]), self.vectors)
        encoder.train()
        np.testing.assert_array_equal(encoder.encode(histories_of([1, 2, 3]), self.vectors), expected)


class TestKindsAndGaps:
    vectors = unit(10)
    rows = histories_of([1, 2, 3], [4], [5, 6])
    kinds = np.array([0, 1, 2, 1, 0, 2], dtype=np.int16)
    seconds = np.array([0.0, 60.0, 9e6, 5.0, 1.0, 3.0])

    def encode(self, *, trained: bool, kinds=None, seconds=None):
        encoder = make_encoder(trained=trained, n_event_kinds=3)
        return encoder.encode(replace(self.rows, event_rows=kinds, seconds=seconds), self.vectors)

    def test_change_the_vector_once_they_are_learnt(self):
        plain = self.encode(trained=True)
        for told in ({"kinds": self.kinds}, {"seconds": self.seconds}):
            assert (np.abs(self.encode(trained=True, **told) - plain).max(axis=1) > 1e-2).all()

    def test_change_nothing_before(self):
        told = self.encode(trained=False, kinds=self.kinds, seconds=self.seconds)
        np.testing.assert_array_equal(told, self.encode(trained=False))

    def test_give_the_same_vectors_in_forward(self):
        encoder = make_encoder(n_event_kinds=3)
        told = replace(self.rows, event_rows=self.kinds, seconds=self.seconds).slice(0, 1)
        with torch.no_grad():
            items = torch.from_numpy(self.vectors[[1, 2, 3]])[None]
            kinds, gaps = torch.tensor([[0, 1, 2]]), torch.tensor([gap_buckets(told).tolist()])
            expected = encoder(items, kinds, gaps)[0, -1].numpy()
        np.testing.assert_allclose(encoder.encode(told, self.vectors)[0], expected, atol=1e-6)


def test_the_decay_is_learnt():
    encoder = make_encoder()
    items = torch.from_numpy(unit(4))[None]
    encoder(items)[0, -1, 0].backward()
    assert encoder.decay.grad.abs() > 1e-4
    assert torch.sigmoid(encoder.decay).item() == pytest.approx(CONFIG.decay)


class TestFiles:
    def test_a_loaded_encoder_gives_the_same_bits(self, tmp_path):
        encoder = make_encoder(n_event_kinds=3)
        encoder.save(tmp_path / "history")
        state = torch.get_rng_state()
        loaded = HistoryEncoder.load(tmp_path / "history", device="cpu")
        assert torch.equal(torch.get_rng_state(), state)
        assert (loaded.config, loaded.n_event_kinds) == (CONFIG, 3)
        asked = histories_of([1, 2], [3], [])
        np.testing.assert_array_equal(loaded.encode(asked, unit(10)), encoder.encode(asked, unit(10)))

    def test_are_json_and_safetensors(self, tmp_path):
        make_encoder().save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
