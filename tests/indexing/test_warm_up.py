from __future__ import annotations

import numpy as np
import pytest
import torch

from indexing.encoder import BiEncoder, EncoderConfig
from indexing.warm_up import WarmUpConfig, _distill_loss, _pair_loss, _set_rates, warm_up

TEXTS = ["ba co di", "fu ga lo", "mi nu pe", "ra so ti", "va we zo", "ba ga pe", ""]
PAIRS = [("ba co", "ra so"), ("fu ga", "va we"), ("mi nu", "zo ba"), ("di lo", "ti pe"), ("", "ba"), ("co", "co")]


@pytest.fixture
def encoder(tiny_bert):
    return BiEncoder(EncoderConfig(model=tiny_bert, max_tokens=16, precision="fp32"), device="cpu")


def config(**changes):
    return WarmUpConfig(**{"steps": 25, "batch_size": 4, "learning_rate": 1e-3, **changes})


def teacher(texts):
    """Texts are alike where they share words."""
    words = sorted({word for text in TEXTS for word in text.split()})
    vectors = [[1.0 + text.split().count(word) for word in words] for text in texts]
    return np.array(vectors, dtype=np.float32) - 1


class TestObjectives:
    def test_pairs_bring_the_two_texts_of_an_item_together(self, encoder):
        def hits():
            left, right = (encoder.encode([pair[side] for pair in PAIRS[:4]]) for side in (0, 1))
            return ((left @ right.T).argmax(axis=1) == np.arange(4)).sum()

        before = hits()
        assert warm_up(encoder, TEXTS, config(objective="pairs"), pairs=PAIRS, seed=0) == 25
        assert hits() == 4 > before
        assert not encoder.model.training

    def test_simcse_pushes_texts_apart(self, encoder):
        def alike():
            vectors = encoder.encode(TEXTS[:6])
            return (vectors @ vectors.T)[~np.eye(6, dtype=bool)].mean()

        before = alike()
        warm_up(encoder, TEXTS, config(objective="simcse"), seed=0)
        assert alike() < before - 0.05

    def test_distillation_takes_over_what_the_teacher_finds_alike(self, encoder):
        def correlation():
            own, taught = encoder.encode(TEXTS[:6]), teacher(TEXTS[:6])
            taught /= np.linalg.norm(taught, axis=1, keepdims=True)
            apart = ~np.eye(6, dtype=bool)
            return np.corrcoef((own @ own.T)[apart], (taught @ taught.T)[apart])[0, 1]

        before = correlation()
        warm_up(encoder, TEXTS, config(objective="distill", temperature=0.2, batch_size=6), teacher=teacher, seed=0)
        assert correlation() > max(before, 0.8)

    def test_a_sum_learns_from_both(self, encoder, tiny_bert):
        other = BiEncoder(encoder.config, device="cpu")
        warm_up(encoder, TEXTS, config(objective="pairs+distill", steps=1), pairs=PAIRS, teacher=teacher, seed=0)
        warm_up(other, TEXTS, config(objective="pairs", steps=1), pairs=PAIRS, seed=0)
        assert encoder.fingerprint() != other.fingerprint()

    def test_the_teacher_reads_a_sample_once(self, encoder):
        asked = []

        def recording(texts):
            asked.append(list(texts))
            return teacher(texts)

        warm_up(encoder, TEXTS, config(objective="distill", steps=3, n_teacher_texts=4), teacher=recording, seed=0)
        assert len(asked) == 1
        assert len(set(asked[0]) - {""}) == 4

    @pytest.mark.parametrize(
        ("changes", "texts"),
        [
            ({"objective": "none"}, TEXTS),
            ({"steps": 0}, TEXTS),
            ({"objective": "simcse"}, ["", "one"]),
            ({"objective": "distill"}, [""]),
        ],
    )
    def test_nothing_to_learn_changes_nothing(self, encoder, changes, texts):
        before = encoder.fingerprint()
        assert warm_up(encoder, texts, config(**changes), pairs=PAIRS, teacher=teacher, seed=0) == 0
        assert warm_up(encoder, TEXTS, config(objective="pairs"), pairs=[("a", "a"), ("", "b")], seed=0) == 0
        assert encoder.fingerprint() == before


