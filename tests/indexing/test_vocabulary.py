from __future__ import annotations

import numpy as np
import pytest
import torch

from indexing.encoder import BiEncoder, EncoderConfig
from indexing.vocabulary import extend_vocabulary

TEXTS = [
    "鑫焱科技的鑫焱灯 Quasiperiodic",
    "鑫焱科技 quasiperiodic ba",
    "焱火鑫金 quasiperiodic co",
    "ba co di 的",
    "ba co 的",
]


@pytest.fixture
def encoder(tiny_bert):
    return BiEncoder(EncoderConfig(model=tiny_bert, max_tokens=16, precision="fp32"), device="cpu")


def tokens(encoder, text):
    return encoder.model.tokenizer.tokenize(text)


class TestTokens:
    def test_unknown_characters_and_words_become_readable(self, encoder):
        assert encoder.unknown_share(TEXTS) > 0.3
        n_before = len(encoder.model.tokenizer)
        added = extend_vocabulary(encoder, TEXTS, min_count=1, seed=0)
        assert encoder.unknown_share(TEXTS) == 0
        assert added == len(encoder.model.tokenizer) - n_before
        assert tokens(encoder, "ba Quasiperiodic co") == ["ba", "quasiperiodic", "co"]

    def test_what_is_readable_stays_as_it_was(self, encoder):
        before = tokens(encoder, "ba co di 无线")
        extend_vocabulary(encoder, TEXTS, min_count=1, seed=0)
        assert tokens(encoder, "ba co di 无线") == before
        assert "quasiperiodic" not in tokens(encoder, "quasiperiodicity")

    def test_characters_that_belong_together_become_one_token(self, encoder):
        filler = ["".join(chr(0x4E00 + 37 * row + place) for place in range(30)) for row in range(20)]
        extend_vocabulary(encoder, [*filler, *["鑫焱灯", "金鑫焱"] * 5], min_count=3, seed=0)
        assert tokens(encoder, "鑫焱") == ["鑫焱"]
        assert tokens(encoder, "焱鑫") == ["焱", "鑫"]

    def test_at_most_as_many_as_asked_the_most_frequent_first(self, encoder):
        n_before = len(encoder.model.tokenizer)
        assert extend_vocabulary(encoder, TEXTS, max_tokens_added=2, min_count=1, seed=0) == 2
        assert len(encoder.model.tokenizer) == n_before + 2
        assert tokens(encoder, "鑫 焱 火") == ["鑫", "焱", "[UNK]"]

    def test_rare_ones_are_left_out(self, encoder):
        extend_vocabulary(encoder, TEXTS, min_count=3, seed=0)
        assert tokens(encoder, "鑫 灯") == ["鑫", "[UNK]"]

    def test_nothing_to_add_changes_nothing(self, encoder):
        before = encoder.fingerprint()
        assert extend_vocabulary(encoder, ["ba co", "ba"], seed=0) == 0
        assert encoder.fingerprint() == before


class TestEmbeddings:
    def test_known_ones_stay_and_new_ones_start_near_the_mean(self, encoder):
        before = encoder.word_embeddings().weight.detach().clone()
        added = extend_vocabulary(encoder, TEXTS, min_count=1, seed=0)
        after = encoder.word_embeddings().weight.detach()
        assert after.shape == (len(before) + added, 64)
        assert torch.equal(after[: len(before)], before)
        assert (after[len(before) :] - before.mean(dim=0)).abs().max() < before.std()
        assert len(after[len(before) :].unique(dim=0)) == added

    def test_the_same_seed_gives_the_same_encoder_and_leaves_the_random_state(self, tiny_bert):
        prints = []
        for seed in (0, 0, 1):
            encoder = BiEncoder(EncoderConfig(model=tiny_bert, max_tokens=16), device="cpu")
            state = torch.random.get_rng_state()
            extend_vocabulary(encoder, TEXTS, min_count=1, seed=seed)
            assert torch.equal(torch.random.get_rng_state(), state)
            prints.append(encoder.fingerprint())
        assert prints[0] == prints[1] != prints[2]

    def test_a_teacher_starts_a_token_at_the_known_word_of_its_meaning(self, encoder):
        vocabulary = encoder.model.tokenizer.get_vocab()
        words = sorted(word for word in vocabulary if word.isalpha() and len(word) > 2)
        meaning = {word: place for place, word in enumerate(words)}
        meaning["鑫"] = meaning[words[3]]

        def teacher(texts):
            vectors = np.zeros((len(texts), len(words)), dtype=np.float32)
            for row, text in enumerate(texts):
                vectors[row, meaning.get(text, 0)] = 1
            return vectors

        extend_vocabulary(encoder, TEXTS, min_count=1, teacher=teacher, seed=0)
        table = encoder.word_embeddings().weight.detach()
        new = table[encoder.model.tokenizer.convert_tokens_to_ids("鑫")]
        assert (table[: len(vocabulary)] - new).norm(dim=1).argmin() == vocabulary[words[3]]

    def test_survives_save_and_load_and_changes_the_fingerprint(self, encoder, tmp_path):
        before = encoder.fingerprint()
        extend_vocabulary(encoder, TEXTS, min_count=1, seed=0)
        encoder.save(tmp_path)
        loaded = BiEncoder.load(tmp_path, device="cpu")
        assert loaded.fingerprint() == encoder.fingerprint() != before
        assert [tokens(loaded, text) for text in TEXTS] == [tokens(encoder, text) for text in TEXTS]
        assert loaded.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()


class TestRefusals:
    @pytest.mark.parametrize("limits", [{"max_tokens_added": 0}, {"min_count": 0}])
    def test_limits_under_one(self, encoder, limits):
        with pytest.raises(ValueError, match=r"max_tokens_added=.* and min_count=.* must be at least 1"):
            extend_vocabulary(encoder, TEXTS, seed=0, **limits)

    def test_a_tokenizer_of_another_kind(self, encoder):
        from tokenizers import models

        encoder.model.tokenizer.backend_tokenizer.model = models.Unigram([("[UNK]", 0.0)], unk_id=0)
        with pytest.raises(RuntimeError, match="a Unigram tokenizer cannot be extended, only WordPiece"):
            extend_vocabulary(encoder, TEXTS, seed=0)


def test_a_pair_that_is_known_already_is_no_new_token(encoder):
    texts = ["电脑键盘鼠标", "蓝牙耳机", "无线耳机", "电脑耳机", "橙子苹果", "橙子香蕉"] * 5
    extend_vocabulary(encoder, texts, seed=0)
    before = encoder.word_embeddings().weight.detach().clone()
    added = extend_vocabulary(encoder, [*texts, *(["龙虾龙虾", "螃蟹螃蟹"] * 5)], seed=1)
    after = encoder.word_embeddings().weight.detach()
    assert added == len(after) - len(before) > 0
    assert after[: len(before)].equal(before)
