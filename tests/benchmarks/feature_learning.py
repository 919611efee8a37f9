"""muP training beside the authors' package, compressed beside full width, analogies beside gensim.

``python -m tests.benchmarks.feature_learning``; ratios above 1 mean that the other side takes
longer. Results are compared before anything is timed. Packages: ``tests/peers``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lib.core.seeds import child
from lib.models.mlp import MLP
from lib.width import feature_learning as fl
from tests.benchmarks._timing import compare


def regress(net, x, y, steps: int = 20):
    """Outputs after SGD, one sample a step."""
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for i in range(steps):
        opt.zero_grad()
        (0.5 * (net(x[i]) - y[i]).square().sum()).backward()
        opt.step()
    return net(x).detach()


def compression(n: int, d: int = 150) -> dict:
    """Training a wide linear network inside its d + o dimensions; the QR step is included."""
    gen = child(0, "bench")
    x = torch.randn(40, d, generator=gen, dtype=torch.float64) / d**0.5
    y = x @ torch.randn(d, 10, generator=gen, dtype=torch.float64)
    net = fl.Linear1LP.random(d, 10, n, gen=gen).double()
    fresh = lambda: fl.Linear1LP(net.U.detach(), net.V.detach())
    return compare(
        f"40 SGD steps of a linear network of width {n}, d = {d}, o = 10",
        "the same at full width",
        lambda: regress(fresh().compressed(), x, y, 40),
        lambda: regress(fresh(), x, y, 40),
        1e-8,
    )


def deep_limit(n: int) -> dict:
    """The exact limit of a network with two hidden layers, beside a wide network near it."""
    gen = child(0, "deep")
    x = torch.randn(20, 10, generator=gen, dtype=torch.float64) / 10**0.5
    y = x @ torch.randn(10, 3, generator=gen, dtype=torch.float64)
    wide = fl.DeepLinear.random(10, 3, n, 2, gen=gen, dtype=torch.float64)
    return compare(
        "20 SGD steps of the deep limit, tree of 20 letters built in the time",
        f"a network of width {n}, within 10 % of it",
        lambda: regress(fl.InfLinear(10, 3, 2, 20, dtype=torch.float64), x, y),
        lambda: regress(fl.DeepLinear([w.detach() for w in wide.weights]), x, y),
        0.1,
    )


def compaction(samples: int = 100, steps: int = 60) -> dict:
    """Outputs of the NTK limit after many steps on a pool, terms merged and not."""
    gen = child(0, "pool")
    pool = torch.randn(samples, 50, generator=gen, dtype=torch.float64)
    nets = [fl.InfKernel1LP("ntk", 50, 5, dtype=torch.float64) for _ in range(2)]
    for step in range(steps):
        at = torch.randint(samples, (40,), generator=child(1, step))
        delta = torch.randn(40, 5, generator=child(2, step), dtype=torch.float64)
        for net in nets:
            net.descend(pool[at], delta, 0.01)
    nets[0].compact()
    return compare(
        f"NTK limit at {samples} points, {len(nets[0])} terms",
        f"the same with {len(nets[1])} terms",
        lambda: nets[0](pool),
        lambda: nets[1](pool),
        1e-8,
    )


def training_step(n: int = 512, base: int = 64) -> dict | None:
    try:
        import mup

        from tests.peers import test_feature_learning as peers
    except ImportError:
        return None
    peers.N, peers.BASE = n, base
    gen = child(0, "mup")
    ours = fl.mup_init_(MLP((6, n, n, 3)), base, gen=gen).double()
    peer = peers.with_mup(mup, ours)
    x = torch.randn(64, 6, generator=gen).double()
    y = torch.randint(3, (64,), generator=gen)

    def step(net, opt):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
        return net(x).detach()

    optimizers = fl.mup_optimizer(ours, base, 0.1), mup.MuSGD(peer.parameters(), lr=0.1)
    return compare(
        f"one SGD step in muP, width {n}",
        "mup",
        lambda: step(ours, optimizers[0]),
        lambda: step(peer, optimizers[1]),
        1e-9,
    )


def analogies(words: int = 2000, n: int = 100) -> dict | None:
    try:
        from gensim.models import KeyedVectors
    except ImportError:
        return None
    world = fl.Relations(bases=words // 10, attributes=10)
    gen = child(0, "words")
    vectors, questions = torch.randn(words, n, generator=gen), world.questions(200, gen)
    peer = KeyedVectors(n)
    peer.add_vectors(list(range(words)), vectors.numpy())

    def theirs():
        found = []
        for a, b, c, _ in questions.tolist():
            found.append(peer.most_similar(positive=[a, c], negative=[b], topn=1)[0][0])
        return torch.tensor(found)

    ours = lambda: fl.analogy_answers(vectors, questions)
    return compare(f"200 analogies among {words} words", "gensim", ours, theirs, 0.0)


def main() -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    rows = [compression(1024), compression(8192), deep_limit(2048), compaction()]
    rows += [training_step(), analogies()]
    return [row for row in rows if row]


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
