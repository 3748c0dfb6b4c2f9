"""Items by texts that nobody has seen before, and stage 1 with some of its sources."""

import pytest

from recsys import Recommender
from recsys.config import config_from_dict
from recsys.errors import InvalidConfig, InvalidData
from recsys.synthetic import Synthetic, generate


@pytest.fixture(scope="module")
def data() -> Synthetic:
    return generate(n_users=60, n_items=80, n_topics=4, events_per_user=12, n_cold_items=4)


@pytest.fixture(scope="module")
def fitted(tiny_bert: str, data: Synthetic) -> Recommender:
    config = config_from_dict(
        {
            "encoder": {"model": tiny_bert, "precision": "fp32"},
            "contrastive": {"encoder_steps": 2, "tower_max_steps": 20},
            "n_interest": 0,
            "device": "cpu",
            "progress": False,
        }
    )
    return Recommender(config).fit(data.interactions, data.items)


class TestSearch:
    def test_finds_the_item_whose_title_it_is_given(self, fitted, data):
        titles = dict(data.items.select("title", "item_id").iter_rows())
        asked = list(titles)[:20]
        found = fitted.search(asked, k=3)
        assert found.columns == ["text", "item_id", "rank", "score"]
        hits = sum(titles[text] == item for text, item, rank, _ in found.iter_rows())
        assert hits >= 10
        assert found["text"].unique(maintain_order=True).to_list() == asked

    def test_counts_repeated_texts_once_and_takes_a_single_one(self, fitted):
        assert fitted.search(["a b", "a b"], k=2).equals(fitted.search("a b", k=2))

    def test_finds_nothing_for_a_blank_text(self, fitted):
        found = fitted.search(["", "  ", "a b"], k=2)
        assert found["text"].unique().to_list() == ["a b"]
        assert fitted.search([" "], k=2).is_empty()

    def test_refuses_what_is_no_text(self, fitted):
        for wrong in (["a", 7], ["a", "\ud800"]):
            with pytest.raises(InvalidData, match=r"strings of valid Unicode\. 1 row.* without lone surrogates"):
                fitted.search(wrong)


class TestSources:
    def test_asked_alone_propose_everything_themselves(self, fitted):
        found = fitted.retrieve(fitted.users.head(5), 10, sources=["vector"])
        assert found["source"].unique().to_list() == ["vector"]

    def test_are_named_where_one_is_unknown(self, fitted):
        with pytest.raises(InvalidConfig, match=r"sources=\['faiss'\]: known are \['vector'"):
            fitted.retrieve(fitted.users.head(1), sources="faiss")
        with pytest.raises(InvalidConfig, match=r"sources=\[\]"):
            fitted.retrieve(fitted.users.head(1), sources=[])

    def test_keep_to_the_allowed_items(self, fitted):
        allowed = fitted.items.head(12)
        found = fitted.retrieve(fitted.users.head(5), 10, sources=["vector"], allow_items=allowed)
        assert found.height > 0
        assert set(found["item_id"]) <= set(allowed)
        denied = fitted.retrieve(fitted.users.head(5), 10, deny_items=allowed)
        assert not set(denied["item_id"]) & set(allowed)
