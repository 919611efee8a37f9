# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/noprop: none may score in full."""


# %% noprop-ex1: time runs the other way
def step_coefficients(alpha_bar):
    before, after = alpha_bar[1:], alpha_bar[:-1]
    alpha = before / after
    a = after.sqrt() * (1 - alpha) / (1 - before)
    b = alpha.sqrt() * (1 - after) / (1 - before)
    c = (1 - after) * (1 - alpha) / (1 - before)
    return a, b, c


# %% noprop-ex1: no square roots
def step_coefficients(alpha_bar):
    before, after = alpha_bar[:-1], alpha_bar[1:]
    alpha = before / after
    a = after * (1 - alpha) / (1 - before)
    b = alpha * (1 - after) / (1 - before)
    c = (1 - after) * (1 - alpha) / (1 - before)
    return a, b, c


# %% noprop-ex1: the standard deviation in place of the variance
def step_coefficients(alpha_bar):
    before, after = alpha_bar[:-1], alpha_bar[1:]
    alpha = before / after
    a = after.sqrt() * (1 - alpha) / (1 - before)
    b = alpha.sqrt() * (1 - after) / (1 - before)
    c = (1 - after) * (1 - alpha) / (1 - before)
    return a, b, c.sqrt()


# %% noprop-ex1: a and b change places
def step_coefficients(alpha_bar):
    before, after = alpha_bar[:-1], alpha_bar[1:]
    alpha = before / after
    a = after.sqrt() * (1 - alpha) / (1 - before)
    b = alpha.sqrt() * (1 - after) / (1 - before)
    c = (1 - after) * (1 - alpha) / (1 - before)
    return b, a, c


# %% noprop-ex1: the right distribution, and not the reversed process
def step_coefficients(alpha_bar):
    before, after = alpha_bar[:-1], alpha_bar[1:]
    b = 0.5 * ((1 - after) / (1 - before)).sqrt()
    a = after.sqrt() - b * before.sqrt()
    c = (1 - after) - b**2 * (1 - before)
    return a, b, c


# %% noprop-ex2: no square root
def pull(slope, alpha_bar):
    return -0.5 * slope * alpha_bar


# %% noprop-ex2: not halved
def pull(slope, alpha_bar):
    return -slope * alpha_bar**0.5


# %% noprop-ex2: pushes away
def pull(slope, alpha_bar):
    return 0.5 * slope * alpha_bar**0.5


# %% noprop-ex2: the derivative of sqrt(alpha_bar) with the noise held fixed
def pull(slope, alpha_bar):
    return -0.5 * slope * alpha_bar**0.5 * (1 - alpha_bar)


# %% noprop-ex2: only the number
def pull(slope, alpha_bar):
    return 2**0.5


# %% noprop-ex3: the time is needed
def predictions():
    return {"with the image": "clearly lower", "without the image": "near chance"}


# %% noprop-ex3: the noised label gives it away
def predictions():
    return {"with the image": "about the same", "without the image": "about the same"}


# %% noprop-ex3: the label helps a little
def predictions():
    return {"with the image": "about the same", "without the image": "clearly lower"}


# %% noprop-ex3: everything breaks
def predictions():
    return {"with the image": "near chance", "without the image": "near chance"}
