from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexing.augmentation import add_adversarial_gradients, augment
from indexing.encoder import BiEncoder, EncoderConfig


def rng(seed=0):
    return np.random.default_rng(seed)


class TestAugment:
    def test_of_share_zero_changes_nothing(self):
        assert augment(["a  b. c", ""], rng(), 0.0) == ["a  b. c", ""]

    def test_drops_about_the_share_of_the_words_and_keeps_their_order(self):
        words = [f"w{n}" for n in range(2000)]
        kept = augment([" ".join(words)], rng(), 0.3)[0].split()
        assert len(kept) == pytest.approx(1400, abs=100)
        assert kept == sorted(kept, key=words.index)

    def test_drops_whole_fields_but_never_the_title(self):
        texts = augment(["title. brand. kitchen"] * 400, rng(), 0.5)
        assert all(text.startswith("title") for text in texts)
        assert {"title", "title. brand", "title. kitchen", "title. brand. kitchen"} == set(texts)

    def test_drops_single_characters_where_there_are_no_spaces(self):
        texts = augment(["无线ubuntu耳机"] * 200, rng(), 0.4)
        assert {"无线耳机", "无ubuntu机"} <= set(texts)
        assert all("ubuntu" in text or "u" not in text for text in texts)

    @given(st.lists(st.text(max_size=30), max_size=4), st.floats(0, 1))
    def test_leaves_something_of_every_text(self, texts, share):
        thinned = augment(texts, rng(), share)
        assert len(thinned) == len(texts)
        assert [bool(text.strip()) for text in thinned] == [bool(text.strip()) for text in texts]

    def test_repeats_itself(self):
        texts = ["one two three. four five"] * 9
        assert augment(texts, rng(), 0.5) == augment(texts, rng(), 0.5) != augment(texts, rng(1), 0.5)

    def test_refuses_a_share_that_is_none(self):
        with pytest.raises(ValueError, match=r"share=1\.5 must lie in 0\.\.1"):
            augment(["a"], rng(), 1.5)


class TestAdversary:
    @pytest.fixture
    def encoder(self, tiny_bert):
        return BiEncoder(EncoderConfig(model=tiny_bert, max_tokens=16, precision="fp32"), device="cpu")

    @staticmethod
    def loss_of(encoder):
        features = encoder.token_features(["red shoe", "iron pan"])

        def compute():
            vectors = encoder.forward(features)
            return -(vectors[0] @ vectors[1])

        return compute

    def test_raises_the_loss_as_the_pushed_weights_would_and_puts_them_back(self, encoder):
        compute = self.loss_of(encoder)
        plain = compute()
        torch.autograd.backward(plain)
        table = encoder.word_embeddings().weight
        gradient, before = table.grad.clone(), table.detach().clone()
        adversarial = add_adversarial_gradients(encoder, compute, epsilon=0.1)
        assert torch.equal(table, before)
        with torch.no_grad():
            table += 0.1 * gradient / gradient.norm()
        assert float(adversarial) == pytest.approx(float(compute().detach()), abs=1e-6)
        assert float(adversarial) > float(plain.detach())
        assert not adversarial.requires_grad

    def test_adds_to_the_gradients_that_are_there(self, encoder):
        compute = self.loss_of(encoder)
        torch.autograd.backward(compute())
        weights = [weight for weight in encoder.parameters() if weight.grad is not None]
        before = [weight.grad.clone() for weight in weights]
        add_adversarial_gradients(encoder, compute, epsilon=1e-6)
        for weight, gradient in zip(weights, before, strict=True):
            torch.testing.assert_close(weight.grad, 2 * gradient, atol=1e-4, rtol=1e-2)

    def test_refuses_an_epsilon_that_pushes_nowhere(self, encoder):
        with pytest.raises(ValueError, match="epsilon=0 must be positive"):
            add_adversarial_gradients(encoder, self.loss_of(encoder), epsilon=0)

    def test_refuses_embeddings_without_gradient(self, encoder):
        with pytest.raises(RuntimeError, match=r"have no gradient; call loss\.backward\(\) first"):
            add_adversarial_gradients(encoder, self.loss_of(encoder), epsilon=0.1)
