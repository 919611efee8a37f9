"""Fused GPU operators, one file each: Triton kernels, the plain PyTorch reference, a dispatcher."""
