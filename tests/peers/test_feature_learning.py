"""The authors' package ``mup`` trains the same networks; gensim answers the same analogies.

pip install --no-deps mup
pip install gensim
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.core.seeds import child
from lib.models.mlp import MLP
from lib.width import feature_learning as fl
from tests.helpers import assert_close

BASE, N = 16, 64


def with_mup(mup, ours):
    """The same network in the peer's way: it divides in the readout and not in its weights."""

    def build(n):
        layers = [nn.Linear(6, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU()]
        return nn.Sequential(*layers, mup.MuReadout(n, 3)).double()

    peer = build(N)
    mup.set_base_shapes(peer, build(BASE), delta=build(BASE * 2))
    with torch.no_grad():
        for k, layer in zip((0, 2, 4), ours.layers):
            peer[k].weight.copy_(layer.weight * (N / BASE if k == 4 else 1))
            peer[k].bias.copy_(layer.bias)
    return peer


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_mup_optimizer_trains_as_the_authors_package_does(kind):
    mup = pytest.importorskip("mup", reason="see the top of this file")
    gen = child(0, "peer")
    ours = fl.mup_init_(MLP((6, N, N, 3)), BASE, gen=gen).double()
    for layer in ours.layers:
        layer.bias.data = 0.1 * torch.randn(layer.bias.shape, generator=gen).double()
    peer = with_mup(mup, ours)
    x = torch.randn(30, 6, generator=gen).double()
    y = torch.randint(3, (30,), generator=gen)
    assert_close(ours(x), peer(x), 1e-12)
    # Adam divides by the gradient plus eps, and the two gradients of the readout differ in scale.
    settings = {"eps": 1e-30} if kind == "adam" else {}
    lr = 0.2 if kind == "sgd" else 0.01
    make = mup.MuSGD if kind == "sgd" else mup.MuAdam
    optimizers = (
        fl.mup_optimizer(ours, BASE, lr, kind, **settings),
        make(peer.parameters(), lr=lr, **settings),
    )
    before = ours(x).detach()
    for _ in range(5):
        for net, opt in zip((ours, peer), optimizers):
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()
    assert (ours(x) - before).abs().max() > 0.1
    assert_close(ours(x), peer(x), 1e-9)


def test_analogies_are_gensim_s():
    models = pytest.importorskip("gensim.models", reason="see the top of this file")
    world, gen = fl.Relations(bases=6, attributes=4), child(1, "peer")
    vectors = torch.randn(world.targets, 12, generator=gen)
    words = [world.word(i) for i in range(world.targets)]
    peer = models.KeyedVectors(12)
    peer.add_vectors(words, vectors.numpy())
    questions = world.questions(60, gen)
    for question, answer in zip(questions, fl.analogy_answers(vectors, questions)):
        a, b, c = (words[int(i)] for i in question[:3])
        found = peer.most_similar(positive=[a, c], negative=[b], topn=1)[0][0]
        assert found == words[int(answer)]


def test_huffman_codes_are_as_long_as_gensim_s():
    models = pytest.importorskip("gensim.models", reason="see the top of this file")
    counts = [1000, 600, 350, 210, 120, 70, 40, 23, 13, 7, 4, 2]
    words = [f"w{i}" for i in range(len(counts))]
    peer = models.Word2Vec(vector_size=4, hs=1, negative=0, min_count=1)
    peer.build_vocab_from_freq(dict(zip(words, counts)))
    theirs = [len(peer.wv.get_vecattr(w, "code")) for w in words]
    ours = (fl.huffman(torch.tensor(counts)).nodes >= 0).sum(1).tolist()
    assert ours == theirs


def test_cbow_with_a_tree_trains_as_gensim_does():
    """One pass over a text, a window a step. The peer's sigmoid is a table, hence 5 %."""
    models = pytest.importorskip("gensim.models", reason="see the top of this file")
    vocab, window, lr = 12, 2, 0.5
    number = torch.randint(vocab, (200,), generator=child(0, "text")).tolist()
    text = [f"w{i}" for i in number]
    settings = {"vector_size": 8, "window": window, "hs": 1, "negative": 0, "min_count": 1}
    settings |= {"sample": 0, "shrink_windows": False, "workers": 1, "seed": 1}
    peer = models.Word2Vec(alpha=lr, min_alpha=lr, sg=0, cbow_mean=1, **settings)
    peer.build_vocab([text])
    depth = max(len(peer.wv.get_vecattr(w, "code")) for w in peer.wv.index_to_key)
    nodes, turns = torch.full((vocab, depth), -1), torch.zeros(vocab, depth, dtype=torch.long)
    for k, word in enumerate(peer.wv.index_to_key):
        code, path = (peer.wv.get_vecattr(word, name) for name in ("code", "point"))
        nodes[k, : len(code)] = torch.tensor(path[: len(code)].astype("int64"))
        turns[k, : len(code)] = torch.tensor(code.astype("int64"))
    tree = fl.Tree(nodes, turns)
    net = fl.CBOW(vocab, 8, outputs=vocab - 1)
    net.U.data = 4 * torch.tensor(peer.wv.vectors)
    peer.wv.vectors *= 4  # larger steps
    net.V.data = torch.tensor(peer.syn1[: vocab - 1])
    start = net.U.detach().clone()
    peer.train([text], total_examples=1, epochs=1)
    ids = torch.tensor([peer.wv.key_to_index[w] for w in text])
    opt = torch.optim.SGD(net.parameters(), lr=lr)
    for i in range(len(ids)):
        context = torch.cat([ids[max(0, i - window) : i], ids[i + 1 : i + 1 + window]])
        opt.zero_grad()
        fl.hierarchical_loss(net, context[None], ids[i : i + 1], tree).backward()
        net.U.grad *= len(context)  # the peer, like the first code, leaves the mean out here
        opt.step()
    assert (net.U - start).norm() > 0.3 * start.norm()
    assert_close(net.U - start, torch.tensor(peer.wv.vectors) - start, 0.05)
    assert_close(net.V, torch.tensor(peer.syn1[: vocab - 1]), 0.05)


def test_negative_table_is_gensim_s():
    models = pytest.importorskip("gensim.models", reason="see the top of this file")
    counts = [500, 300, 100, 40, 5]
    peer = models.Word2Vec(vector_size=4, hs=0, negative=5, min_count=1)
    peer.build_vocab_from_freq({f"w{i}": c for i, c in enumerate(counts)})
    # The peer stores cumulative whole numbers out of 2^31 - 1.
    table = torch.tensor(peer.cum_table.astype("float64")) / peer.cum_table[-1]
    ours = fl.unigram_table(torch.tensor(counts)).double().cumsum(0)
    assert_close(ours, table, 1e-6)
