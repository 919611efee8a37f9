import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.core.data import digits, load, patches, photographs, table, uci
from lib.core.data.real import SOURCES, DataError, Source, fetch, local
from tests.helpers import raises


def test_digits_are_one_permutation():
    a, b = digits(), digits(train=100, test=97)
    assert a.x.shape == (1197, 64) and a.x_test.shape == (600, 64)
    assert torch.equal(a.x[:100], b.x) and torch.equal(a.x_test[-97:], b.x_test)
    assert 0 <= a.x.min() and a.x.max() <= 1
    assert a.y.bincount().min() > 100  # every class is there
    # no test image is a training image
    assert not (a.x_test[:, None] == a.x[None]).all(-1).any()


def test_digits_as_images_and_larger():
    flat, image = digits(10, 10), digits(10, 10, image=True)
    assert torch.equal(image.x.flatten(1), flat.x)
    large = digits(10, 10, image=True, size=16)
    assert large.x.shape == (10, 1, 16, 16)
    assert torch.allclose(large.x.mean((1, 2, 3)), image.x.mean((1, 2, 3)), atol=0.02)


@pytest.mark.parametrize("sizes", [(1198, 600), (0, 10), (10, 0)])
def test_digits_refuse_overlap(sizes):
    with raises(ValueError, match="sum at most 1797"):
        digits(*sizes)


def test_the_caller_cannot_change_the_book_s_copy():
    digits().x.zero_()
    assert digits().x.sum() > 0


# ---- files that look like MNIST's and CIFAR-10's


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, n in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 28, 28))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(rng.integers(0, 10, n)))
    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    return folder


def test_mnist_from_a_local_folder(mnist):
    split = load("mnist")
    assert split.x.shape == (20, 1, 28, 28) and split.x_test.shape == (10, 1, 28, 28)
    assert split.x.max() <= 1 and split.y.dtype == torch.int64
    cut = load("mnist", split="test")
    assert torch.equal(torch.cat([cut.x, cut.x_test]), split.x_test) and len(cut.x) == 8


def test_truncated_and_altered_files_are_never_loaded(mnist):
    file = mnist / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with raises(DataError, match="t10k-images.*truncated or altered.*fetch it again"):
        load("mnist", split="test")
    raw = gzip.decompress(whole)
    file.write_bytes(gzip.compress(raw[:-5]))
    with raises(DataError, match="found 7,835"):
        load("mnist", split="test")
    file.write_bytes(gzip.compress(b"\0\0\x08\x01" + raw[4:]))
    with raises(DataError, match="magic number 0x0803"):
        load("mnist", split="test")
    file.write_bytes(whole)
    labels = mnist / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(idx(np.full(10, 77)))
    with raises(DataError, match="label 77 found, expected 0 to 9"):
        load("mnist", split="test")
    labels.write_bytes(idx(np.zeros(9)))
    with raises(DataError, match="10 images but 9 labels"):
        load("mnist", split="test")


def test_cifar_layout(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    record = np.zeros((10_000, 3073), np.uint8)
    record[:, 0] = np.arange(10_000) % 10
    record[:, 1:1025] = 255  # the red plane
    (folder / "test_batch.bin").write_bytes(record.tobytes())
    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    split = load("cifar10", split="test")
    assert split.x.shape == (8000, 3, 32, 32) and split.y[:3].tolist() == [0, 1, 2]
    assert split.x[0].mean((1, 2)).tolist() == [1, 0, 0]
    (folder / "test_batch.bin").write_bytes(record.tobytes()[:-1])
    with raises(DataError, match="test_batch.bin.*found 30,729,999"):
        load("cifar10", split="test")
    (folder / "test_batch.bin").unlink()
    with raises(DataError, match="test_batch.bin"):
        load("cifar10", split="test")


def test_download_is_checked_by_its_hash(tmp_path, monkeypatch):
    monkeypatch.delenv("BOOK_DATA", raising=False)
    monkeypatch.setenv("BOOK_CACHE", str(tmp_path / "cache"))
    served = tmp_path / "served.bin"
    served.write_bytes(b"the right bytes")
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    server = Server(tmp_path)
    try:
        source = Source(f"{server.url}/served.bin", digest, ("served.bin",))
        monkeypatch.setitem(SOURCES, "toy", source)
        path = fetch("toy")
        assert path.read_bytes() == b"the right bytes" and path.is_relative_to(tmp_path / "cache")
        path.write_bytes(b"cut")
        served.write_bytes(b"something else")
        with raises(DataError, match=f"served.bin.*altered or truncated.*{digest}"):
            fetch("toy")
        missing = Source(f"{server.url}/missing.bin", digest, ("a/missing.bin",))
        monkeypatch.setitem(SOURCES, "missing", missing)
        with raises(DataError, match="cannot be downloaded.*BOOK_DATA.*a/missing.bin"):
            fetch("missing")
    finally:
        server.close()


def test_names_and_folders_are_checked(tmp_path, monkeypatch):
    with raises(ValueError, match="name='imagenet': there are 'mnist' and 'cifar10'"):
        load("imagenet")
    with raises(ValueError, match="split='val'"):
        load("mnist", split="val")
    with raises(ValueError, match="name='nope'"):
        fetch("nope")
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "nowhere"))
    with raises(DataError, match="is no folder"):
        load("mnist")


