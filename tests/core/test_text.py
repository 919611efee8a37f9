import pytest
import torch

from lib.core.data.text import Vocabulary, topic_text, topic_words
from tests.helpers import assert_close, raises


def test_vocabulary_round_trip():
    v = Vocabulary(["[MASK]", "it", "was", "great"])
    ids = v.encode("it was [MASK]")
    assert ids.tolist() == [1, 2, 0]
    assert v.decode(ids) == "it was [MASK]"
    assert v.encode(["great"]).tolist() == [3]
    assert len(v) == 4


def test_topic_words_are_distributions(gen):
    d = topic_words(3, 50, gen, sharpness=2.0)
    assert_close(d.sum(1), torch.ones(3), 1e-6)
    flat = topic_words(3, 50, gen, sharpness=0.0)
    assert_close(flat, torch.full((3, 50), 0.02), 1e-6)
    zipf = topic_words(2, 50, gen, sharpness=0.0, zipf=1.0)
    assert_close(zipf[:, 0] / zipf[:, 9], [10.0, 10.0], 1e-5)


def test_topic_text_has_the_topics_frequencies(gen):
    d = topic_words(4, 12, gen)
    topic = torch.tensor([2] * 4000 + [0] * 4000)
    text = topic_text(d, topic, 5, gen)
    assert text.shape == (8000, 5)
    for k, part in ((2, text[:4000]), (0, text[4000:])):
        share = torch.bincount(part.flatten(), minlength=12) / part.numel()
        # 20,000 words: a share's deviation is below 0.0035.
        assert (share - d[k]).abs().max() < 0.015
    mixed = topic_text(d, topic[:4000], 5, gen, other=1.0)
    share = torch.bincount(mixed.flatten(), minlength=12) / mixed.numel()
    assert (share - d.mean(0)).abs().max() < 0.015


def test_words_without_probability_never_occur(gen):
    d = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    text = topic_text(d, torch.zeros(500, dtype=torch.long), 8, gen)
    assert set(text.unique().tolist()) == {1, 3}
    assert topic_text(d, torch.zeros(0, dtype=torch.long), 8, gen).shape == (0, 8)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda g: Vocabulary(["a", "b", "a"]), r"twice: \['a'\]"),
        (lambda g: Vocabulary([]), "at least one"),
        (lambda g: Vocabulary(["a"]).encode("b"), "'b' is none of the 1 words"),
        (lambda g: topic_words(0, 3, g), "topics=0"),
        (lambda g: topic_words(2, 3, g, sharpness=-1.0), "sharpness=-1.0"),
        (lambda g: topic_text(torch.ones(2, 3), torch.tensor([2]), 4, g), "topic: numbers from 0"),
        (lambda g: topic_text(torch.ones(2, 3), torch.tensor([0]), 0, g), "length=0"),
        (lambda g: topic_text(torch.ones(2, 3), torch.tensor([0]), 1, g, other=2.0), "other=2.0"),
    ],
)
def test_errors(make, message, gen):
    with raises(ValueError, match=message):
        make(gen)
