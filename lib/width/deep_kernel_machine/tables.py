"""The paper's regression tables (yacht, boston, energy, concrete), which no library ships."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.core.data.embedded import Split
from lib.core.data.real import DataError
from lib.core.seeds import child


def uci(name: str, seed: int, test: float = 0.1) -> Split:
    """A regression table from the folder that ``BOOK_DATA`` names, standardized, in float64.

    The file is ``uci/NAME.csv`` or ``NAME.csv``: numbers with commas between them, one line of
    column names or none, the target last. Mean and deviation are those of the training part;
    ``y`` is "n 1".

    Args:
        seed: of the split.
        test: fraction of the rows that are kept for testing.

    Raises:
        ValueError: a fraction that leaves fewer than two rows to train or none to test on.
        DataError: the file is missing, or holds anything but numbers.
    """
    folder = os.environ.get("BOOK_DATA", "")
    places = [Path(folder) / "uci" / f"{name}.csv", Path(folder) / f"{name}.csv"]
    path = next((p for p in places if folder and p.is_file()), None)
    if path is None:
        raise DataError(
            f"the table {name!r} is not at hand (BOOK_DATA={folder!r}): set BOOK_DATA to a folder "
            f"that holds uci/{name}.csv, numbers with commas between them and the target in the "
            "last column; the tables are at https://archive.ics.uci.edu"
        )
    lines = path.read_text().splitlines()
    header = bool(lines) and not _is_numbers(lines[0])
    try:
        rows = np.loadtxt(lines[header:], delimiter=",", ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: expected numbers with commas between them ({error})") from error
    values = torch.tensor(rows)
    if len(values) == 0 or values.shape[1] < 2 or not torch.isfinite(values).all():
        raise DataError(
            f"{path}: found shape {tuple(values.shape)}, expected finite numbers in two columns or "
            "more"
        )
    held = round(test * len(values))
    if not 0 < held <= len(values) - 2:
        raise ValueError(f"test={test} of {len(values)} rows: allowed leaves 1 to test, 2 to train")
    values = values[torch.randperm(len(values), generator=child(seed, "uci", name))]
    values = _standardized(values, values[held:])
    x, y = values[:, :-1], values[:, -1:]
    return Split(x[held:], y[held:], x[:held], y[:held])


def _standardized(values: Tensor, reference: Tensor) -> Tensor:
    std = reference.std(0, correction=0)
    return (values - reference.mean(0)) / torch.where(std > 0, std, 1.0)


def _is_numbers(line: str) -> bool:
    try:
        [float(v) for v in line.split(",")]
    except ValueError:
        return False
    return True
