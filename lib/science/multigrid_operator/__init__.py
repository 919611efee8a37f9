"""Multigrid neural operator: linear operators between functions, as learned multigrid cycles.

J. He, X. Liu and J. Xu, "MgNO: Efficient Parameterization of Linear Operators via Multigrid",
ICLR 2024, arXiv 2310.19809.

A layer of a neural operator is ``act(sum_j W_ij u_j + B_ij)`` with bounded linear operators ``W``
between function spaces instead of scalar weights. ``W`` has to be cheap, to reach across the whole
domain, and to know the boundary condition. Here it is one multigrid cycle with learned 3x3 stencils
(``operator``); ``models`` stacks such layers, ``baselines`` holds the networks of the comparison,
``data`` the equations and the training recipe.

Implemented: V-, W- and full multigrid cycles with any number of smoothing steps, restriction of the
right-hand side or of the residual, zero, periodic and Neumann padding, one to three dimensions, the
hand weights that turn W into classical multigrid, the authors' four models, and a baseline for each
of those they compare with. Not implemented: the pipe and airfoil data (a download; the model is
``mgno_dc`` with the coordinates as two input channels), the second and third variant of the
Helmholtz model, and any claim about their tables.
"""

from lib.science.multigrid_operator.baselines import (
    LSM,
    MWT,
    UFNO,
    DilatedResNet,
    ResidualCNN,
)
from lib.science.multigrid_operator.data import (
    Normalizer,
    darcy_coefficients,
    darcy_data,
    helmholtz,
    helmholtz_data,
    navier_stokes_data,
    one_cycle,
)
from lib.science.multigrid_operator.models import (
    MgNO,
    mgno_dc,
    mgno_dc_smooth,
    mgno_helmholtz,
    mgno_ns,
    rollout,
)
from lib.science.multigrid_operator.operator import (
    BACKSLASH,
    MgLinearOperator,
    MgRestrict,
    MgSmoother,
    convergence,
    delta_response,
    levels_for,
    operator_parameters,
    poisson_operator,
    set_poisson_weights,
)

__all__ = [
    "BACKSLASH",
    "LSM",
    "MWT",
    "UFNO",
    "DilatedResNet",
    "MgLinearOperator",
    "MgNO",
    "MgRestrict",
    "MgSmoother",
    "Normalizer",
    "ResidualCNN",
    "convergence",
    "darcy_coefficients",
    "darcy_data",
    "delta_response",
    "helmholtz",
    "helmholtz_data",
    "levels_for",
    "mgno_dc",
    "mgno_dc_smooth",
    "mgno_helmholtz",
    "mgno_ns",
    "navier_stokes_data",
    "one_cycle",
    "operator_parameters",
    "poisson_operator",
    "rollout",
    "set_poisson_weights",
]
