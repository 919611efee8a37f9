# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/boltzmann: none may score in full."""


# %% boltzmann-ex1: the diagonal alone
def prox_backward(x, g, alpha):
    d = x / ((1 - alpha) * x + alpha)
    return d * g


# %% boltzmann-ex1: softmax's derivative for every step
def prox_backward(x, g, alpha):
    return x * (g - (x * g).sum(-1, keepdim=True))


# %% boltzmann-ex1: weights that do not sum to one
def prox_backward(x, g, alpha):
    d = x / ((1 - alpha) * x + alpha)
    return d * (g - (d * g).sum(-1, keepdim=True))


# %% boltzmann-ex1: alpha and 1 - alpha exchanged
def prox_backward(x, g, alpha):
    d = x / (alpha * x + 1 - alpha)
    return d * (g - (d * g).sum(-1, keepdim=True) / d.sum(-1, keepdim=True))


# %% boltzmann-ex1: over the batch instead of the states
def prox_backward(x, g, alpha):
    d = x / ((1 - alpha) * x + alpha)
    return d * (g - (d * g).sum(0, keepdim=True) / d.sum(0, keepdim=True))


# %% boltzmann-ex2: the factor two forgotten
def extremes(a, c):
    return 1 - abs(a * c), 1 + abs(a * c)


def largest(m):
    return ((1 - m) / 2) ** 0.5


# %% boltzmann-ex2: the sign of the product decides
def extremes(a, c):
    return 1 - 2 * a * c, 1 + 2 * a * c


def largest(m):
    return ((1 - m) / 2) ** 0.5


# %% boltzmann-ex2: eigenvalues of Phi
def extremes(a, c):
    return -2 * abs(a * c), 2 * abs(a * c)


def largest(m):
    return ((1 - m) / 2) ** 0.5


# %% boltzmann-ex2: the entry at the limit, not the norm
def extremes(a, c):
    return 1 - 2 * abs(a * c), 1 + 2 * abs(a * c)


def largest(m):
    return (1 - m) ** 0.5


# %% boltzmann-ex2: the block diagonal is kept
def extremes(a, c):
    return 1.0, 1 + 2 * (a * a + c * c)


def largest(m):
    return ((1 - m) / 2) ** 0.5


# %% boltzmann-ex3: everything settles
def predictions():
    return {"repulsion": (True, True, True), "attraction": (True, True, True)}


# %% boltzmann-ex3: attraction makes it cycle
def predictions():
    return {"repulsion": (True, True, True), "attraction": (False, True, False)}


# %% boltzmann-ex3: forward-backward needs monotone weights to settle
def predictions():
    return {"repulsion": (False, True, True), "attraction": (True, False, False)}


# %% boltzmann-ex3: one answer always
def predictions():
    return {"repulsion": (False, True, True), "attraction": (True, True, True)}


# %% boltzmann-ex3: one machine only
def predictions():
    return {"repulsion": (False, True, True)}
