import time
import unicodedata

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.text import clean, history_text, item_texts

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


def items(**columns):
    empty = {"title": "", "description": "", "categories": []}
    rows = len(columns["title"])
    filled = {name: [value] * rows for name, value in empty.items()} | columns
    return pl.DataFrame(filled, schema_overrides={"categories": pl.List(pl.String)})


class TestClean:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", ""),
            ("  a \t\n b  ", "a b"),
            ("a\x00b\x1bc\x85d", "a b c d"),
            ("a\ud800b", "a\ufffdb"),
            ("\udc00", "\ufffd"),
            ("\ud83d\ude00", "😀"),
            ("e\u0301", "é"),
            ("👩‍🚀 Raumfahrt", "👩‍🚀 Raumfahrt"),
            ("שלום עולם", "שלום עולם"),
            ("无线降噪耳机", "无线降噪耳机"),
            ("\u3000全角\u00a0空白\u2028", "全角 空白"),
        ],
    )
    def test_examples(self, text, expected):
        assert clean(text, 100) == expected

    def test_cuts(self):
        assert clean("abcdef", 3) == "abc"
        assert clean("ab cdef", 3) == "ab"

    def test_a_character_that_nfc_makes_longer_is_cut_again(self):
        longer = "\u0958" * 10
        assert len(unicodedata.normalize("NFC", longer)) == 20
        assert len(clean(longer, 10)) == 10

    @given(text=ANY_TEXT, max_chars=st.integers(0, 70))
    def test_is_idempotent_bounded_and_utf8(self, text, max_chars):
        cleaned = clean(text, max_chars)
        assert clean(cleaned, max_chars) == cleaned
        assert len(cleaned) <= max_chars
        assert "\x00" not in cleaned
        cleaned.encode()

    @pytest.mark.parametrize("length", [100_000, 10_000_000])
    def test_a_giant_text_costs_no_more_than_a_short_one(self, length):
        text = "é \x00" * (length // 3)
        before = time.process_time()
        cleaned = clean(text, 400)
        assert time.process_time() - before < 0.02
        assert len(cleaned) <= 400


class TestItemTexts:
    def test_title_brand_categories_description_in_that_order(self):
        frame = items(title=["Skillet"], brand=["Lodge"], categories=[["Kitchen", "Pans"]], description=["Heavy."])
        assert item_texts(frame) == ["Skillet. Lodge. Kitchen > Pans. Heavy."]

    def test_empty_parts_are_left_out(self):
        frame = items(title=["", " \x00 ", "Tent"], brand=["Lodge", None, None], description=["", "Dry", ""])
        assert item_texts(frame) == ["Lodge", "Dry", "Tent"]

    def test_nothing_gives_an_empty_text(self):
        assert item_texts(items(title=[""])) == [""]

    def test_no_items_give_no_texts(self):
        assert item_texts(items(title=["x"]).clear()) == []

    def test_a_brand_need_not_be_a_string(self):
        assert item_texts(items(title=["Tent"], brand=[7])) == ["Tent. 7"]

    def test_two_hundred_characters_of_the_description(self):
        assert item_texts(items(title=["T"], description=["d" * 1000])) == ["T. " + "d" * 200]

    def test_the_text_is_cut(self):
        assert item_texts(items(title=["t" * 100_000], description=["d"]), max_chars=50) == ["t" * 50]

    def test_other_scripts_and_control_characters(self):
        frame = items(title=["无线耳机 🎧", "ساعة\x00ذكية"])
        assert item_texts(frame) == ["无线耳机 🎧", "ساعة ذكية"]

    @given(st.text(max_size=30), st.text(max_size=30), st.sampled_from([3, 20, 400]))
    def test_parts_are_cleaned_and_joined(self, title, description, max_chars):
        parts = [clean(title, max_chars), clean(description, max_chars)]
        expected = ". ".join(part for part in parts if part)[:max_chars].rstrip()
        frame = items(title=[title], description=[description])
        assert item_texts(frame, max_chars=max_chars) == [expected]

    def test_equal_rows_share_one_string(self):
        first, other, again = item_texts(items(title=["Tent", "Stove", "Tent"]))
        assert first is again
        assert other == "Stove"


class TestHistoryText:
    def test_newest_first_without_duplicates(self):
        assert history_text(["c", "a", "c", "b"]) == "c; a; b"

    def test_at_most_max_items_distinct_titles(self):
        assert history_text(["a", "a", "b", "c"], max_items=2) == "a; b"

    def test_empty_titles_do_not_count(self):
        assert history_text(["", "a", "", "b"], max_items=2) == "a; b"

    def test_no_history_is_an_empty_text(self):
        assert history_text([]) == ""

    def test_is_cut_and_clean(self):
        assert history_text(["x" * 100_000, "y"], max_chars=10) == "x" * 10
        assert history_text(["a\x00b", "c\ud800"]) == "a b; c\ufffd"