class TestLosses:
    def test_pair_loss_equals_a_loop(self, encoder):
        left, right = (encoder.encode([pair[side] for pair in PAIRS[:4]]) for side in (0, 1))
        logits = left @ right.T / 0.05
        rows = [np.log(np.exp(logits[i]).sum()) - logits[i, i] for i in range(4)]
        columns = [np.log(np.exp(logits[:, i]).sum()) - logits[i, i] for i in range(4)]
        loss = _pair_loss(encoder, PAIRS[:4], config())
        assert float(loss.detach()) == pytest.approx(np.mean(rows + columns), rel=1e-4)

    def test_distill_loss_equals_a_loop(self, encoder):
        taught = torch.from_numpy(teacher(TEXTS[:4]))
        loss = _distill_loss(encoder, TEXTS[:4], taught, config(), np.random.default_rng(0))
        own, unit = encoder.encode(TEXTS[:4]), torch.nn.functional.normalize(taught, dim=1).numpy()
        expected = []
        for i in range(4):
            others = [j for j in range(4) if j != i]
            target = np.exp(unit[others] @ unit[i] / 0.05)
            logits = own[others] @ own[i] / 0.05
            expected.append(-(target / target.sum() * (logits - np.log(np.exp(logits).sum()))).sum())
        assert float(loss.detach()) == pytest.approx(np.mean(expected), rel=1e-3)


class TestLoop:
    def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state(self, tiny_bert):
        prints = []
        for seed in (0, 0, 1):
            encoder = BiEncoder(EncoderConfig(model=tiny_bert, max_tokens=16), device="cpu")
            state = torch.random.get_rng_state()
            warm_up(encoder, TEXTS, config(objective="simcse", steps=3), seed=seed)
            assert torch.equal(torch.random.get_rng_state(), state)
            prints.append(encoder.fingerprint())
        assert prints[0] == prints[1] != prints[2]

    def test_stops_when_the_time_is_over(self, encoder):
        steps = warm_up(encoder, TEXTS, config(objective="simcse", steps=10**6, max_seconds=0.2), seed=0)
        assert 0 < steps < 10**4

    def test_rates_rise_over_a_tenth_and_fall_to_zero(self):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([{"params": [weight], "peak": 2.0}])
        rates = []
        for spent in (0.0, 0.05, 0.1, 0.55, 1.0):
            _set_rates(optimizer, spent)
            rates.append(optimizer.param_groups[0]["lr"])
        assert rates == pytest.approx([0.2, 1.2, 2.0, 1.0, 0.0])

    def test_word_embeddings_have_their_own_rate(self, encoder):
        before = encoder.word_embeddings().weight.detach().clone()
        changes = {"objective": "simcse", "steps": 2, "learning_rate": 1e-12, "embedding_learning_rate": 1e-2}
        warm_up(encoder, TEXTS, config(**changes), seed=0)
        assert (encoder.word_embeddings().weight.detach() - before).abs().max() > 1e-3

    def test_shows_a_bar(self, encoder, capfd):
        warm_up(encoder, TEXTS, config(objective="simcse", steps=2), seed=0, progress=True)
        assert "2/2" in capfd.readouterr().err


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"objective": "mlm"}, "objective='mlm' is unknown"),
            ({"steps": -1}, "steps=-1 must be 0 or more"),
            ({"batch_size": 1}, "batch_size and n_teacher_texts must be at least 2"),
            ({"temperature": 0.0}, "learning rates, temperature and max_grad_norm must be positive"),
            ({"max_seconds": 0.0}, r"max_seconds=0\.0 must be positive"),
        ],
    )
    def test_values_out_of_range(self, change, message):
        with pytest.raises(ValueError, match=message):
            WarmUpConfig(**change)

    def test_pairs_and_teachers_that_are_missing(self, encoder):
        with pytest.raises(ValueError, match="objective='pairs' needs pairs of texts"):
            warm_up(encoder, TEXTS, config(objective="pairs"), seed=0)
        with pytest.raises(ValueError, match="objective='distill' needs a teacher"):
            warm_up(encoder, TEXTS, config(objective="distill"), seed=0)
