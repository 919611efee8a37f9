"""The one comparison the tests use, and how they look at error messages."""

import contextlib

import jaxtyping
import pytest

from lib.core.stats import relative_error


def assert_close(a, b, tol: float = 1e-6, what: str = "values") -> None:
    """``||a - b|| <= tol * ||b||`` over all entries; NaN and infinity never pass."""
    error = relative_error(a, b)
    assert error <= tol, f"{what}: relative error {error:.3g}, allowed {tol:.3g}"


@contextlib.contextmanager
def raises(error: type[Exception], match: str | None = None):
    """``pytest.raises`` as a reader of the library meets it: without the tests' type checks.

    While the tests run, every annotation of ``lib`` is checked and a wrong argument ends there.
    Outside the tests nothing does that, so the library's own message has to say what is wrong.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(error, match=match) as info:
            yield info
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
