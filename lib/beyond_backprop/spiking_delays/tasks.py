"""Spikes in order, drawn by the book; readers for the paper's three sets of spoken words."""

from __future__ import annotations

import gzip
import itertools
import os
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor

from lib.core.data.real import DataError


def order_task(
    n: int,
    gen: torch.Generator,
    *,
    order: torch.Generator | None = None,
    neurons: int = 5,
    classes: int = 8,
    gap: int = 5,
    jitter: float = 0.7,
    shift: int = 3,
) -> tuple[Float[Tensor, "n i t"], Int[Tensor, "n"]]:
    """Every input neuron fires once, ``gap`` bins apart, in an order that is the class.

    No rate and no single neuron tells anything: classes differ in *when* alone. Each spike is moved
    by a rounded normal ``jitter`` and each sample by 0 to ``shift`` bins.

    Args:
        order: draws the classes' permutations; the same generator state gives the same classes.

    Raises:
        ValueError: more classes than permutations, or a number out of range.
    """
    every = list(itertools.permutations(range(neurons))) if 1 <= neurons <= 8 else []
    if not 1 <= classes <= len(every):
        raise ValueError(
            f"classes={classes}, neurons={neurons}: allowed are 1 to 8 neurons and at most one "
            f"class for each of their {len(every)} orders"
        )
    if n < 0:
        raise ValueError(f"n={n}: allowed is 0 or more samples")
    if gap < 1 or shift < 0 or not jitter >= 0:
        raise ValueError(
            f"gap={gap}, shift={shift}, jitter={jitter}: allowed are 1 and more, 0 and more, 0 and "
            "more"
        )
    chosen = torch.randperm(len(every), generator=order or gen)[:classes]
    place = torch.tensor(every)[chosen]  # the position of each neuron in each class's order
    y = torch.randint(classes, (n,), generator=gen)
    margin = round(3 * jitter)
    noise = (jitter * torch.randn(n, neurons, generator=gen)).round().long()
    start = torch.randint(shift + 1, (n, 1), generator=gen)
    at = gap * place[y] + noise.clamp(-margin, margin) + start + margin
    x = torch.zeros(n, neurons, gap * (neurons - 1) + shift + 2 * margin + 1)
    return x.scatter_(2, at[..., None], 1.0), y


def aligned(
    x: Float[Tensor, "i t"], delays: Int[Tensor, "i"], right: int
) -> Float[Tensor, "i t_out"]:
    """One neuron's input spikes at the times at which they arrive, after their delays.

    Raises:
        ValueError: not one delay for each input, or one outside 0 to the output's length.
    """
    if delays.shape != x.shape[:1]:
        raise ValueError(f"delays: shape {tuple(delays.shape)}; allowed is ({len(x)},)")
    if right < 0:
        raise ValueError(f"right={right}: allowed is 0 or more steps")
    if delays.numel() and not 0 <= delays.min() <= delays.max() <= x.shape[1] + right:
        raise ValueError(
            f"delays: {int(delays.min())} to {int(delays.max())}; allowed is 0 to "
            f"{x.shape[1] + right}"
        )
    out = x.new_zeros(len(x), x.shape[1] + right)
    for i, d in enumerate(delays.tolist()):
        out[i, d : d + x.shape[1]] = x[i, : out.shape[1] - d]
    return out


# --------------------------------------------------------------------------- spoken words


@dataclass
class Events:
    """Recordings as binned spikes: counts ``"n channels steps"`` in bytes, and their labels."""

    x: UInt8[Tensor, "n c t"]
    y: Int[Tensor, "n"]


