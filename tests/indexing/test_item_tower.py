from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from indexing.item_tower import ItemFeatures, ItemTower, ItemTowerConfig, TowerInput, factors_of
from indexing.words import Words

N_BLOCKS, N_ITEMS, TEXT_DIM = 4, 40, 12
BLOCKS = np.arange(N_ITEMS) % N_BLOCKS
TITLES = [f"{kind} number{row // 2}" for row, kind in enumerate(np.array(["pan", "shoe", "lamp", "耳机"])[BLOCKS])]
CONFIG = ItemTowerConfig(dim=32)


def unit(rows: int, dim: int = TEXT_DIM, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def features_of(titles=TITLES, counts: float | np.ndarray = 10.0, *, words: bool = True) -> ItemFeatures:
    """One text an item."""
    known = Words.fit(TITLES, max_words=1000 if words else 0)
    counts = np.broadcast_to(np.float32(counts), len(titles)).copy()
    return ItemFeatures(unit(N_ITEMS)[: len(titles)], known.transform(titles), np.arange(len(titles)), counts)


def behaviour() -> sp.csr_matrix:
    """Items of one block are taken together."""
    return sp.csr_matrix((BLOCKS[:, None] == BLOCKS).astype(np.float32) - np.eye(N_ITEMS, dtype=np.float32))


def tower_for(features: ItemFeatures, config: ItemTowerConfig = CONFIG, matrix=None) -> ItemTower:
    torch.manual_seed(0)
    tower = ItemTower(config, text_dim=TEXT_DIM, n_words=features.words.shape[1], n_items=N_ITEMS)
    tower.start(features, behaviour() if matrix is None else matrix, seed=0)
    return tower.eval()


class TestItemTowerConfig:
    @pytest.mark.parametrize("dim", [2, 7, 0])
    def test_refuses_widths_that_are_odd_or_too_small(self, dim):
        with pytest.raises(ValueError, match=f"item_tower: dim={dim} must be even and at least 4"):
            ItemTowerConfig(dim=dim)

    @pytest.mark.parametrize("wrong", [{"min_interactions": 0}, {"max_words": -1}])
    def test_refuses_limits_that_are_too_small(self, wrong):
        with pytest.raises(ValueError, match="min_interactions must be 1 or more and max_words 0 or more"):
            ItemTowerConfig(**wrong)

    @pytest.mark.parametrize("wrong", [{"id_dropout": 1.0}, {"word_dropout": -0.1}])
    def test_refuses_shares_outside_their_range(self, wrong):
        with pytest.raises(ValueError, match=r"id_dropout and word_dropout must lie in \[0, 1\)"):
            ItemTowerConfig(**wrong)


class TestStart:
    def test_of_text_alone_keeps_the_cosines(self):
        features = features_of(counts=0, words=False)
        vectors = tower_for(features).encode(features)
        centered = features.texts - features.texts.mean(axis=0)
        centered /= np.linalg.norm(centered, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors @ vectors.T, centered @ centered.T, atol=1e-5)

    def test_of_words_adds_their_cosines(self):
        features = features_of(counts=0)
        vectors = tower_for(features, ItemTowerConfig(dim=512)).encode(features)
        centered = features.texts - features.texts.mean(axis=0)
        centered /= np.linalg.norm(centered, axis=1, keepdims=True)
        words = (features.words @ features.words.T).toarray()
        found, expected = vectors @ vectors.T, (centered @ centered.T + 0.7**2 * words) / (1 + 0.7**2)
        assert np.abs(found - expected).mean() < 0.06
        assert np.corrcoef(found[~np.eye(N_ITEMS, dtype=bool)], expected[~np.eye(N_ITEMS, dtype=bool)])[0, 1] > 0.95

    def test_of_behaviour_brings_together_what_is_taken_together(self):
        features = features_of(words=False)
        warm = tower_for(features).encode(features)
        cold = tower_for(features).encode(replace(features, counts=np.zeros(N_ITEMS, dtype=np.float32)))
        gain = warm @ warm.T - cold @ cold.T
        same = BLOCKS[:, None] == BLOCKS
        assert gain[same & ~np.eye(N_ITEMS, dtype=bool)].mean() > 0.3
        assert np.abs(gain[~same].mean()) < 0.15

    def test_repeats_its_bits_for_a_seed(self):
        features = features_of()
        np.testing.assert_array_equal(tower_for(features).encode(features), tower_for(features).encode(features))

    def test_without_behaviour_words_or_variety_still_gives_unit_vectors(self):
        alike = replace(features_of(words=False), texts=np.repeat(unit(1), N_ITEMS, axis=0))
        given = replace(features_of(words=False), text_rows=np.zeros(N_ITEMS, dtype=np.int64))
        for features in (alike, given):
            vectors = tower_for(features, matrix=sp.csr_matrix((N_ITEMS, N_ITEMS), dtype=np.float32)).encode(features)
            assert np.isfinite(vectors).all()
            assert vectors.shape == (N_ITEMS, CONFIG.dim)


class TestFactors:
    def test_reproduce_the_blocks(self):
        factors = factors_of(behaviour(), N_BLOCKS, seed=0)
        assert factors.shape == (N_ITEMS, N_BLOCKS)
        np.testing.assert_allclose(factors @ factors.T, BLOCKS[:, None] == BLOCKS, atol=1e-4)

    def test_of_an_item_that_nobody_took_is_zero(self):
        matrix = behaviour().tolil()
        matrix[3], matrix[:, 3] = 0, 0
        factors = factors_of(matrix.tocsr(), N_BLOCKS, seed=0)
        lengths = np.linalg.norm(factors, axis=1)
        np.testing.assert_allclose(lengths[3], 0.0, atol=1e-6)
        assert lengths.max() <= 1 + 1e-6

    def test_are_zero_where_there_is_nothing_but_rounding_error(self):
        blocks = sp.csr_matrix((BLOCKS[:, None] == BLOCKS).astype(np.float32))  # of rank 4
        assert not factors_of(blocks, 10, seed=0)[:, N_BLOCKS:].any()

    @pytest.mark.parametrize("n", [0, 1, 2, 40])
    def test_of_nothing_have_no_columns(self, n):
        assert factors_of(sp.csr_matrix((n, n), dtype=np.float32), 8, seed=0).shape == (n, 0)

    def test_count_their_products_where_that_is_asked_for(self, capfd):
        quiet = factors_of(behaviour(), N_BLOCKS, seed=0)
        assert not capfd.readouterr().err
        np.testing.assert_array_equal(factors_of(behaviour(), N_BLOCKS, seed=0, progress=True), quiet)
        out, err = capfd.readouterr()
        assert re.search(r"factors: [1-9]\d* products", err)
        assert not out


class TestColdItems:
    def test_lie_where_their_text_alone_lies(self):
        counts = np.where(np.arange(N_ITEMS) % 2, 0.0, 10.0)
        features = features_of(counts=counts)
        tower = tower_for(features)
        vectors, alone = tower.encode(features), tower.encode_texts(features.texts, features.words)
        cold = counts == 0
        np.testing.assert_allclose(vectors[cold], alone[cold], atol=1e-6)
        assert (np.abs(vectors[~cold] - alone[~cold]).max(axis=1) > 1e-2).all()

    @pytest.mark.parametrize("least", [1, 2, 5])
    def test_are_those_with_fewer_interactions_than_the_limit(self, least):
        counts = np.arange(N_ITEMS, dtype=np.float32)
        features = features_of(counts=counts)
        tower = tower_for(features, replace(CONFIG, min_interactions=least))
        same = np.isclose(tower.encode(features), tower.encode_texts(features.texts, features.words), atol=1e-6)
        np.testing.assert_array_equal(same.all(axis=1), counts < least)

    def test_all_are_when_ids_may_add_nothing(self):
        features = features_of()
        tower = tower_for(features)
        with torch.no_grad():
            found = tower(TowerInput.of(features, "cpu"), torch.tensor([5, 2, 5]), residual=False).numpy()
        np.testing.assert_allclose(found, tower.encode_texts(features.texts, features.words)[[5, 2, 5]], atol=1e-6)


def test_items_with_one_text_differ_by_their_behaviour():
    features = replace(features_of(), text_rows=np.zeros(N_ITEMS, dtype=np.int64))
    vectors = tower_for(features).encode(features)
    together, apart = vectors[0] @ vectors[4], vectors[0] @ vectors[1]
    assert together > apart + 0.2
    assert together < 1 - 1e-3
    nobody = replace(features, counts=np.zeros(N_ITEMS, dtype=np.float32))
    alike = tower_for(nobody).encode(nobody)
    np.testing.assert_allclose(alike, np.repeat(alike[:1], N_ITEMS, axis=0), atol=1e-6)


def test_vectors_have_unit_length_and_follow_the_rows_asked():
    features = features_of()
    tower = tower_for(features)
    vectors = tower.encode(features)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    rows = torch.tensor([7, 7, 0, 33])
    with torch.no_grad():
        np.testing.assert_allclose(tower(TowerInput.of(features, "cpu"), rows).numpy(), vectors[rows], atol=1e-6)


def test_dropout_works_in_training_only():
    features = features_of()
    tower = tower_for(features, replace(CONFIG, id_dropout=0.5, word_dropout=0.5)).train()
    given, rows = TowerInput.of(features, "cpu"), torch.arange(N_ITEMS)
    with torch.no_grad():
        assert not torch.equal(tower(given, rows), tower(given, rows))
        tower.eval()
        assert torch.equal(tower(given, rows), tower(given, rows))


def test_what_is_not_known_about_the_text_start_stays_out_of_training():
    tower = tower_for(features_of())
    assert not tower.center.requires_grad
    assert all(weight.requires_grad for name, weight in tower.named_parameters() if name != "center")


def test_of_no_items_are_no_vectors():
    features = features_of()
    tower = tower_for(features)
    assert tower.encode_texts(features.texts[:0], features.words[:0]).shape == (0, CONFIG.dim)


@pytest.mark.parametrize("words", [True, False])
def test_survives_the_disk(tmp_path, words):
    features = features_of(words=words)
    tower = tower_for(features)
    tower.save(tmp_path / "tower")
    state = torch.get_rng_state()
    loaded = ItemTower.load(tmp_path / "tower", device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(path.name for path in (tmp_path / "tower").iterdir()) == ["config.json", "model.safetensors"]
    assert loaded.config == CONFIG
    np.testing.assert_array_equal(loaded.encode(features), tower.encode(features))
    np.testing.assert_array_equal(
        loaded.encode_texts(features.texts, features.words), tower.encode_texts(features.texts, features.words)
    )


def test_what_was_seen_too_seldom_is_forgotten_and_does_not_come_back_with_more_interactions():
    seldom = features_of(counts=np.float32([1.0, *[10.0] * (len(TITLES) - 1)]))
    tower = tower_for(seldom, matrix=behaviour())
    assert tower.has_residual()[0]
    tower.forget(seldom.counts < CONFIG.min_interactions)
    assert tower.has_residual().tolist() == [False, *tower.residuals.weight[1:].any(dim=1).tolist()]
    assert tower.has_residual().any()
    often = features_of(counts=10.0)
    alone = tower.encode_texts(often.texts, often.words)[often.text_rows]
    np.testing.assert_allclose(tower.encode(often)[0], alone[0], atol=1e-6)
