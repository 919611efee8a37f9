"""Shapes and types of every ``lib`` function are checked while the tests run."""

import os
import signal

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the checked functions look it up by its name)

# Before the first import of lib: annotations are checked by beartype at call time.
if os.environ.get("BOOK_TYPECHECK", "1") == "1":
    install_import_hook("lib", "tests.typecheck.checked")

import pytest
import torch

# What a shell starts in the background ignores Ctrl-C, and so would the programs that tests stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fresh_state():
    """Every test starts from the same seed and leaves the defaults as it found them."""
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def gen():
    return torch.Generator().manual_seed(0)
