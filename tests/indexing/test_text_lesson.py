from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from indexing import text_lesson as module
from indexing.contrastive import ContrastiveConfig
from indexing.encoder import BiEncoder, EncoderConfig
from indexing.text_lesson import tune_encoder
from indexing.training_config import TrainingConfig
from indexing.tuning_scope import TuningConfig

# Two words that share no letter sequence belong to each topic: only behaviour tells that they do.
TOPICS = (("ba", "ti"), ("co", "va"), ("di", "we"), ("fu", "zo"))
NUMBERS = ("ra", "so", "nu", "pe", "mi", "lo", "ga")
TEXTS = [f"{word} {number}" for words in TOPICS for word in words for number in NUMBERS]
TOPIC_OF = np.repeat(np.arange(4), 2 * len(NUMBERS))
WORD_OF = np.repeat(np.arange(8), len(NUMBERS))
CONFIG = ContrastiveConfig(encoder_steps=40, encoder_batch_size=16, encoder_learning_rate=2e-3)
FP32 = TrainingConfig(precision="fp32", patience=0)


@pytest.fixture(scope="module")
def start(tiny_bert) -> EncoderConfig:
    return EncoderConfig(model=tiny_bert, max_tokens=16, precision="fp32")


def taken_together(known: np.ndarray | None = None) -> sp.csr_matrix:
    """Texts of one topic, of those that are known."""
    together = (TOPIC_OF[:, None] == TOPIC_OF).astype(np.float32) - np.eye(len(TEXTS), dtype=np.float32)
    if known is not None:
        together *= known[:, None] * known
    return sp.csr_matrix(together)


def tuned(start, config=CONFIG, behaviour=None, **changes) -> tuple[BiEncoder, int]:
    encoder = BiEncoder(start, device="cpu")
    asked = {"tuning": TuningConfig(), "training": FP32, "device": "cpu", "seed": 3, **changes}
    matrix = taken_together() if behaviour is None else behaviour
    return encoder, tune_encoder(encoder, TEXTS, matrix, config, **asked)


def contrast(encoder: BiEncoder, rows: np.ndarray | None = None) -> float:
    """Cosine between texts of one topic that share no first word, less that between topics; of some rows with all."""
    vectors = encoder.encode(TEXTS)
    cosines = vectors @ (vectors - vectors.mean(axis=0)).T
    chosen = np.ones(len(TEXTS), dtype=bool) if rows is None else rows
    related = (TOPIC_OF[:, None] == TOPIC_OF) & (WORD_OF[:, None] != WORD_OF)
    strangers = TOPIC_OF[:, None] != TOPIC_OF
    return float(cosines[chosen][related[chosen]].mean() - cosines[chosen][strangers[chosen]].mean())


