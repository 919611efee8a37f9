import math
import os
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.core.data.graphs import (
    Graph,
    both_ways,
    erdos_renyi,
    knn_graph,
    lattice,
    planetoid,
    ring,
    sbm,
    split_nodes,
)
from lib.core.data.real import DataError
from lib.core.seeds import child
from tests.helpers import assert_close, raises


def simple(edges, n):
    """Both directions, each once, no self-loops."""
    assert (edges[0] != edges[1]).all() and edges.max() < n
    assert torch.equal(torch.unique(edges, dim=1), edges)
    assert torch.equal(torch.unique(edges.flip(0), dim=1), edges)


def test_block_model_has_the_degree_and_homophily_that_were_asked_for():
    g = sbm([500, 300, 700], 10, 0.7, 6, child(0, "sbm"), sep=3.0)
    simple(g.edge_index, g.n)
    s, t = g.edge_index
    # 7,500 edges in expectation: both shares within four standard deviations.
    edges = len(s) / 2
    assert abs(edges - 7500) < 4 * math.sqrt(7500)
    same = (g.y[s] == g.y[t]).double().mean().item()
    assert abs(same - 0.7) < 4 * math.sqrt(0.7 * 0.3 / edges)
    assert g.y.bincount().tolist() == [500, 300, 700] and g.classes == 3
    means = torch.stack([g.x[g.y == c].mean(0) for c in range(3)])
    assert (means.norm(dim=1) - 3).abs().max() < 4 * math.sqrt(6 / 300)
    noise = (g.x - means[g.y]).double()
    assert abs(noise.var() - 1) < 0.06


def test_the_same_generator_gives_the_same_graph():
    a, b = (sbm([30, 30], 4, 0.5, 3, child(1, "g")) for _ in range(2))
    assert torch.equal(a.x, b.x) and torch.equal(a.edge_index, b.edge_index)


@pytest.mark.parametrize("homophily", [0.0, 1.0])
def test_extreme_homophily(homophily):
    g = sbm([40, 40], 6, homophily, 2, child(0, homophily == 1))
    s, t = g.edge_index
    assert ((g.y[s] == g.y[t]) == bool(homophily)).all()


def test_regular_graphs():
    for edges, n, degree in ((ring(7), 7, 2), (lattice(4, 5, periodic=True), 20, 4)):
        simple(edges, n)
        assert (edges[1].bincount(minlength=n) == degree).all()
    # A ring's adjacency has the eigenvalues 2 cos(2 pi k / n).
    A = torch.zeros(7, 7, dtype=torch.float64)
    A[ring(7)[0], ring(7)[1]] = 1
    k = torch.arange(7, dtype=torch.float64)
    expected = (2 * torch.cos(2 * math.pi * k / 7)).sort().values
    assert_close(torch.linalg.eigvalsh(A), expected, 1e-13)
    open_grid = lattice(3, 4)
    simple(open_grid, 12)
    assert open_grid.shape[1] == 2 * (3 * 3 + 2 * 4)


def test_random_and_nearest_neighbor_graphs():
    edges = erdos_renyi(400, 12, child(0, "er"))
    simple(edges, 400)
    assert abs(edges.shape[1] / 400 - 12) < 4 * math.sqrt(2 * 12 / 400)
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert knn_graph(x, 1).T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]


def test_both_ways_drops_loops_and_copies():
    i, j = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 1, 0])
    assert both_ways(i, j).T.tolist() == [[0, 1], [0, 2], [1, 0], [2, 0]]


def test_splits_are_a_partition():
    g = split_nodes(sbm([50, 50], 4, 0.8, 3, child(0, "s")), 0.4, 0.2, child(0, "split"))
    assert (g.train.long() + g.val + g.test == 1).all()
    assert [m.sum().item() for m in (g.train, g.val, g.test)] == [40, 20, 40]
    assert g.to("cpu").y is not None and g.edge_attr is None


def test_errors():
    gen = child(0, "e")
    with raises(ValueError, match="edge_index goes from 0 to 3; nodes are 0 to 2"):
        Graph(torch.zeros(3, 1), torch.tensor([[0], [3]]))
    with raises(ValueError, match="y has 2 entries for 3 nodes"):
        Graph(torch.zeros(3, 1), torch.tensor([[0], [1]]), y=torch.zeros(2).long())
    with raises(ValueError, match=r"homophily=1.5: allowed is 0 to 1"):
        sbm([5, 5], 2, 1.5, 2, gen)
    with raises(ValueError, match="an edge would have probability 2"):
        sbm([5, 5], 8, 1.0, 2, gen)
    with raises(ValueError, match="k=4: allowed is 1 to 3"):
        knn_graph(torch.zeros(4, 1), 4)
    with raises(ValueError, match="train=0.8, val=0.2"):
        split_nodes(Graph(torch.zeros(5, 1), ring(5)), 0.8, 0.2, gen)
    with raises(ValueError, match="there are 'cora' and 'citeseer'"):
        planetoid("pubmed")


