# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/dense_hebbian: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% dense_hebbian-ex1: all indices, the spin itself among them
def field_of_order_4(s, eb):
    n = eb.shape[1]
    return (s @ eb.T) ** 3 @ eb / n**3


# %% dense_hebbian-ex1: leaves i out, but the partners may coincide
def field_of_order_4(s, eb):
    n = eb.shape[1]
    Y = s @ eb.T
    h = Y**3 @ eb - 3 * s * (Y**2 @ eb**2) + 3 * Y @ eb**3
    return (h - s * (eb**4).sum(0)) / n**3


# %% dense_hebbian-ex1: different partners, but i is still one of them
def field_of_order_4(s, eb):
    n = eb.shape[1]
    Y, Q, C = s @ eb.T, (eb**2).sum(1), s @ (eb**3).T
    return (Y**3 - 3 * Q * Y + 2 * C) @ eb / n**3


# %% dense_hebbian-ex1: the last term with the wrong factor
def field_of_order_4(s, eb):
    n = eb.shape[1]
    Y, Q, C = s @ eb.T, (eb**2).sum(1), s @ (eb**3).T
    h = (Y**3 - 3 * Q * Y + 2 * C) @ eb - 3 * s * ((Y**2 - Q) @ eb**2)
    return (h + 6 * Y @ eb**3 - 2 * s * (eb**4).sum(0)) / n**3


# %% dense_hebbian-ex1: not divided by N^3
def field_of_order_4(s, eb):
    Y, Q, C = s @ eb.T, (eb**2).sum(1), s @ (eb**3).T
    h = (Y**3 - 3 * Q * Y + 2 * C) @ eb - 3 * s * ((Y**2 - Q) @ eb**2)
    return h + 6 * Y @ eb**3 - 6 * s * (eb**4).sum(0)


# %% dense_hebbian-ex2: the variance, not relative to the signal
def entropy_and_overlap(r, M):
    rho = (1 - r**2) / M
    return rho, math.erf(1 / math.sqrt(2 * rho))


# %% dense_hebbian-ex2: no 2 under the root
def entropy_and_overlap(r, M):
    rho = (1 - r**2) / (M * r**2)
    return rho, math.erf(1 / math.sqrt(rho))


# %% dense_hebbian-ex2: relative to r, not to its square
def entropy_and_overlap(r, M):
    rho = (1 - r**2) / (M * r)
    return rho, math.erf(1 / math.sqrt(2 * rho))


# %% dense_hebbian-ex2: only the entropy
def entropy_and_overlap(r, M):
    return (1 - r**2) / (M * r**2)


# %% dense_hebbian-ex3: no crosstalk
def examples_for_08(r, c, P, teacher):
    return (1 - r**2) / r**2 / bracket


# %% dense_hebbian-ex3: the teacher's factor for both
def examples_for_08(r, c, P, teacher):
    low, high = 1e-9, bracket
    for _ in range(100):
        rho = (low + high) / 2
        low, high = (rho, high) if rho + c * (1 + rho) ** P < bracket else (low, rho)
    return (1 - r**2) / r**2 / rho


# %% dense_hebbian-ex3: to first order in rho
def examples_for_08(r, c, P, teacher):
    a = (1 - r**2) / r**2
    if not teacher:
        b = (1 - r ** (2 * P)) / r ** (2 * P)
        return (a + c * b) / (bracket - c)
    return a * (1 + c * P) / (bracket - c)


# %% dense_hebbian-ex3: the entropy of products in the signal as well
def examples_for_08(r, c, P, teacher):
    a = (1 - r**2) / r**2
    if not teacher:
        b = (1 - r ** (2 * P)) / r ** (2 * P)
        return b * (1 + c) / (bracket - c)
    low, high = 1e-9, bracket
    for _ in range(100):
        rho = (low + high) / 2
        low, high = (rho, high) if rho + c * (1 + rho) ** P < bracket else (low, rho)
    return a / rho
