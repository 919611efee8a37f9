"""Small languages with a known law: words, and documents drawn from topics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Vocabulary:
    """Words and their numbers, counted from 0 in the order given.

    Raises:
        ValueError: a word stands there twice, or there is none.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.number = {word: i for i, word in enumerate(self.words)}
        if not self.words or len(self.number) < len(self.words):
            twice = sorted({w for w in self.words if self.words.count(w) > 1})
            raise ValueError(f"words must be different, at least one; twice: {twice}")

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str | Iterable[str]) -> Int[Tensor, "n"]:
        """Numbers of the words of a text (split at white space) or of a list.

        Raises:
            ValueError: a word that is not in the vocabulary.
        """
        words = text.split() if isinstance(text, str) else list(text)
        for word in words:
            if word not in self.number:
                raise ValueError(f"text: {word!r} is none of the {len(self)} words")
        return torch.tensor([self.number[word] for word in words], dtype=torch.long)

    def decode(self, ids: Int[Tensor, "n"] | Sequence[int]) -> str:
        """The words, with spaces between them."""
        return " ".join(self.words[int(i)] for i in ids)


def topic_words(
    topics: int, words: int, gen: torch.Generator, *, sharpness: float = 1.2, zipf: float = 0.0
) -> Float[Tensor, "topics words"]:
    """A distribution over words for every topic: ``softmax(sharpness z - zipf log rank)``.

    ``z`` is standard normal, one number for each topic and word. The larger ``sharpness``, the
    more a word says about its topic. ``zipf`` makes the first words frequent in all topics and
    the last ones rare.

    Raises:
        ValueError: fewer than one topic or word, a negative ``sharpness`` or ``zipf``.
    """
    if topics < 1 or words < 1:
        raise ValueError(f"topics={topics}, words={words}: allowed is 1 or more")
    if sharpness < 0 or zipf < 0:
        raise ValueError(f"sharpness={sharpness}, zipf={zipf}: allowed is 0 or more")
    z = torch.randn(topics, words, generator=gen)
    rank = torch.arange(1, words + 1)
    return (sharpness * z - zipf * rank.log()).softmax(-1)


def topic_text(
    distributions: Float[Tensor, "topics words"],
    topic: Int[Tensor, "n"],
    length: int,
    gen: torch.Generator,
    *,
    other: float = 0.0,
) -> Int[Tensor, "n {length}"]:
    """Documents of ``length`` words, each drawn independently from the document's topic.

    Args:
        topic: number of each document's topic.
        other: share of words that come from a topic drawn anew for each of them.

    Raises:
        ValueError: a topic that is not there, ``length`` below 1, ``other`` outside 0 to 1.
    """
    k = len(distributions)
    if length < 1:
        raise ValueError(f"length={length}: allowed is 1 or more")
    if not 0 <= other <= 1:
        raise ValueError(f"other={other}: allowed is 0 to 1")
    if len(topic) and not 0 <= int(topic.min()) <= int(topic.max()) < k:
        raise ValueError(f"topic: numbers from 0 to {k - 1} are allowed")
    source = topic[:, None].expand(-1, length)
    if other:
        drawn = torch.randint(k, source.shape, generator=gen)
        source = torch.where(torch.rand(source.shape, generator=gen) < other, drawn, source)
    # The inverse of the cumulative distribution: one uniform number a word.
    heights = distributions.double().cumsum(-1)
    u = torch.rand(source.shape, generator=gen, dtype=torch.float64) * heights[source, -1]
    words = torch.empty_like(source)
    for j in range(k):
        mine = source == j
        words[mine] = torch.searchsorted(heights[j], u[mine], right=True)
    return words.clamp_(max=distributions.shape[1] - 1)
