# ruff: noqa
"""Wrong answers to the exercises of width/wide_cnn: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% wide_cnn-ex1: the new cosine in k0
def climb(cosines, filter_sizes):
    c, theta = cosines, cosines
    for l in range(len(filter_sizes)):
        rest = math.pi - torch.acos(c.clamp(-1, 1))
        k1 = (torch.sqrt(1 - c.clamp(-1, 1) ** 2) + rest * c) / math.pi
        k0 = (math.pi - torch.acos(k1.clamp(-1, 1))) / math.pi
        siblings = filter_sizes[l + 1] if l + 1 < len(filter_sizes) else len(c)
        theta = (k0 * theta + k1).unflatten(0, (-1, siblings)).mean(1)
        c = k1.unflatten(0, (-1, siblings)).mean(1)
    return c[0], theta[0]


# %% wide_cnn-ex1: averages before the layer, not after it
def climb(cosines, filter_sizes):
    c, theta = cosines, cosines
    for l in range(len(filter_sizes)):
        siblings = filter_sizes[l + 1] if l + 1 < len(filter_sizes) else len(c)
        c = c.unflatten(0, (-1, siblings)).mean(1).clamp(-1, 1)
        theta = theta.unflatten(0, (-1, siblings)).mean(1)
        rest = math.pi - torch.acos(c)
        k1 = (torch.sqrt(1 - c**2) + rest * c) / math.pi
        theta, c = rest / math.pi * theta + k1, k1
    return c[0], theta[0]


# %% wide_cnn-ex1: siblings that are not neighbors
def climb(cosines, filter_sizes):
    c, theta = cosines, cosines
    for l in range(len(filter_sizes)):
        c = c.clamp(-1, 1)
        rest = math.pi - torch.acos(c)
        k1 = (torch.sqrt(1 - c**2) + rest * c) / math.pi
        theta = rest / math.pi * theta + k1
        siblings = filter_sizes[l + 1] if l + 1 < len(filter_sizes) else len(c)
        c = k1.unflatten(0, (siblings, -1)).mean(0)
        theta = theta.unflatten(0, (siblings, -1)).mean(0)
    return c[0], theta[0]


# %% wide_cnn-ex1: the filter of this level instead of the next one's
def climb(cosines, filter_sizes):
    c, theta = cosines, cosines
    for size in filter_sizes:
        c = c.clamp(-1, 1)
        rest = math.pi - torch.acos(c)
        k1 = (torch.sqrt(1 - c**2) + rest * c) / math.pi
        theta = (rest / math.pi * theta + k1).unflatten(0, (-1, size)).mean(1)
        c = k1.unflatten(0, (-1, size)).mean(1)
    return c[0], theta[0]


# %% wide_cnn-ex1: only the last layer learns
def climb(cosines, filter_sizes):
    c = cosines
    for l in range(len(filter_sizes)):
        c = c.clamp(-1, 1)
        rest = math.pi - torch.acos(c)
        c = (torch.sqrt(1 - c**2) + rest * c) / math.pi
        siblings = filter_sizes[l + 1] if l + 1 < len(filter_sizes) else len(c)
        c = c.unflatten(0, (-1, siblings)).mean(1)
    return c[0], c[0]


# %% wide_cnn-ex2: the target's dimension alone
def power_law(level, depth):
    beta = two_nu / 2 ** (level - 1)
    return beta, 2 ** (1 / beta)


# %% wide_cnn-ex2: the student's dimension alone
def power_law(level, depth):
    beta = two_nu / 2 ** (depth - 1)
    return beta, 2 ** (1 / beta)


# %% wide_cnn-ex2: no word about a student that is too shallow
def power_law(level, depth):
    d_l, D = 2 ** (level - 1), 2 ** (depth - 1)
    beta = two_nu / (two_nu + d_l) * (two_nu + D) / D
    return beta, 2 ** (1 / beta)


# %% wide_cnn-ex2: counts levels as dimensions
def power_law(level, depth):
    if level > depth:
        return 0.0, math.inf
    beta = two_nu / (two_nu + level) * (two_nu + depth) / depth
    return beta, 2 ** (1 / beta)


# %% wide_cnn-ex2: the factor is two to the beta
def power_law(level, depth):
    if level > depth:
        return 0.0, math.inf
    d_l, D = 2 ** (level - 1), 2 ** (depth - 1)
    beta = two_nu / (two_nu + d_l) * (two_nu + D) / D
    return beta, 2**beta


# %% wide_cnn-ex3: forgets the mean
def floor_of_single_patches():
    def average(differences):
        return tree_recursion(1 - differences.cos(), target_filters)[1].mean().item()

    share = 0.0
    for i in range(4):
        one = differences.clone()
        one[i] = 0.0
        share += average(one) / (1.0 + len(target_filters))
    return 1 - share


# %% wide_cnn-ex3: one patch instead of four
def floor_of_single_patches():
    def average(differences):
        return tree_recursion(1 - differences.cos(), target_filters)[1].mean().item()

    mean, variance = average(differences), 1.0 + len(target_filters)
    one = differences.clone()
    one[0] = 0.0
    return 1 - (average(one) - mean) / (variance - mean)


# %% wide_cnn-ex3: the mean stays in the variance
def floor_of_single_patches():
    def average(differences):
        return tree_recursion(1 - differences.cos(), target_filters)[1].mean().item()

    mean, variance = average(differences), 1.0 + len(target_filters)
    share = 0.0
    for i in range(4):
        one = differences.clone()
        one[i] = 0.0
        share += (average(one) - mean) / variance
    return 1 - share


# %% wide_cnn-ex3: the covariance instead of the tangent kernel
def floor_of_single_patches():
    def average(differences):
        return tree_recursion(1 - differences.cos(), target_filters)[0].mean().item()

    mean, share = average(differences), 0.0
    for i in range(4):
        one = differences.clone()
        one[i] = 0.0
        share += (average(one) - mean) / (1 - mean)
    return 1 - share


# %% wide_cnn-ex3: the share that is explained
def floor_of_single_patches():
    def average(differences):
        return tree_recursion(1 - differences.cos(), target_filters)[1].mean().item()

    mean, variance = average(differences), 1.0 + len(target_filters)
    share = 0.0
    for i in range(4):
        one = differences.clone()
        one[i] = 0.0
        share += (average(one) - mean) / (variance - mean)
    return share
