# ruff: noqa
"""Wrong answers to the exercises of width/effective_theory: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% effective_theory-ex1: z^2 where z^2 - K belongs
def my_susceptibilities(sigma, slope, C_W, K, mean):
    par = C_W / (2 * K**2) * mean(lambda z: sigma(z) ** 2 * z**2)
    return par, C_W * mean(lambda z: slope(z) ** 2)


# %% effective_theory-ex1: forgets the 2
def my_susceptibilities(sigma, slope, C_W, K, mean):
    par = C_W / K**2 * mean(lambda z: sigma(z) ** 2 * (z**2 - K))
    return par, C_W * mean(lambda z: slope(z) ** 2)


# %% effective_theory-ex1: forgets C_W in the second
def my_susceptibilities(sigma, slope, C_W, K, mean):
    par = C_W / (2 * K**2) * mean(lambda z: sigma(z) ** 2 * (z**2 - K))
    return par, mean(lambda z: slope(z) ** 2)


# %% effective_theory-ex1: the slope's mean, squared
def my_susceptibilities(sigma, slope, C_W, K, mean):
    par = C_W / (2 * K**2) * mean(lambda z: sigma(z) ** 2 * (z**2 - K))
    return par, C_W * mean(slope) ** 2


# %% effective_theory-ex1: one susceptibility for both
def my_susceptibilities(sigma, slope, C_W, K, mean):
    perp = C_W * mean(lambda z: slope(z) ** 2)
    return perp, perp


# %% effective_theory-ex1: the growth of K instead of the slope of its map
def my_susceptibilities(sigma, slope, C_W, K, mean):
    return C_W * mean(lambda z: sigma(z) ** 2) / K, C_W * mean(lambda z: slope(z) ** 2)


# %% effective_theory-ex2: always ReLU's
def my_share(up, down):
    return 5.0


# %% effective_theory-ex2: Gaussian numbers have the fourth moment 1
def my_share(up, down):
    second, fourth = (up**2 + down**2) / 2, (up**4 + down**4) / 2
    return fourth / second**2 - 1


# %% effective_theory-ex2: the mean is not subtracted
def my_share(up, down):
    second, fourth = (up**2 + down**2) / 2, (up**4 + down**4) / 2
    return 3 * fourth / second**2


# %% effective_theory-ex2: the kurtosis
def my_share(up, down):
    second, fourth = (up**2 + down**2) / 2, (up**4 + down**4) / 2
    return 3 * (3 * fourth / second**2 - 1)


# %% effective_theory-ex2: C_W = 2 for all
def my_share(up, down):
    second, fourth = (up**2 + down**2) / 2, (up**4 + down**4) / 2
    return 4 * (3 * fourth - second**2)


# %% effective_theory-ex3: leading order
def my_depth(n, kurtosis):
    return 1 + kurtosis * n / 15


# %% effective_theory-ex3: counts from layer 0
def my_depth(n, kurtosis):
    return math.log(1 + kurtosis / 3) / math.log(1 + 5 / n)


# %% effective_theory-ex3: the linear network's
def my_depth(n, kurtosis):
    return 1 + math.log(1 + kurtosis / 3) / math.log(1 + 2 / n)


# %% effective_theory-ex3: forgets the three
def my_depth(n, kurtosis):
    return 1 + math.log(1 + kurtosis) / math.log(1 + 5 / n)


# %% effective_theory-ex3: this width only
def my_depth(n, kurtosis):
    return 1 + math.log(1 + kurtosis / 3) / math.log(1 + 5 / width)


# %% effective_theory-ex3: rounded
def my_depth(n, kurtosis):
    return round(1 + math.log(1 + kurtosis / 3) / math.log(1 + 5 / n))


# %% effective_theory-ex4: the squared gradient
def my_ratio(C_W, L):
    return (C_W / 2) ** (L - 2)


# %% effective_theory-ex4: counts all layers
def my_ratio(C_W, L):
    return (C_W / 2) ** (L / 2)


# %% effective_theory-ex4: forgets that half of the neurons are off
def my_ratio(C_W, L):
    return C_W ** ((L - 2) / 2)


# %% effective_theory-ex4: the other way up
def my_ratio(C_W, L):
    return (2 / C_W) ** ((L - 2) / 2)


# %% effective_theory-ex4: level, as weight gradients are
def my_ratio(C_W, L):
    return 1.0
