"""The algorithms and GPU kernels behind *Ideas That Run*, one module a paper.

Floors, from the ground up: ``lib.kernels`` (fused GPU operators), ``lib.core`` (data, fitting,
measuring, figures), ``lib.models`` (whatever has weights), and one package for each part of the
book. An import only goes down.
"""
