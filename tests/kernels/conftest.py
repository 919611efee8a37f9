"""Tests that execute Triton run natively on CUDA, or under its interpreter in their own process."""

import pytest
import torch

from lib.kernels.dispatch import interpreting


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available() or interpreting():
        return
    skip = pytest.mark.skip(reason="runs under TRITON_INTERPRET=1 (see test_interpreter.py)")
    for item in items:
        if item.get_closest_marker("triton"):
            item.add_marker(skip)


@pytest.fixture
def device():
    """Where Triton runs: the GPU if there is one, otherwise the interpreter's CPU."""
    cuda = torch.cuda.is_available() and not interpreting()
    return torch.device("cuda" if cuda else "cpu")
