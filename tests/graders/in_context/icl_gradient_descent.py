# ruff: noqa
"""Wrong answers to the exercises of in_context/icl_gradient_descent: none may score in full."""


# %% icl_gradient_descent-ex1: the wrong sign
def values_and_projection(d, eta, n):
    W_V = torch.zeros(d + 1, d + 1)
    W_V[d, d] = 1.0
    return W_V, eta / n * torch.eye(d + 1)


# %% icl_gradient_descent-ex1: without 1/n
def values_and_projection(d, eta, n):
    W_V = torch.zeros(d + 1, d + 1)
    W_V[d, d] = -1.0
    return W_V, eta * torch.eye(d + 1)


# %% icl_gradient_descent-ex1: changes x, too
def values_and_projection(d, eta, n):
    return -torch.eye(d + 1), eta / n * torch.eye(d + 1)


# %% icl_gradient_descent-ex1: reads the first input as y
def values_and_projection(d, eta, n):
    W_V = torch.zeros(d + 1, d + 1)
    W_V[0, 0] = -1.0
    return W_V, eta / n * torch.eye(d + 1)


# %% icl_gradient_descent-ex2: forgets 1/N
def follow_the_sign():
    return -2.0, -7.0, -8.0, 8.0 / 2


# %% icl_gradient_descent-ex2: the prediction with the entry's sign
def follow_the_sign():
    return 1.0, -1.0, -2.0, -2.0


# %% icl_gradient_descent-ex2: the context stays
def follow_the_sign():
    return 2.0, 1.0, -2.0, 2.0


# %% icl_gradient_descent-ex2: the prediction only
def follow_the_sign():
    return 2.0


# %% icl_gradient_descent-ex3: the other way round
def gain(steps):
    return icl.tune_gd(steps, spectrum).mse / icl.tune_gd(steps, spectrum, gdpp=True).mse


def no_gain_at():
    return 1


# %% icl_gradient_descent-ex3: the difference
def gain(steps):
    return icl.tune_gd(steps, spectrum, gdpp=True).mse - icl.tune_gd(steps, spectrum).mse


def no_gain_at():
    return 1


# %% icl_gradient_descent-ex3: more steps for one than for the other
def gain(steps):
    return icl.tune_gd(steps, spectrum, gdpp=True).mse / icl.tune_gd(1, spectrum).mse


def no_gain_at():
    return 1


# %% icl_gradient_descent-ex3: numbers learned by heart
def gain(steps):
    return {1: 1.0, 2: 0.706}.get(steps, 0.7)


def no_gain_at():
    return 1


# %% icl_gradient_descent-ex3: says two steps
def gain(steps):
    return icl.tune_gd(steps, spectrum, gdpp=True).mse / icl.tune_gd(steps, spectrum).mse


def no_gain_at():
    return 2


# %% icl_gradient_descent-ex4: alpha not squared
def best_rate(d, n, alpha=1.0):
    c = 1 / 9 + (1 / 5 + (d - 1) / 9 - 1 / 9) / n
    return 1 / (3 * c * alpha)


# %% icl_gradient_descent-ex4: infinitely many examples
def best_rate(d, n, alpha=1.0):
    return 3 / alpha**2


# %% icl_gradient_descent-ex4: typed for one case
def best_rate(d, n, alpha=1.0):
    return 1.515


# %% icl_gradient_descent-ex4: the fourth moment of a Gaussian
def best_rate(d, n, alpha=1.0):
    c = 1 / 9 + (3 / 9 + (d - 1) / 9 - 1 / 9) / n
    return 1 / (3 * c * alpha**2)