@pytest.mark.parametrize(
    ("name", "rows", "columns", "classes"),
    [
        ("diabetes", 442, 10, 0),
        ("breast_cancer", 569, 30, 2),
        ("wine", 178, 13, 3),
        ("iris", 150, 4, 3),
    ],
)
def test_tables_are_standardized_by_their_training_part(name, rows, columns, classes):
    split = table(name, 3)
    assert len(split.x_test) == -(-rows // 5)
    assert split.x.shape == (rows - len(split.x_test), columns)
    assert split.x.mean(0).abs().max() < 1e-5
    assert (split.x.std(0, correction=0) - 1).abs().max() < 1e-5
    assert split.x_test.mean(0).abs().max() > 1e-3  # by the training part alone
    if classes:
        assert split.y.unique().tolist() == list(range(classes))
    else:
        assert split.y.dtype == torch.float32
        assert abs(split.y.mean()) < 1e-5
    again, other = table(name, 3), table(name, 4)
    assert torch.equal(split.x, again.x)
    assert not torch.equal(split.x, other.x)


def test_table_errors():
    with raises(ValueError, match="name='boston'"):
        table("boston", 0)
    for test in (0.0, 1.0, 0.999):
        with raises(ValueError, match=f"test={test}"):
            table("iris", 0, test=test)


@pytest.mark.parametrize("header", ["", "a b c target\n"])
@pytest.mark.parametrize(("file", "comma"), [("line.csv", ","), ("line.txt", "  ")])
def test_a_table_of_one_s_own(tmp_path, monkeypatch, header, file, comma):
    (tmp_path / "uci").mkdir()
    rows = [comma.join(map(str, (i, i * i % 7, 5.0, 3 * i + 1))) for i in range(40)]
    (tmp_path / "uci" / file).write_text(header + "\n".join(rows) + "\n\n")
    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    split, scale = uci("line", 0)
    assert split.x.shape == (36, 3) and split.x_test.shape == (4, 3) and split.y.shape == (36, 1)
    assert split.x.mean(0).abs().max() < 1e-5 and (split.x[:, 2] == 0).all()
    # y = 3 x + 1: both columns are the same once standardized, on either side of the split.
    assert torch.allclose(split.x_test[:, :1], split.y_test, atol=1e-5)
    y = torch.cat([split.y, split.y_test])[:, 0] * scale
    assert abs(y.max() - y.min() - 3 * 39) < 1e-3
    assert not torch.equal(uci("line", 1)[0].y, split.y)


def test_what_is_wrong_with_a_table(tmp_path, monkeypatch):
    monkeypatch.delenv("BOOK_DATA", raising=False)
    with raises(DataError, match="set BOOK_DATA to a folder that holds uci/energy.csv or uci"):
        uci("energy", 0)
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "nowhere"))
    with raises(DataError, match="is no folder"):
        local("a", source="b")
    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    with raises(DataError, match=r"does not hold uci/energy.csv or .* \(tables at https"):
        uci("energy", 0)
    (tmp_path / "uci").mkdir()
    path = tmp_path / "uci" / "energy.csv"
    for text in ("1,2\n3,x\n", "1,2\n3\n", "a,b\n", "", "1\n2\n3\n", "1,nan\n2,3\n"):
        path.write_text(text)
        with raises(DataError, match="expected"):
            uci("energy", 0)
    path.write_text("1,2\n3,4\n5,6\n")
    for test in (0.0, 0.9, 1.0):
        with raises(ValueError, match=f"test={test} of 3 rows"):
            uci("energy", 0, test=test)


def test_photographs_and_their_patches(gen):
    images = photographs()
    assert [tuple(image.shape) for image in images] == [(3, 427, 640)] * 2
    assert all(image.min() >= 0 and 0.9 < image.max() <= 1 for image in images)
    images[0].zero_()
    assert photographs()[0].any()  # a copy
    # Pixels that know where they are: every patch is a window, and all places are drawn.
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    grid = torch.stack([rows, columns])
    found = patches([grid, grid + 100], 4, 2000, gen)
    assert found.shape == (2000, 2, 4, 4)
    steps = found - found[:, :, :1, :1]
    assert (steps == grid[:, :4, :4]).all()
    corners = found[:, :, 0, 0].unique(dim=0, return_counts=True)[1]
    assert len(corners) == 2 * 3 * 6 and corners.min() > 25  # expected 56, standard deviation 7.3
    with raises(ValueError, match="size=7"):
        patches([grid], 7, 1, gen)
    with raises(ValueError, match="size=4"):
        patches([], 4, 1, gen)


class Server:
    """Serves a folder on localhost."""

    def __init__(self, folder: Path):
        import functools
        import http.server
        import threading

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