class TestTuneEncoder:
    def test_brings_texts_together_that_are_taken_together(self, start):
        encoder, steps = tuned(start)
        assert 0 < steps <= 40
        assert not encoder.model.training
        assert contrast(encoder) > contrast(BiEncoder(start, device="cpu")) + 0.2

    def test_brings_texts_together_that_it_never_saw(self, start):
        known = np.arange(len(TEXTS)) % 5 != 0
        encoder, _ = tuned(start, behaviour=taken_together(known))
        assert contrast(encoder, ~known) > contrast(BiEncoder(start, device="cpu"), ~known) + 0.1

    def test_repeats_its_bits_for_a_seed_and_leaves_the_global_generator_alone(self, start):
        short = replace(CONFIG, encoder_steps=3)
        first, _ = tuned(start, short)
        torch.manual_seed(99)
        before = torch.get_rng_state()
        second, _ = tuned(start, short)
        assert torch.equal(torch.get_rng_state(), before)
        other, _ = tuned(start, short, seed=4)
        assert first.fingerprint() == second.fingerprint() != other.fingerprint()

    @pytest.mark.parametrize("why", ["no steps", "frozen", "nothing together", "too little together"])
    def test_does_nothing_without_steps_scope_or_behaviour(self, start, why):
        changes = {
            "no steps": {"config": replace(CONFIG, encoder_steps=0)},
            "frozen": {"tuning": TuningConfig(scope="frozen")},
            "nothing together": {"behaviour": sp.csr_matrix((len(TEXTS),) * 2, dtype=np.float32)},
            "too little together": {"behaviour": taken_together(np.arange(len(TEXTS)) < module.FEWEST_TEXTS - 1)},
        }[why]
        encoder, steps = tuned(start, **changes)
        assert steps == 0
        assert encoder.fingerprint() == BiEncoder(start, device="cpu").fingerprint()
        assert all(weight.requires_grad for weight in encoder.parameters())

    def test_changes_the_last_blocks_only_where_that_is_asked(self, start):
        encoder, steps = tuned(start, replace(CONFIG, encoder_steps=2), tuning=TuningConfig(scope="last", n_last=1))
        assert steps == 2
        before = dict(BiEncoder(start, device="cpu").model.named_parameters())
        changed = {name for name, weight in encoder.model.named_parameters() if not torch.equal(weight, before[name])}
        assert changed
        assert all("layer.1." in name for name in changed)

    @pytest.mark.parametrize(
        "extra", [{"word_dropout": 0.3}, {"adversarial": 0.5}, {"max_grad_norm": 1e-12}, {"encoder_temperature": 0.5}]
    )
    def test_every_setting_changes_what_is_learnt(self, start, extra):
        short = replace(CONFIG, encoder_steps=3)
        plain, _ = tuned(start, short)
        encoder, steps = tuned(start, replace(short, **extra))
        assert 0 < steps <= 3
        assert encoder.fingerprint() != plain.fingerprint()
        assert np.isfinite(encoder.encode(TEXTS)).all()

    def test_still_learns_with_all_of_them(self, start):
        encoder, _ = tuned(start, replace(CONFIG, encoder_steps=60, word_dropout=0.1, adversarial=0.1))
        assert contrast(encoder) > contrast(BiEncoder(start, device="cpu")) + 0.2

    def test_stops_when_time_is_up(self, start):
        _, steps = tuned(start, replace(CONFIG, encoder_steps=10**4), max_seconds=0.3)
        assert 0 < steps < 10**4

    def test_shows_progress_when_asked(self, start, capfd):
        tuned(start, replace(CONFIG, encoder_steps=2), progress=True)
        captured = capfd.readouterr()
        assert "train text encoder" in captured.err
        assert captured.out == ""


def test_texts_set_aside_are_in_no_step(start, monkeypatch):
    lessons = []
    original = module.train

    def watched(lesson, batches, *arguments, **named):
        lessons.append((lesson, batches))
        return original(lesson, batches, *arguments, **named)

    monkeypatch.setattr(module, "train", watched)
    tuned(start, replace(CONFIG, encoder_steps=2))
    ((lesson, batches),) = lessons
    assert len(lesson.aside) == 2  # a twentieth of 56
    assert not set(lesson.aside) & set(lesson.learnt)
    assert {*lesson.aside, *lesson.learnt} == set(range(len(TEXTS)))
    assert set(np.concatenate(batches)) <= set(lesson.learnt)
    with torch.no_grad():
        assert lesson.validation_loss() > 0


def test_the_projection_starts_where_it_tells_more_of_unseen_texts_than_one_drawn_at_random(start, monkeypatch):
    lessons = []
    monkeypatch.setattr(module, "train", lambda lesson, *_, **__: lessons.append(lesson) or 0)
    tuned(start)
    (lesson,) = lessons
    with torch.no_grad():
        begun = lesson.validation_loss()
        torch.nn.init.normal_(lesson.head, generator=torch.Generator().manual_seed(0))
        assert begun < lesson.validation_loss() - 0.1
