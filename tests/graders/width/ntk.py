# ruff: noqa
"""Wrong answers to the exercises of width/ntk: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% ntk-ex1: no sine, the arc of order 0 for both
def my_relu_dual(a, b, c):
    angle = torch.acos((c / torch.sqrt(a * b)).clamp(-1, 1))
    share = (math.pi - angle) / (2 * math.pi)
    return torch.sqrt(a * b) * share, share


# %% ntk-ex1: not halved
def my_relu_dual(a, b, c):
    norm = torch.sqrt(a * b)
    cos = (c / norm).clamp(-1, 1)
    angle = torch.acos(cos)
    value = norm * (torch.sin(angle) + (math.pi - angle) * cos) / math.pi
    return value, (math.pi - angle) / math.pi


# %% ntk-ex1: the slopes of the angle itself
def my_relu_dual(a, b, c):
    norm = torch.sqrt(a * b)
    cos = (c / norm).clamp(-1, 1)
    angle = torch.acos(cos)
    value = norm * (torch.sin(angle) + (math.pi - angle) * cos) / (2 * math.pi)
    return value, angle / (2 * math.pi)


# %% ntk-ex1: forgets that the variances differ
def my_relu_dual(a, b, c):
    cos = (c / a).clamp(-1, 1)
    angle = torch.acos(cos)
    value = a * (torch.sin(angle) + (math.pi - angle) * cos) / (2 * math.pi)
    return value, (math.pi - angle) / (2 * math.pi)


# %% ntk-ex1: one value
def my_relu_dual(a, b, c):
    return torch.sqrt(a * b) / 2


# %% ntk-ex2: only the last layer learns
def diagonal(L):
    return 1.0


# %% ntk-ex2: counts the hidden layers
def diagonal(L):
    return float(L - 1)


# %% ntk-ex2: forgets the gain in the slopes
def diagonal(L):
    return 2 - 0.5 ** (L - 1)


# %% ntk-ex2: doubles at each layer
def diagonal(L):
    return 2.0 ** (L - 1)


# %% ntk-ex3: continuous time
def steps_to_learn(eigenvalue, eta, share=1 / math.e):
    return math.ceil(-math.log(share) / (eta * eigenvalue))


# %% ntk-ex3: rounds down
def steps_to_learn(eigenvalue, eta, share=1 / math.e):
    return math.floor(math.log(share) / math.log(1 - eta * eigenvalue))


# %% ntk-ex3: always 1/e
def steps_to_learn(eigenvalue, eta, share=1 / math.e):
    return math.ceil(-1 / math.log(1 - eta * eigenvalue))


# %% ntk-ex3: not rounded
def steps_to_learn(eigenvalue, eta, share=1 / math.e):
    return math.log(share) / math.log(1 - eta * eigenvalue)


# %% ntk-ex4: forgets the mean
def largest_rate(K):
    return 2 / torch.linalg.eigvalsh(K)[-1].item()


# %% ntk-ex4: the fastest rate, not the largest
def largest_rate(K):
    return len(K) / torch.linalg.eigvalsh(K)[-1].item()


# %% ntk-ex4: the smallest eigenvalue
def largest_rate(K):
    return 2 * len(K) / torch.linalg.eigvalsh(K)[0].item()


# %% ntk-ex4: the trace instead of the largest eigenvalue
def largest_rate(K):
    return 2 * len(K) / K.trace().item()
