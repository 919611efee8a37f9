"""Ahead-of-time compilation: a kernel must build for sm_80 and sm_90 on a machine without a GPU."""

from __future__ import annotations

import pytest

from lib.kernels.dispatch import interpreting


def compile_for(kernel, signature: dict, constexprs: dict, arch: int, num_warps: int = 4):
    """Compile a ``@triton.jit`` kernel for ``sm_<arch>`` and return the compiled object.

    ``signature`` maps every argument to its type (``"*fp32"``, ``"i64"``, ``"constexpr"``),
    ``constexprs`` the compile-time ones to their values. The returned object's ``asm["ptx"]``
    holds the code; the caller may look into it (no spills, the instructions it expects).
    """
    triton = pytest.importorskip("triton", reason="pip install triton (Linux only)")
    if interpreting():
        pytest.skip("the interpreter replaces the compiler in this process")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
    assert f".target sm_{arch}" in compiled.asm["ptx"]
    return compiled
