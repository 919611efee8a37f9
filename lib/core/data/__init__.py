"""Data: sets that come with the book (no network) and real ones from their official address."""

from lib.core.data.augment import crop_and_flip
from lib.core.data.embedded import Split, digits, patches, photographs, table
from lib.core.data.real import fetch, load, uci

__all__ = [
    "Split",
    "crop_and_flip",
    "digits",
    "fetch",
    "load",
    "patches",
    "photographs",
    "table",
    "uci",
]
