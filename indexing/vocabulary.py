"""Teaching an encoder's tokenizer the characters and words of a catalogue that it cannot read.

Owns which tokens are added and where their embeddings start. Does not own what is learnt afterwards (`warm_up`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexing.encoder import BiEncoder
from indexing.lexical import TOKEN, UNSPACED_RUN
from indexing.teacher import Teacher

_NEIGHBOURS = 10  # known words that a new token starts from
_KNOWN_WORDS = 6000  # the vocabulary is ordered by frequency, so these are the common ones
_TEMPERATURE = 0.1


def extend_vocabulary(
    encoder: BiEncoder,
    texts: Sequence[str],
    *,
    max_tokens_added: int = 8192,
    min_count: int = 3,
    teacher: Teacher | None = None,
    seed: int,
) -> int:
    """Add the catalogue's unreadable characters and frequent words to the tokenizer and the embeddings, in place.

    Added are, the most frequent first: characters that are unknown, pairs of neighbouring characters of scripts
    without spaces that hold together like a word, and words that are unknown or fall into three pieces or more.
    A new embedding starts at the mean of all plus a little noise, or, with a teacher that reads both the new tokens
    and the encoder's language, at the mean of the known words nearest to it in meaning.
    Source: Minixhofer et al. 2022, "WECHSEL", eq. 4 (start from nearest known words).

    Args:
        encoder: its tokenizer and weights change, and with them its fingerprint.
        texts: of the catalogue.
        max_tokens_added: upper limit.
        min_count: a token that occurs less often is not added.
        teacher: frozen multilingual encoder, n texts -> (n, any dim) vectors.
        seed: of the noise.

    Returns:
        Tokens added.

    Raises:
        ValueError: a limit is under 1.
        RuntimeError: the tokenizer is not WordPiece.
    """
    if min(max_tokens_added, min_count) < 1:
        raise ValueError(f"max_tokens_added={max_tokens_added} and min_count={min_count} must be at least 1")
    tokenizer: Any = encoder.model.tokenizer
    kind = type(tokenizer.backend_tokenizer.model).__name__
    if kind != "WordPiece":
        raise RuntimeError(
            f"the vocabulary of a {kind} tokenizer cannot be extended, only WordPiece: give a model that reads the "
            "catalogue's language"
        )
    tokens = _new_tokens(tokenizer, texts, max_tokens_added, min_count)
    if tokens:
        start = _start(encoder, tokens, teacher, seed)
        _add(tokenizer, tokens)
        _append(encoder, start)
    return len(tokens)


def _new_tokens(tokenizer: Any, texts: Sequence[str], limit: int, min_count: int) -> list[str]:
    characters, pairs, words = _count(texts)
    pieces = {word: tokenizer.tokenize(word) for word, count in words.items() if count >= min_count}
    unknown = tokenizer.unk_token
    hard = {word: words[word] for word, parts in pieces.items() if unknown in parts or len(parts) >= 3}
    unread = {character: n for character, n in characters.items() if unknown in tokenizer.tokenize(character)}
    first = sorted((item for item in unread.items() if item[1] >= min_count), key=_most_frequent)
    rest = sorted(
        [*((pair, n) for pair, n in _words(pairs, characters).items() if n >= min_count), *hard.items()],
        key=_most_frequent,
    )
    known = tokenizer.get_vocab()  # which may hold a pair, too
    return [token for token, _ in [*first, *rest] if token not in known][:limit]


def _count(texts: Sequence[str]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """How often characters and pairs of unspaced scripts, and words of the others, occur."""
    characters: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for text in texts:
        for run in TOKEN.findall(text.lower()):
            if UNSPACED_RUN.match(run):
                characters.update(run)
                pairs.update(run[i : i + 2] for i in range(len(run) - 1))
            else:
                words[run] += 1
    return characters, pairs, words


def _words(pairs: Counter[str], characters: Counter[str]) -> dict[str, int]:
    """Pairs at least e^3 = 20 times as frequent as chance would have it (pointwise mutual information over 3)."""
    total = max(characters.total(), 1)
    return {
        pair: n for pair, n in pairs.items() if math.log(n * total / (characters[pair[0]] * characters[pair[1]])) > 3
    }


def _most_frequent(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _add(tokenizer: Any, tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken

    # Unspaced scripts are matched in the raw text, because the normaliser puts spaces around their characters.
    unspaced = [UNSPACED_RUN.match(token) is not None for token in tokens]
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=not raw, single_word=not raw)
            for token, raw in zip(tokens, unspaced, strict=True)
        ]
    )


def _start(encoder: BiEncoder, tokens: Sequence[str], teacher: Teacher | None, seed: int) -> Tensor:
    """First embeddings of the new tokens, (n, dim) float32."""
    known = encoder.word_embeddings().weight.detach().float().cpu()
    mean, spread = known.mean(dim=0), known.std(dim=0)
    noise = torch.randn(len(tokens), known.shape[1], generator=torch.Generator().manual_seed(seed))
    centre = mean if teacher is None else _nearest(encoder, known, tokens, teacher)
    return centre + 0.1 * spread * noise


def _nearest(encoder: BiEncoder, known: Tensor, tokens: Sequence[str], teacher: Teacher) -> Tensor:
    """Mean embedding of the known words that the teacher finds nearest to each token, (n, dim)."""
    vocabulary: dict[str, int] = encoder.model.tokenizer.get_vocab()
    common = sorted((row, word) for word, row in vocabulary.items() if word.isalpha() and len(word) > 2)
    common = common[:_KNOWN_WORDS]
    if not common:
        return known.mean(dim=0)
    words = _unit(teacher([word for _, word in common]))
    similarity = _unit(teacher(tokens)) @ words.T  # (n, n_words)
    best = similarity.topk(min(_NEIGHBOURS, len(common)), dim=1)
    weights = torch.softmax(best.values / _TEMPERATURE, dim=1)  # (n, neighbours)
    rows = torch.tensor([row for row, _ in common])[best.indices]
    return (weights[:, :, None] * known[rows]).sum(dim=1)


def _unit(vectors: NDArray[np.float32]) -> Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.asarray(vectors, dtype=np.float32)), dim=1)


def _append(encoder: BiEncoder, rows: Tensor) -> None:
    body: Any = encoder.model[0]
    n_tokens = len(encoder.model.tokenizer)
    with torch.random.fork_rng():  # resizing draws embeddings, which are overwritten
        body.auto_model.resize_token_embeddings(n_tokens, mean_resizing=False)
    table = encoder.word_embeddings()
    with torch.no_grad():
        table.weight[n_tokens - len(rows) :] = rows.to(table.weight)
