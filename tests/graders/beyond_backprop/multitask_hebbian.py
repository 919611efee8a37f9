# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/multitask_hebbian: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% multitask_hebbian-ex1: all columns alike
def overlaps(K, d, beta):
    columns = np.array(list(itertools.product((-1, 0, 1), repeat=K)), dtype=float)
    m = np.array([d**k * (1 - d) for k in range(K)])
    p = np.full(len(columns), 3.0**-K)
    for _ in range(500):
        m = (p * np.tanh(beta * columns @ m)) @ columns
    return m


# %% multitask_hebbian-ex1: each sign with probability 1 - d
def overlaps(K, d, beta):
    columns = np.array(list(itertools.product((-1, 0, 1), repeat=K)), dtype=float)
    m = np.array([d**k * (1 - d) for k in range(K)])
    p = np.where(columns == 0, d, 1 - d).prod(1)
    for _ in range(500):
        m = (p * np.tanh(beta * columns @ m)) @ columns
    return m


# %% multitask_hebbian-ex1: zero temperature always
def overlaps(K, d, beta):
    columns = np.array(list(itertools.product((-1, 0, 1), repeat=K)), dtype=float)
    m = np.array([d**k * (1 - d) for k in range(K)])
    p = np.where(columns == 0, d, (1 - d) / 2).prod(1)
    for _ in range(500):
        m = (p * np.sign(columns @ m)) @ columns
    return m


# %% multitask_hebbian-ex1: a single step
def overlaps(K, d, beta):
    columns = np.array(list(itertools.product((-1, 0, 1), repeat=K)), dtype=float)
    m = np.array([d**k * (1 - d) for k in range(K)])
    p = np.where(columns == 0, d, (1 - d) / 2).prod(1)
    return (p * np.tanh(beta * columns @ m)) @ columns


# %% multitask_hebbian-ex1: temperature for its inverse
def overlaps(K, d, beta):
    columns = np.array(list(itertools.product((-1, 0, 1), repeat=K)), dtype=float)
    m = np.array([d**k * (1 - d) for k in range(K)])
    p = np.where(columns == 0, d, (1 - d) / 2).prod(1)
    for _ in range(500):
        m = (p * np.tanh(columns @ m / beta)) @ columns
    return m


# %% multitask_hebbian-ex2: the root at 1
def critical(K):
    return 1.0


# %% multitask_hebbian-ex2: many patterns for any number
def critical(K):
    return 0.5


# %% multitask_hebbian-ex2: three patterns for any number
def critical(K):
    return (5**0.5 - 1) / 2


# %% multitask_hebbian-ex2: one pattern too few in the sum
def critical(K):
    low, high = 0.5, (2 / K) ** (1 / (K - 1))
    for _ in range(60):
        d = (low + high) / 2
        low, high = (d, high) if 1 - 2 * d + d ** (K - 1) > 0 else (low, d)
    return d


# %% multitask_hebbian-ex2: the polynomial's minimum
def critical(K):
    return (2 / K) ** (1 / (K - 1))


# %% multitask_hebbian-ex3: nothing changes
def after_the_flip(d):
    return (1 - d, d * (1 - d), d**2 * (1 - d)), 1


# %% multitask_hebbian-ex3: a turned site changes an overlap by 1
def after_the_flip(d):
    share = 2 * ((1 - d) / 2) ** 3
    return (1 - d - share, d * (1 - d) + share, d**2 * (1 - d) + share), 1


# %% multitask_hebbian-ex3: one of the two signs forgotten
def after_the_flip(d):
    share = ((1 - d) / 2) ** 3
    return (1 - d - 2 * share, d * (1 - d) + 2 * share, d**2 * (1 - d) + 2 * share), 1


# %% multitask_hebbian-ex3: the weakest pattern is said to lose
def after_the_flip(d):
    share = 2 * ((1 - d) / 2) ** 3
    return (1 - d - 2 * share, d * (1 - d) + 2 * share, d**2 * (1 - d) + 2 * share), 3


# %% multitask_hebbian-ex3: all three alike
def after_the_flip(d):
    m = ((1 - d) + d * (1 - d) + d**2 * (1 - d)) / 3
    return (m, m, m), 1


# %% multitask_hebbian-ex4: only the sites that are served
def spins_needed(k, d, eps):
    import math

    m = d ** (k - 1) * (1 - d)
    return math.ceil(m * (1 - m) / eps**2)


# %% multitask_hebbian-ex4: the mean's square forgotten
def spins_needed(k, d, eps):
    import math

    return math.ceil((1 - d) / eps**2)


# %% multitask_hebbian-ex4: fair coins everywhere
def spins_needed(k, d, eps):
    import math

    m = d ** (k - 1) * (1 - d)
    return math.ceil((1 - m**2) / eps**2)


# %% multitask_hebbian-ex4: rounded down
def spins_needed(k, d, eps):
    m = d ** (k - 1) * (1 - d)
    return int(((1 - d) - m**2) / eps**2)


# %% multitask_hebbian-ex4: the error falls like 1/N
def spins_needed(k, d, eps):
    import math

    m = d ** (k - 1) * (1 - d)
    return math.ceil(((1 - d) - m**2) / eps)
