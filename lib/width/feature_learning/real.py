"""The paper's data for the full scale: text8 with its analogies, and Omniglot.

The files are not fetched: put them into the folder that the environment variable ``BOOK_DATA``
names. Where to get them: text8 from http://mattmahoney.net/dc/text8.zip, ``questions-words.txt``
from the repository tmikolov/word2vec, ``images_background.zip`` and ``images_evaluation.zip`` from
the repository brendenlake/omniglot (folder ``python``), all on the web and free.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.data.real import DataError, local
from lib.width.feature_learning.word2vec import most_common


def text8(vocab: int = 20_000) -> tuple[list[str], Int[Tensor, "n"]]:
    """The ``vocab`` most frequent words of text8, and the text in their numbers without the rest.

    Reads ``text8`` or ``text8.zip`` (100 MB of lower-case words).

    Raises:
        ValueError: ``vocab`` below 2.
        DataError: no file, or one that is not a text of lower-case words.
    """
    if vocab < 2:
        raise ValueError(f"vocab={vocab}: allowed is 2 or more")
    path = local("text8", "text8.zip", source="http://mattmahoney.net/dc/text8.zip")
    raw = _member(path, "text8") if path.suffix == ".zip" else path.read_bytes()
    if not raw or set(raw[:100_000]) - set(b"abcdefghijklmnopqrstuvwxyz \n"):
        raise DataError(f"{path} is not text8: expected lower-case letters and spaces alone")
    return most_common(raw.decode("ascii", "replace").split(), vocab)


def analogy_questions(words: Sequence[str]) -> Int[Tensor, "q 4"]:
    """Questions of ``questions-words.txt`` with known words only, ordered as ``Relations`` does.

    A line "athens greece baghdad iraq" asks for greece - athens + baghdad = iraq, so the first two
    words change places: the answer to a question is always ``u_1 - u_2 + u_3``.

    Raises:
        DataError: no file, or no question with known words.
    """
    path = local("questions-words.txt", source="the repository tmikolov/word2vec")
    number = {word: i for i, word in enumerate(words)}
    found = []
    for line in path.read_text(encoding="utf-8").lower().splitlines():
        asked = line.split()
        if len(asked) == 4 and asked[0] != ":" and all(word in number for word in asked):
            a, b, c, d = (number[word] for word in asked)
            found.append([b, a, c, d])
    if not found:
        raise DataError(f"{path}: no line of four words that are all among the {len(words)} known")
    return torch.tensor(found)


def omniglot(part: str, size: int = 28) -> Float[Tensor, "classes 20 pixels"]:
    """All characters of ``"background"`` (964) or ``"evaluation"`` (659), 20 drawings of each.

    Reads ``images_<part>.zip`` or the unpacked folder. Ink is 1, paper 0, ``pixels = size^2``;
    classes in the order of alphabet and character.

    Raises:
        ValueError: an unknown part, ``size`` outside 1 to 105.
        DataError: no file, or a character without its 20 drawings.
    """
    if part not in ("background", "evaluation"):
        raise ValueError(f"part={part!r}: allowed are 'background' and 'evaluation'")
    if not 1 <= size <= 105:
        raise ValueError(f"size={size}: allowed are 1 to 105 pixels a side")
    path = local(
        f"images_{part}.zip", f"images_{part}", source="the repository brendenlake/omniglot"
    )
    classes: dict[str, list[np.ndarray]] = {}
    for name, raw in _drawings(path):
        classes.setdefault(name.rpartition("/")[0], []).append(_ink(path, name, raw, size))
    for name, drawings in classes.items():
        if len(drawings) != 20:
            raise DataError(f"{path}: {name} has {len(drawings)} drawings, expected 20")
    if not classes:
        raise DataError(f"{path} holds no drawings; expected <alphabet>/<character>/<drawing>.png")
    stacked = np.stack([np.stack(drawings) for drawings in classes.values()])
    return torch.from_numpy(stacked).flatten(2)


def _drawings(path: Path):
    """Names ``alphabet/character/drawing.png`` in order, and the files' bytes."""
    if path.is_dir():
        for file in sorted(path.rglob("*.png")):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".png") and "__MACOSX" not in name:
                    yield name, archive.read(name)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is not a whole zip file ({error}); get it again") from error


def _ink(path: Path, name: str, raw: bytes, size: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(raw)).convert("L").resize((size, size), Image.BOX)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: {name} is not a whole picture ({error})") from error
    return 1 - np.asarray(image, dtype=np.float32) / 255


def _member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise DataError(f"{path} is not a whole zip file with {name} ({error})") from error


__all__ = ["analogy_questions", "omniglot", "text8"]
