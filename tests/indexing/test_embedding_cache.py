from __future__ import annotations

import numpy as np
import pytest

from indexing.embedding_cache import EmbeddingCache
from indexing.encoder import BiEncoder, EncoderConfig

TEXTS = ["red shoe", "", "无线耳机", "cast iron pan"]


class Embed:
    """Vectors that tell the text, and a record of what was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.append(list(texts))
        return np.array([[len(text), sum(map(ord, text))] for text in texts], dtype=np.float32).reshape(-1, 2)


@pytest.fixture(scope="module")
def encoder(tiny_bert):
    return BiEncoder(EncoderConfig(model=tiny_bert, max_tokens=16, precision="fp32"), device="cpu")


class TestComplete:
    def test_embeds_only_what_is_not_there_and_keeps_the_order(self, tmp_path):
        cache, embed = EmbeddingCache(tmp_path, "abc"), Embed()
        cache.complete(TEXTS[:2], embed)
        vectors = cache.complete(TEXTS[::-1], embed)
        assert embed.asked == [TEXTS[:2], ["cast iron pan", "无线耳机"]]
        np.testing.assert_array_equal(vectors, Embed()(TEXTS[::-1]))
        assert len(cache) == 4

    def test_finds_what_an_earlier_process_wrote(self, tmp_path):
        expected = EmbeddingCache(tmp_path, "abc").complete(TEXTS, Embed())
        embed = Embed()
        np.testing.assert_array_equal(EmbeddingCache(tmp_path, "abc").complete(TEXTS, embed), expected)
        assert embed.asked == []

    def test_of_another_encoder_is_empty(self, tmp_path):
        EmbeddingCache(tmp_path, "abc").complete(TEXTS, Embed())
        assert len(EmbeddingCache(tmp_path, "def")) == 0

    def test_of_nothing_writes_nothing(self, tmp_path):
        assert EmbeddingCache(tmp_path, "abc").complete([], Embed()).shape == (0, 2)
        assert list((tmp_path / "abc").iterdir()) == []

    def test_leaves_plain_parts_and_nothing_else(self, tmp_path):
        cache = EmbeddingCache(tmp_path, "abc")
        cache.complete(TEXTS[:2], Embed())
        cache.complete(TEXTS, Embed())
        names = [path.name for path in (tmp_path / "abc").iterdir()]
        assert len(names) == 2
        assert all(name.startswith("part-") and name.endswith(".parquet") for name in names)


class TestDamage:
    def test_one_flipped_byte_is_named(self, tmp_path):
        EmbeddingCache(tmp_path, "abc").complete(TEXTS, Embed())
        (part,) = (tmp_path / "abc").iterdir()
        data = bytearray(part.read_bytes())
        data[len(data) // 3] ^= 1
        part.write_bytes(data)
        with pytest.raises(RuntimeError, match=rf"{part.name} of the embedding cache is damaged .* delete the file"):
            EmbeddingCache(tmp_path, "abc")

    def test_a_part_removed_meanwhile_is_named(self, tmp_path):
        cache = EmbeddingCache(tmp_path, "abc")
        cache.complete(TEXTS, Embed())
        (part,) = (tmp_path / "abc").iterdir()
        part.unlink()
        with pytest.raises(RuntimeError, match="was removed after it was opened: open it again"):
            cache.complete(TEXTS, Embed())

    def test_refuses_a_fingerprint_that_is_a_path(self, tmp_path):
        with pytest.raises(ValueError, match=r"fingerprint='\.\./x' must consist of letters and digits"):
            EmbeddingCache(tmp_path, "../x")


class TestWithTheEncoder:
    def test_encoding_again_reads_no_text(self, encoder, tmp_path, monkeypatch):
        texts = [*TEXTS, "red shoe", "\ud800"]
        first = encoder.encode(texts, cache=EmbeddingCache(tmp_path, encoder.fingerprint()))
        np.testing.assert_allclose(first, encoder.encode(texts), atol=1e-6)
        again = EmbeddingCache(tmp_path, encoder.fingerprint())
        monkeypatch.setattr(encoder, "_embed", lambda texts, bar: pytest.fail(f"encoded {texts}"))
        assert encoder.encode(texts[::-1], cache=again).tobytes() == first[::-1].tobytes()

    def test_encodes_only_what_is_new(self, encoder, tmp_path, capfd):
        cache = EmbeddingCache(tmp_path, encoder.fingerprint())
        encoder.encode(TEXTS, cache=cache)
        encoder.encode([*TEXTS, "new"], cache=cache, progress=True)
        assert len(cache) == 5
        assert "5/5" in capfd.readouterr().err

    def test_refuses_the_cache_of_another_encoder(self, encoder, tmp_path):
        with pytest.raises(ValueError, match=r"the cache holds vectors of encoder abc, this one is [0-9a-f]{64}"):
            encoder.encode(TEXTS, cache=EmbeddingCache(tmp_path, "abc"))