# ---- Planetoid: small files of the same layout


class csr_matrix:
    """Pickled as Python 2's scipy did: a class by name and a dictionary of arrays."""

    def __init__(self, dense):
        import scipy.sparse

        m = scipy.sparse.csr_matrix(dense)
        self.__dict__ = {
            "format": "csr", "_shape": m.shape, "data": m.data, "indices": m.indices,
            "indptr": m.indptr, "maxprint": 50,
        }  # fmt: skip


csr_matrix.__module__ = "scipy.sparse.csr"


@pytest.fixture
def citations(tmp_path, monkeypatch):
    """Eight nodes, six words, two topics; node 7 is in no file, nodes 6 and 8 are tested."""
    import sys
    import types

    module = types.ModuleType("scipy.sparse.csr")
    module.csr_matrix = csr_matrix
    monkeypatch.setitem(sys.modules, "scipy.sparse.csr", module)
    x = (np.random.default_rng(0).random((9, 6)) < 0.5).astype(np.float32)
    hot = np.eye(2, dtype=np.int32)[[0, 1, 0, 1, 0, 1, 0, 0, 1]]
    graph = defaultdict(list, {0: [1, 1, 0], 1: [0, 8], 5: [2], 8: [1], 6: [6, 3]})
    files = {
        "x": csr_matrix(x[:2]), "y": hot[:2], "allx": csr_matrix(x[:6]), "ally": hot[:6],
        "tx": csr_matrix(x[[8, 6]]), "ty": hot[[8, 6]], "graph": graph,
    }  # fmt: skip
    for name, value in files.items():
        (tmp_path / f"ind.cora.{name}").write_bytes(pickle.dumps(value, protocol=2))
    (tmp_path / "ind.cora.test.index").write_text("8\n6\n")
    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    return tmp_path, x


def test_planetoid_layout(citations):
    _, x = citations
    g = planetoid("cora")
    x[7] = 0
    assert torch.equal(g.x, torch.tensor(x))
    assert g.y.tolist() == [0, 1, 0, 1, 0, 1, 0, -1, 1]
    assert g.train.nonzero()[:, 0].tolist() == [0, 1]
    assert g.test.nonzero()[:, 0].tolist() == [6, 8] and g.val.sum() == 7
    wanted = {(0, 1), (1, 8), (2, 5), (3, 6)}
    assert {tuple(e) for e in g.edge_index.T.tolist() if e[0] < e[1]} == wanted
    simple(g.edge_index, g.n)


class Attack:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


def test_a_pickle_that_runs_programs_is_refused(citations, capfd):
    folder, _ = citations
    (folder / "ind.cora.ally").write_bytes(pickle.dumps(Attack(), protocol=2))
    with raises(DataError, match=r"ind.cora.ally is truncated or altered.*asks for .*system"):
        planetoid("cora")
    assert "must not run" not in capfd.readouterr().out


def test_truncated_or_foreign_files(citations):
    folder, _ = citations
    whole = (folder / "ind.cora.allx").read_bytes()
    (folder / "ind.cora.allx").write_bytes(whole[: len(whole) // 2])
    with raises(DataError, match=r"ind.cora.allx is truncated or altered"):
        planetoid("cora")
    (folder / "ind.cora.allx").write_bytes(whole)
    (folder / "ind.cora.test.index").write_text("8\n")
    with raises(DataError, match="do not belong together"):
        planetoid("cora")


@pytest.mark.parametrize(
    "name, nodes, edges, words", [("cora", 2708, 5278, 1433), ("citeseer", 3327, 4552, 3703)]
)
def test_the_real_citation_graphs(name, nodes, edges, words):
    folder = os.environ.get("BOOK_DATA", "")
    if not folder or not (Path(folder) / "planetoid" / f"ind.{name}.graph").exists():
        pytest.skip(f"set BOOK_DATA to a folder that holds planetoid/ind.{name}.*")
    g = planetoid(name)
    assert (g.n, g.edge_index.shape[1] // 2, g.x.shape[1]) == (nodes, edges, words)
    assert (g.y[g.train].bincount() == 20).all() and g.test.sum() == 1000 and g.val.sum() == 500
    decoded = Path(folder) / f"{name}.npz"
    if decoded.exists():
        z = np.load(decoded)
        assert (z["labels"] == g.y.numpy()).all()
        x = np.zeros(tuple(z["feature_shape"]), np.float32)
        x[z["feature_rows"], z["feature_cols"]] = z["feature_values"]
        assert (x == g.x.numpy()).all()
        assert torch.equal(torch.unique(torch.tensor(z["edge_index"]), dim=1), g.edge_index)
