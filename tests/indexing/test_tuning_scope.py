from __future__ import annotations

import sys

import pytest
import torch

from indexing.encoder import BiEncoder, EncoderConfig
from indexing.tuning_scope import TuningConfig, with_scope

TEXTS = ["red shoe", "iron pan"]


@pytest.fixture
def encoder(tiny_bert):
    return BiEncoder(EncoderConfig(model=tiny_bert, max_tokens=16, precision="fp32"), device="cpu")


def weights(encoder):
    return {name: weight.detach().clone() for name, weight in encoder.model.state_dict().items()}


def train(encoder, tuning, steps=3):
    optimizer = torch.optim.AdamW(tuning.parameters, lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        vectors = encoder.forward(encoder.token_features(TEXTS))
        torch.autograd.backward(vectors[0] @ vectors[1])
        optimizer.step()
        tuning.after_step(step)


def changed(encoder, before):
    return {name for name, weight in encoder.model.state_dict().items() if not torch.equal(weight, before[name])}


class TestScopes:
    def test_full_trains_every_weight(self, encoder):
        with with_scope(encoder, TuningConfig(scope="full"), steps=3, seed=0) as tuning:
            assert len(tuning.parameters) == len(list(encoder.parameters()))

    def test_last_trains_the_last_blocks_only(self, encoder):
        before = weights(encoder)
        with with_scope(encoder, TuningConfig(scope="last", n_last=1), steps=3, seed=0) as tuning:
            train(encoder, tuning)
        names = changed(encoder, before)
        assert names
        assert all(".layer.1." in name for name in names)

    def test_frozen_trains_nothing(self, encoder):
        with with_scope(encoder, TuningConfig(scope="frozen"), steps=3, seed=0) as tuning:
            assert tuning.parameters == []

    @pytest.mark.parametrize(("scope", "steps"), [("lora", 3), ("adalora", 30)])
    def test_adapters_are_merged_into_plain_weights(self, encoder, scope, steps, tmp_path):
        pytest.importorskip("peft")
        before = weights(encoder)
        with with_scope(encoder, TuningConfig(scope=scope, rank=2), steps=steps, seed=0) as tuning:
            n_trained = sum(weight.numel() for weight in tuning.parameters)
            train(encoder, tuning, steps)
            trained = encoder.encode(TEXTS)
        assert n_trained < 0.05 * sum(weight.numel() for weight in before.values())
        assert set(encoder.model.state_dict()) == set(before)
        names = changed(encoder, before)
        assert names
        assert all("query.weight" in name or "value.weight" in name for name in names)
        assert abs(encoder.encode(TEXTS) - trained).max() < 1e-5
        assert all(weight.requires_grad for weight in encoder.parameters())
        encoder.save(tmp_path)
        assert BiEncoder.load(tmp_path, device="cpu").fingerprint() == encoder.fingerprint()

    def test_adapters_depend_on_the_seed_alone(self, encoder):
        pytest.importorskip("peft")
        state = torch.random.get_rng_state()
        starts = []
        for seed in (0, 0, 1):
            with with_scope(encoder, TuningConfig(scope="lora"), steps=3, seed=seed) as tuning:
                starts.append(torch.cat([weight.detach().flatten() for weight in tuning.parameters]))
        assert torch.equal(starts[0], starts[1])
        assert not torch.equal(starts[0], starts[2])
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_an_error_leaves_an_ordinary_encoder(self, encoder):
        pytest.importorskip("peft")
        before = encoder.fingerprint()
        with (
            pytest.raises(KeyboardInterrupt),
            with_scope(encoder, TuningConfig(scope="lora"), steps=3, seed=0),
        ):
            raise KeyboardInterrupt
        assert encoder.fingerprint() == before


class TestAuto:
    @pytest.mark.parametrize(
        ("device", "seconds", "scope"),
        [("cpu", None, "full"), ("cpu", 600, "full"), ("cpu", 30, "last"), ("cuda", 30, "full")],
    )
    def test_is_decided_by_device_and_time(self, device, seconds, scope):
        assert TuningConfig().scope_on(device, seconds) == scope
        assert TuningConfig(scope="lora").scope_on(device, seconds) == "lora"

    def test_says_what_it_decided(self, encoder):
        with with_scope(encoder, TuningConfig(), steps=3, seed=0, seconds=10) as tuning:
            assert tuning.scope == "last"


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"scope": "all"}, "scope='all' is unknown"),
            ({"n_last": 0}, "n_last, rank and alpha must be at least 1"),
            ({"rank": 0}, "n_last, rank and alpha must be at least 1"),
        ],
    )
    def test_values_out_of_range(self, change, message):
        with pytest.raises(ValueError, match=message):
            TuningConfig(**change)

    def test_more_blocks_than_there_are(self, encoder):
        config = TuningConfig(scope="last", n_last=3)
        with (
            pytest.raises(ValueError, match="n_last=3 is over the 2 blocks"),
            with_scope(encoder, config, steps=3, seed=0),
        ):
            pass

    def test_too_few_steps_for_adalora(self, encoder):
        pytest.importorskip("peft")
        config = TuningConfig(scope="adalora")
        with pytest.raises(ValueError, match="steps=9 is under 10"), with_scope(encoder, config, steps=9, seed=0):
            pass

    def test_names_the_extra_where_peft_is_missing(self, encoder, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        config = TuningConfig(scope="lora")
        with pytest.raises(ImportError, match=r"recsys-twostage\[lora\]"), with_scope(encoder, config, steps=3, seed=0):
            pass
