"""Real data sets, from their official address into the user's cache, checked on arrival.

A folder named by the environment variable ``BOOK_DATA`` is looked into first, for machines
without internet and for classrooms that keep one copy. Files from there are checked for structure
(magic number, counts, length, label range), files from the network also by their SHA-256.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lib.core.data.embedded import Split
from lib.core.seeds import child


@dataclass(frozen=True)
class Source:
    """One file: where it comes from, what it must be, and where BOOK_DATA may hold it."""

    url: str
    sha256: str
    local: tuple[str, ...]


_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"


def _mnist(name: str, sha256: str) -> Source:
    return Source(_MNIST + name, sha256, (f"mnist/{name}", name))


SOURCES: dict[str, Source] = {
    "mnist/train-images": _mnist(
        "train-images-idx3-ubyte.gz",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "mnist/train-labels": _mnist(
        "train-labels-idx1-ubyte.gz",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "mnist/test-images": _mnist(
        "t10k-images-idx3-ubyte.gz",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "mnist/test-labels": _mnist(
        "t10k-labels-idx1-ubyte.gz",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    ),
}


class DataError(RuntimeError):
    """A data file is missing, truncated or not what it should be; the message says what to do."""


def load(name: str, split: Literal["official", "test"] = "official") -> Split:
    """``"mnist"`` ("n 1 28 28") or ``"cifar10"`` ("n 3 32 32"), pixels in [0, 1].

    ``split="test"`` takes the official test set alone and cuts it 80/20 into training and test:
    a stand-in where the training file is not at hand. Results on it are not results on the
    official split, and a chapter that uses it says so.

    Raises:
        ValueError: unknown name or split.
        DataError: a file is missing and cannot be downloaded, is truncated, or was altered.
    """
    if split not in ("official", "test"):
        raise ValueError(f"split={split!r}: allowed are 'official' and 'test'")
    if name == "mnist":
        parts = {
            part: (_idx(f"mnist/{part}-images", 3), _idx(f"mnist/{part}-labels", 1))
            for part in (("train", "test") if split == "official" else ("test",))
        }
        parts = {part: (x[:, None], y) for part, (x, y) in parts.items()}
    elif name == "cifar10":
        parts = _cifar10(("test",) if split == "test" else ("train", "test"))
    else:
        raise ValueError(f"name={name!r}: there are 'mnist' and 'cifar10'")
    x_test, y_test = _tensors(*parts["test"], name=name)
    if split == "official":
        return Split(*_tensors(*parts["train"], name=name), x_test, y_test)
    cut = len(x_test) * 4 // 5
    return Split(x_test[:cut], y_test[:cut], x_test[cut:], y_test[cut:])


def fetch(name: str) -> Path:
    """Path of the file (or folder) ``name``: from ``BOOK_DATA``, the cache, or the network.

    Raises:
        ValueError: unknown name.
        DataError: not at hand and the download fails, or its SHA-256 is not the expected one.
    """
    if name not in SOURCES:
        raise ValueError(f"name={name!r}: there are {', '.join(SOURCES)}")
    source = SOURCES[name]
    folder = os.environ.get("BOOK_DATA")
    if folder:
        if not Path(folder).is_dir():
            raise DataError(f"BOOK_DATA={folder} is no folder; unset it or point it at one")
        for relative in source.local:
            if (path := Path(folder) / relative).exists():
                return path
    import pooch

    file_name = source.url.rsplit("/", 1)[1]
    cache = Path(os.environ.get("BOOK_CACHE") or pooch.os_cache("ideas-that-run"))
    try:
        return Path(
            pooch.retrieve(
                source.url,
                f"sha256:{source.sha256}",
                fname=file_name,
                path=cache,
                progressbar=False,
            )
        )
    except ValueError as error:  # pooch: the hash does not match; it has not kept the file
        raise DataError(
            f"{file_name} from {source.url} was altered or truncated: expected SHA-256 "
            f"{source.sha256}. Delete {cache / file_name} if it exists and try again."
        ) from error
    except Exception as error:
        hint = f"or set BOOK_DATA to a folder that holds {' or '.join(source.local)}"
        raise DataError(
            f"{file_name} cannot be downloaded from {source.url}: {error}; {hint}"
        ) from error


def local(*names: str, source: str) -> Path:
    """The first of ``names`` that the folder ``BOOK_DATA`` holds: for files that are not fetched.

    Args:
        source: where a reader gets the file, for the error's message.

    Raises:
        DataError: no such folder, or none of the files in it.
    """
    folder = os.environ.get("BOOK_DATA")
    wanted = " or ".join(names)
    if not folder:
        raise DataError(f"set BOOK_DATA to a folder that holds {wanted} ({source})")
    if not Path(folder).is_dir():
        raise DataError(f"BOOK_DATA={folder} is no folder; unset it or point it at one")
    for name in names:
        if (path := Path(folder) / name).exists():
            return path
    raise DataError(f"BOOK_DATA={folder} does not hold {wanted}; put it there ({source})")


def uci(name: str, seed: int, test: float = 0.1) -> tuple[Split, float]:
    """A regression table of the UCI collection, and the standard deviation of its target.

    Read from ``uci/NAME.csv`` or ``uci/NAME.txt`` in the folder ``BOOK_DATA``: numbers with commas
    or spaces between them, the target last, one line of column names or none. Split at random and
    standardized by its training part; a column that is constant there becomes zero. ``y`` is "n 1".
    The collection has no one format, so nothing is fetched.

    Args:
        seed: of the split.
        test: fraction of the rows that are kept for testing, rounded up.

    Raises:
        ValueError: a fraction that leaves fewer than two rows to train or none to test on.
        DataError: the file is not at hand, or holds anything but numbers.
    """
    files = [f"uci/{name}.csv", f"uci/{name}.txt"]
    path = local(*files, source="tables at https://archive.ics.uci.edu")
    lines = [line.replace(",", " ").split() for line in path.read_text("utf-8").splitlines()]
    rows = [line for line in lines if line]
    try:
        values = np.array(rows[1:] if rows and not _are_numbers(rows[0]) else rows, np.float64)
    except ValueError as error:
        raise DataError(f"{path}: expected numbers, as many in each line ({error})") from error
    if values.ndim != 2 or values.shape[1] < 2 or not np.isfinite(values).all():
        raise DataError(f"{path}: expected finite numbers in two columns or more")
    held = math.ceil(test * len(values)) if 0 < test < 1 else 0
    if not 0 < held <= len(values) - 2:
        raise ValueError(f"test={test} of {len(values)} rows: allowed leaves 1 to test, 2 to train")
    rows = torch.from_numpy(values)[torch.randperm(len(values), generator=child(seed, "uci", name))]
    learn = rows[held:]
    scale = learn.std(0, correction=0)
    rows = ((rows - learn.mean(0)) / torch.where(scale > 0, scale, torch.inf)).float()
    x, y = rows[:, :-1], rows[:, -1:]
    return Split(x[held:], y[held:], x[:held], y[:held]), scale[-1].item()


def _are_numbers(words: list[str]) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True


def _idx(name: str, dims: int) -> np.ndarray:
    """An IDX file of unsigned bytes with ``dims`` axes."""
    path = fetch(name)
    try:
        raw = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
        raise DataError(_broken(path, f"a whole gzip file ({error})")) from error
    header = 4 + 4 * dims
    magic = 0x0800 + dims
    if len(raw) < header or struct.unpack(">I", raw[:4])[0] != magic:
        raise DataError(_broken(path, f"an IDX file with magic number {magic:#06x}"))
    shape = struct.unpack(f">{dims}I", raw[4:header])
    if len(raw) - header != int(np.prod(shape)):
        raise DataError(
            _broken(
                path, f"{np.prod(shape):,} bytes for shape {shape}, found {len(raw) - header:,}"
            )
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


_RECORD = 1 + 3 * 32 * 32  # label, then red, green, blue planes


def _cifar10(parts: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    path = fetch("cifar10")
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    loaded = {}
    for part in parts:
        records = [_cifar_records(path, file) for file in files[part]]
        table = np.concatenate(records)
        loaded[part] = (table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0])
    return loaded


def _cifar_records(path: Path, file: str) -> np.ndarray:
    try:
        if path.is_dir():
            raw = (path / file).read_bytes()
        else:
            with tarfile.open(path) as archive:
                raw = archive.extractfile(f"cifar-10-batches-bin/{file}").read()
    except (OSError, KeyError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(_broken(path / file, f"CIFAR-10's binary layout ({error})")) from error
    if len(raw) != 10_000 * _RECORD:
        expected = f"{10_000 * _RECORD:,} bytes (10,000 records), found {len(raw):,}"
        raise DataError(_broken(path / file, expected))
    return np.frombuffer(raw, np.uint8).reshape(10_000, _RECORD)


def _tensors(x: np.ndarray, y: np.ndarray, name: str) -> tuple[Tensor, Tensor]:
    if len(x) != len(y):
        raise DataError(
            f"{name}: {len(x)} images but {len(y)} labels; the files do not belong together"
        )
    if y.max(initial=0) > 9:
        raise DataError(
            f"{name}: label {y.max()} found, expected 0 to 9; the label file was altered"
        )
    return torch.tensor(x).float() / 255, torch.tensor(y.astype(np.int64))


def _broken(path: Path, expected: str) -> str:
    return f"{path} is truncated or altered: expected {expected}. Delete it and fetch it again."