def bin_events(
    times: Num[np.ndarray, "k"],
    units: Num[np.ndarray, "k"],
    *,
    step: float = 0.01,
    channels: int = 700,
    merge: int = 5,
    steps: int | None = None,
) -> UInt8[Tensor, "c t"]:
    """Spike counts of one recording: times in seconds into bins of ``step``, ``merge`` neighboring
    channels into one (700 by 5 to 140). Counts above 255 stay there.

    Raises:
        ValueError: times and units of different length, a channel out of range, negative times.
    """
    if len(times) != len(units):
        raise ValueError(f"{len(times)} times and {len(units)} units; one of each for every spike")
    if not step > 0 or not 1 <= merge <= channels or (steps is not None and steps < 1):
        raise ValueError(
            f"step={step}, merge={merge}, steps={steps}: allowed are a positive number of seconds, "
            f"1 to {channels} channels, and 1 or more bins (or None)"
        )
    t = np.floor(np.asarray(times, np.float64) / step + 1e-9).astype(np.int64)
    u = np.asarray(units, np.int64)
    if len(u) and not (0 <= u.min() and u.max() < channels):
        raise ValueError(f"units: {u.min()} to {u.max()}; allowed is 0 to {channels - 1}")
    if len(t) and t.min() < 0:
        raise ValueError(f"times: the smallest is {np.min(times)} s; allowed is 0 and more")
    rows = channels // merge
    length = steps if steps is not None else int(t.max()) + 1 if len(t) else 1
    keep = (t < length) & (u // merge < rows)
    flat = np.bincount((u[keep] // merge) * length + t[keep], minlength=rows * length)
    return torch.from_numpy(flat.clip(max=255).astype(np.uint8).reshape(rows, length))


def load_spikes(
    name: Literal["shd", "ssc"],
    split: Literal["train", "valid", "test"] = "train",
    *,
    steps: int = 126,
    step: float = 0.01,
    merge: int = 5,
    limit: int | None = None,
) -> Events:
    """The Heidelberg spiking digits, or the spiking speech commands, from the folder ``BOOK_DATA``.

    Files ``shd_train.h5`` (or ``.h5.gz``) and their like, from https://zenkelab.org/datasets. They
    are read one recording at a time. Needs ``h5py``.

    Raises:
        ValueError: unknown name or split.
        DataError: the file is not there.
    """
    if name not in ("shd", "ssc"):
        raise ValueError(f"name={name!r}: allowed are 'shd' and 'ssc'")
    allowed = ("train", "test") if name == "shd" else ("train", "valid", "test")
    if split not in allowed:
        raise ValueError(f"split={split!r}: {name} has {', '.join(map(repr, allowed))}")
    path = _local(name, f"{name}_{split}.h5", "https://zenkelab.org/datasets")
    import h5py

    opened = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
    with opened as raw, h5py.File(raw, "r") as file:
        labels = torch.from_numpy(np.asarray(file["labels"])[:limit].astype(np.int64))
        times, units = file["spikes"]["times"], file["spikes"]["units"]
        frames = [
            bin_events(times[k], units[k], step=step, merge=merge, steps=steps)
            for k in range(len(labels))
        ]
    return Events(torch.stack(frames), labels)


def mel_frames(
    sound: Float[Tensor, "samples"],
    rate: int = 8000,
    *,
    mels: int = 140,
    window: int = 256,
    hop: int = 80,
    low: float = 50.0,
    high: float = 14000.0,
) -> Float[Tensor, "mels t"]:
    """Mel power spectrogram in decibels, at most 80 below its peak: real currents for the first
    layer instead of spikes, one column for every 10 ms. ``high`` is cut at half the rate.
    """
    high = min(high, rate / 2)
    if not 0 <= low < high:
        raise ValueError(f"low={low}: allowed is 0 up to the highest frequency, {high:g} Hz")
    spectrum = torch.stft(sound, window, hop, window=torch.hann_window(window), return_complex=True)
    to_mel = lambda f: 2595 * np.log10(1 + np.asarray(f) / 700)
    edges = 700 * (10 ** (np.linspace(to_mel(low), to_mel(high), mels + 2) / 2595) - 1)
    f = np.linspace(0, rate / 2, window // 2 + 1)
    up = (f - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - f) / np.diff(edges)[1:, None]
    bank = torch.from_numpy(np.minimum(up, down).clip(0).astype(np.float32))
    power = 10 * torch.log10((bank @ spectrum.abs().square()).clamp_min(1e-10))
    return torch.maximum(power, power.max() - 80)


def load_gsc(
    split: Literal["train", "valid", "test"] = "train", limit: int | None = None
) -> tuple[Float[Tensor, "n mels t"], Int[Tensor, "n"]]:
    """Google's speech commands (version 2, 35 words) as mel spectrograms, from ``BOOK_DATA``.

    The folder ``speech_commands`` must hold the unpacked archive ``speech_commands_v0.02.tar.gz``
    (https://download.tensorflow.org/data). Sounds are one second at 16 kHz, of which every other
    sample is kept after averaging neighbors.

    Raises:
        ValueError: unknown split.
        DataError: the folder is not there.
    """
    if split not in ("train", "valid", "test"):
        raise ValueError(f"split={split!r}: allowed are 'train', 'valid' and 'test'")
    root = _local("gsc", "speech_commands", "https://download.tensorflow.org/data")
    lists = {
        part: set((root / f"{name}_list.txt").read_text().split())
        for part, name in (("valid", "validation"), ("test", "testing"))
    }
    files = sorted(p for p in root.glob("*/*.wav") if p.parent.name != "_background_noise_")
    words = sorted({p.parent.name for p in files})
    inside = lambda p: f"{p.parent.name}/{p.name}"
    if split == "train":
        chosen = [p for p in files if not any(inside(p) in names for names in lists.values())]
    else:
        chosen = [p for p in files if inside(p) in lists[split]]
    chosen = chosen[:limit]
    frames = [mel_frames(sound) for sound in map(_second, chosen)]
    return torch.stack(frames), torch.tensor([words.index(p.parent.name) for p in chosen])


def _second(path: Path) -> Tensor:
    with wave.open(str(path)) as file:
        raw = np.frombuffer(file.readframes(16000), np.int16)
    sound = torch.zeros(16000)
    sound[: len(raw)] = torch.from_numpy(raw.astype(np.float32) / 2**15)
    return sound.view(-1, 2).mean(1)


def _local(name: str, file: str, origin: str) -> Path:
    folder = os.environ.get("BOOK_DATA")
    for path in _places(folder, name, file) if folder else ():
        if path.exists():
            return path
    raise DataError(
        f"{file} is not at hand: fetch it from {origin} and set BOOK_DATA to a folder that holds "
        f"{name}/{file} or {file}" + (f" (BOOK_DATA is {folder})" if folder else "")
    )


def _places(folder: str, name: str, file: str) -> Iterator[Path]:
    for place in (Path(folder) / name / file, Path(folder) / file):
        yield place
        yield place.with_name(place.name + ".gz")
