# ruff: noqa
"""Wrong answers to the exercises of width/singular_optimality: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% singular_optimality-ex1: the exponent in the gap, half the order
def growth_and_order(p):
    growth = p + 2 * (1 - 2 * p) + k * p
    return growth, -math.log(p) / math.log(growth)


# %% singular_optimality-ex1: takes p for A'
def growth_and_order(p):
    growth = p + 2 * (1 - 2 * p) + k * p
    return growth, -4 * math.log(p) / math.log(growth)


# %% singular_optimality-ex1: squares the degrees
def growth_and_order(p):
    growth = p + 4 * (1 - 2 * p) + k * k * p
    return growth, -2 * math.log(p) / math.log(growth)


# %% singular_optimality-ex1: forgets that two degrees share p
def growth_and_order(p):
    growth = p + 2 * (1 - p) + k * p
    return growth, -2 * math.log(p) / math.log(growth)


# %% singular_optimality-ex1: only the growth
def growth_and_order(p):
    return p + 2 * (1 - 2 * p) + k * p


# %% singular_optimality-ex2: carries the correlation, which rounds to 1
def log_psi(gap):
    s = 1 - gap
    log = math.log(s)
    for _ in range(400):
        log += math.log((p + (1 - p) * s * s) / p)
        s = s * (p + (1 - p) * s * s)
    return log


# %% singular_optimality-ex2: does not divide by the factor of a layer
def log_psi(gap):
    log, s = math.log1p(-gap), 1 - gap
    while s > 1e-9:
        log += math.log(p + (1 - p) * s * s)
        gap = gap * ((3 - 2 * p) - 3 * (1 - p) * gap + (1 - p) * gap * gap)
        s = 1 - gap if gap < 0.5 else s * (p + (1 - p) * s * s)
        gap = gap if gap < 0.5 else 1 - s
    return log


# %% singular_optimality-ex2: the asymptote instead of the function
def log_psi(gap):
    return math.log(p) / math.log(3 - 2 * p) * math.log(gap)


# %% singular_optimality-ex2: stops after twenty layers
def log_psi(gap):
    log, s = math.log1p(-gap), 1 - gap
    for _ in range(20):
        log += math.log((p + (1 - p) * s * s) / p)
        gap = gap * ((3 - 2 * p) - 3 * (1 - p) * gap + (1 - p) * gap * gap)
        s = 1 - gap if gap < 0.5 else s * (p + (1 - p) * s * s)
        gap = gap if gap < 0.5 else 1 - s
    return log


# %% singular_optimality-ex2: starts at 0 instead of log s
def log_psi(gap):
    log, s = 0.0, 1 - gap
    while s > 1e-9:
        log += math.log((p + (1 - p) * s * s) / p)
        gap = gap * ((3 - 2 * p) - 3 * (1 - p) * gap + (1 - p) * gap * gap)
        s = 1 - gap if gap < 0.5 else s * (p + (1 - p) * s * s)
        gap = gap if gap < 0.5 else 1 - s
    return log


# %% singular_optimality-ex3: relu as a singular kernel
def predictions():
    kinds = {"square": "1nn", "relu": "singular", "sine": "singular"}
    kinds |= {"z": "linear", "z + c": "ordered"}
    slope, growth = c**2 / math.sinh(c**2), c**2 / math.tanh(c**2)
    return kinds, -2 * math.log(slope) / math.log(growth)


# %% singular_optimality-ex3: the constant makes a majority vote
def predictions():
    kinds = {"square": "1nn", "relu": "majority", "sine": "singular"}
    kinds |= {"z": "linear", "z + c": "majority"}
    slope, growth = c**2 / math.sinh(c**2), c**2 / math.tanh(c**2)
    return kinds, -2 * math.log(slope) / math.log(growth)


# %% singular_optimality-ex3: the sine is not normalized
def predictions():
    kinds = {"square": "1nn", "relu": "majority", "sine": "singular"}
    kinds |= {"z": "linear", "z + c": "ordered"}
    slope = c**2 * math.exp(-(c**2))
    growth = c**2 * (1 + math.exp(-2 * c**2)) / 2
    return kinds, -2 * math.log(slope) / math.log(growth)


# %% singular_optimality-ex3: no order
def predictions():
    kinds = {"square": "1nn", "relu": "majority", "sine": "singular"}
    kinds |= {"z": "linear", "z + c": "ordered"}
    return kinds, None


# %% singular_optimality-ex3: the order for c = 1/2
def predictions():
    kinds = {"square": "1nn", "relu": "majority", "sine": "singular"}
    kinds |= {"z": "linear", "z + c": "ordered"}
    slope, growth = 0.25 / math.sinh(0.25), 0.25 / math.tanh(0.25)
    return kinds, -2 * math.log(slope) / math.log(growth)
