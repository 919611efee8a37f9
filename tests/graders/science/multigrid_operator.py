# ruff: noqa
"""Wrong answers to the exercises of science/multigrid_operator: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% multigrid_operator-ex1: R without the factor of h^2
@torch.no_grad()
def set_weights(W, omega=2 / 3):
    three = lambda a, b, c: torch.tensor([[[a, b, c]]], dtype=torch.float64)
    for s in [s for level in (*W.down, *W.post) for s in level]:
        s.S.weight.copy_(three(0, omega / 2, 0))
        if s.A is not None:
            s.A.weight.copy_(three(-1, 2, -1))
    for r, p in zip(W.restrict, W.prolong):
        r.A.weight.copy_(three(-1, 2, -1))
        r.R.weight.copy_(three(0.25, 0.5, 0.25))
        r.Pi.weight.zero_()
        p.weight.copy_(three(0.5, 1, 0.5))


# %% multigrid_operator-ex1: S not divided by the diagonal
@torch.no_grad()
def set_weights(W, omega=2 / 3):
    three = lambda a, b, c: torch.tensor([[[a, b, c]]], dtype=torch.float64)
    for s in [s for level in (*W.down, *W.post) for s in level]:
        s.S.weight.copy_(three(0, omega, 0))
        if s.A is not None:
            s.A.weight.copy_(three(-1, 2, -1))
    for r, p in zip(W.restrict, W.prolong):
        r.A.weight.copy_(three(-1, 2, -1))
        r.R.weight.copy_(three(1, 2, 1))
        r.Pi.weight.zero_()
        p.weight.copy_(three(0.5, 1, 0.5))


# %% multigrid_operator-ex1: Pi left as it was
@torch.no_grad()
def set_weights(W, omega=2 / 3):
    three = lambda a, b, c: torch.tensor([[[a, b, c]]], dtype=torch.float64)
    for s in [s for level in (*W.down, *W.post) for s in level]:
        s.S.weight.copy_(three(0, omega / 2, 0))
        if s.A is not None:
            s.A.weight.copy_(three(-1, 2, -1))
    for r, p in zip(W.restrict, W.prolong):
        r.A.weight.copy_(three(-1, 2, -1))
        r.R.weight.copy_(three(1, 2, 1))
        p.weight.copy_(three(0.5, 1, 0.5))


# %% multigrid_operator-ex1: the residual's A forgotten
@torch.no_grad()
def set_weights(W, omega=2 / 3):
    three = lambda a, b, c: torch.tensor([[[a, b, c]]], dtype=torch.float64)
    for s in [s for level in (*W.down, *W.post) for s in level]:
        s.S.weight.copy_(three(0, omega / 2, 0))
        if s.A is not None:
            s.A.weight.copy_(three(-1, 2, -1))
    for r, p in zip(W.restrict, W.prolong):
        r.R.weight.copy_(three(1, 2, 1))
        r.Pi.weight.zero_()
        p.weight.copy_(three(0.5, 1, 0.5))


# %% multigrid_operator-ex2: counts an A before the first step
def parameters_of_W(c, J):
    return 9 * c * c * 2 * J + 34 * c * c * (J - 1)


# %% multigrid_operator-ex2: forgets Pi
def parameters_of_W(c, J):
    return 9 * c * c * (2 * J - 1) + 25 * c * c * (J - 1)


# %% multigrid_operator-ex2: a 3x3 kernel on the way up
def parameters_of_W(c, J):
    return 9 * c * c * (2 * J - 1) + 27 * c * c * (J - 1)


# %% multigrid_operator-ex2: one set of weights for all levels
def parameters_of_W(c, J):
    return 9 * c * c + 34 * c * c * (J - 1)


# %% multigrid_operator-ex3: h = 1 / N
def steps_to_a_tenth(N, omega=0.8):
    factor = 1 - omega * (1 - math.cos(math.pi / N))
    return math.ceil(math.log(0.1) / math.log(factor))


# %% multigrid_operator-ex3: omega forgotten
def steps_to_a_tenth(N, omega=0.8):
    factor = math.cos(math.pi / (N + 1))
    return math.ceil(math.log(0.1) / math.log(factor))


# %% multigrid_operator-ex3: rounds down
def steps_to_a_tenth(N, omega=0.8):
    factor = 1 - omega * (1 - math.cos(math.pi / (N + 1)))
    return math.floor(math.log(0.1) / math.log(factor))


# %% multigrid_operator-ex4: zero padding
def periodic_up(u, weight):
    return F.conv_transpose2d(u, weight, stride=2, padding=1)


# %% multigrid_operator-ex4: extended on one side only
def periodic_up(u, weight):
    wide = F.pad(u, (1, 0, 1, 0), mode="circular")
    return F.conv_transpose2d(wide, weight, stride=2, padding=2)


# %% multigrid_operator-ex4: not cut
def periodic_up(u, weight):
    wide = F.pad(u, (1, 1, 1, 1), mode="circular")
    return F.conv_transpose2d(wide, weight, stride=2, padding=1)


# %% multigrid_operator-ex4: cut on the wrong side
def periodic_up(u, weight):
    wide = F.pad(u, (1, 1, 1, 1), mode="circular")
    return F.conv_transpose2d(wide, weight, stride=2, padding=1)[..., 4:, 4:]
