# ruff: noqa
"""Wrong answers to the exercises of width/feature_learning: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% feature_learning-ex1: looks at r alone
def verdict(a, b, c):
    r = min(a[-1] + b[-1], 2 * a[-1] + c) + c - 1
    r += min(2 * v + (l == 0) for l, v in enumerate(a[:-1]))
    if r < -1e-9:
        return "blows up"
    return "learns features" if abs(r) < 1e-9 else "kernel regime"


# %% feature_learning-ex1: forgets that the first layer has few inputs
def verdict(a, b, c):
    equal = lambda u, v: abs(u - v) < 1e-9
    last = a[-1] + b[-1]
    r = min(last, 2 * a[-1] + c) + c - 1 + min(2 * v for v in a[:-1])
    starts = equal(a[0] + b[0], 0) and last > 0.5 - 1e-9
    starts = starts and all(equal(u + v, 0.5) for u, v in zip(a[1:-1], b[1:-1]))
    change = min(last + r, 2 * a[-1] + c) - 1
    if not starts or r < -1e-9 or change < -1e-9:
        return "blows up"
    if change > 1e-9:
        return "output does not move"
    return "learns features" if equal(r, 0) else "kernel regime"


# %% feature_learning-ex1: does not ask how the layers start
def verdict(a, b, c):
    equal = lambda u, v: abs(u - v) < 1e-9
    last = a[-1] + b[-1]
    r = min(last, 2 * a[-1] + c) + c - 1
    r += min(2 * v + (l == 0) for l, v in enumerate(a[:-1]))
    change = min(last + r, 2 * a[-1] + c) - 1
    if r < -1e-9 or change < -1e-9:
        return "blows up"
    if change > 1e-9:
        return "output does not move"
    return "learns features" if equal(r, 0) else "kernel regime"


# %% feature_learning-ex1: only the initial last layer sends gradients back
def verdict(a, b, c):
    equal = lambda u, v: abs(u - v) < 1e-9
    last = a[-1] + b[-1]
    r = last + c - 1 + min(2 * v + (l == 0) for l, v in enumerate(a[:-1]))
    starts = equal(a[0] + b[0], 0) and last > 0.5 - 1e-9
    starts = starts and all(equal(u + v, 0.5) for u, v in zip(a[1:-1], b[1:-1]))
    change = last + r - 1
    if not starts or r < -1e-9 or change < -1e-9:
        return "blows up"
    if change > 1e-9:
        return "output does not move"
    return "learns features" if equal(r, 0) else "kernel regime"


# %% feature_learning-ex1: one answer
def verdict(a, b, c):
    return "kernel regime"


# %% feature_learning-ex2: only the last layer learns
def after_one_step(x, xi, chi, eta, sigma1, sigma2, alpha):
    return -eta * alpha**2 * sigma1**2 * (xi @ x)[:, None] * chi[None]


# %% feature_learning-ex2: alpha once
def after_one_step(x, xi, chi, eta, sigma1, sigma2, alpha):
    return -eta * alpha * (sigma1**2 + sigma2**2) * (xi @ x)[:, None] * chi[None]


# %% feature_learning-ex2: ascends
def after_one_step(x, xi, chi, eta, sigma1, sigma2, alpha):
    return eta * alpha**2 * (sigma1**2 + sigma2**2) * (xi @ x)[:, None] * chi[None]


# %% feature_learning-ex2: the product of the variances
def after_one_step(x, xi, chi, eta, sigma1, sigma2, alpha):
    return -eta * alpha**2 * sigma1**2 * sigma2**2 * (xi @ x)[:, None] * chi[None]


# %% feature_learning-ex3: r itself, not its negative
def slopes():
    return {0.0: 1.0, -0.5: 0.5, -1.0: 0.0}


# %% feature_learning-ex3: the NTK parametrization's
def slopes():
    return {0.0: -0.5, -0.5: -0.5, -1.0: -0.5}


# %% feature_learning-ex3: the rate counts once too often
def slopes():
    return {0.0: -1.0, -0.5: 0.0, -1.0: 1.0}


# %% feature_learning-ex3: nothing moves
def slopes():
    return {0.0: -1.0, -0.5: -1.0, -1.0: -1.0}


# %% feature_learning-ex4: moves the multiplier, keeps the rate
def without_multipliers(a, b, c):
    return b + a, c


# %% feature_learning-ex4: the rate once
def without_multipliers(a, b, c):
    return b + a, c + a


# %% feature_learning-ex4: the wrong direction
def without_multipliers(a, b, c):
    return b - a, c - 2 * a


# %% feature_learning-ex4: changes nothing
def without_multipliers(a, b, c):
    return b, c
