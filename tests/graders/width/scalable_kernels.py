# ruff: noqa
"""Wrong answers to the exercises of width/scalable_kernels: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% scalable_kernels-ex1: no norm terms
def my_phi(x, G):
    return torch.exp(torch.sqrt(torch.tensor(1j * omega)) * (G @ x))


def my_psi(w, b, G):
    root = torch.sqrt(torch.tensor(1j * omega))
    return torch.exp(torch.tensor(1j * omega * b)) * torch.exp(root * (G @ w))


# %% scalable_kernels-ex1: the root of omega, not of i omega
def my_phi(x, G):
    return torch.exp(1j * omega**0.5 * (G @ x) + omega * (x @ x) / 2)


def my_psi(w, b, G):
    bias = torch.exp(torch.tensor(1j * omega * b))
    return bias * torch.exp(1j * omega**0.5 * (G @ w) + omega * (w @ w) / 2)


# %% scalable_kernels-ex1: forgets the bias
def my_phi(x, G):
    root = torch.sqrt(torch.tensor(1j * omega))
    return torch.exp(root * (G @ x) - root**2 * (x @ x) / 2)


def my_psi(w, b, G):
    root = torch.sqrt(torch.tensor(1j * omega))
    return torch.exp(root * (G @ w) - root**2 * (w @ w) / 2)


# %% scalable_kernels-ex1: the sine
def my_phi(x, G):
    root = torch.sqrt(torch.tensor(1j * omega))
    return torch.exp(root * (G @ x) - root**2 * (x @ x) / 2)


def my_psi(w, b, G):
    root = torch.sqrt(torch.tensor(1j * omega))
    bias = -1j * torch.exp(torch.tensor(1j * omega * b))
    return bias * torch.exp(root * (G @ w) - root**2 * (w @ w) / 2)


# %% scalable_kernels-ex1: the norm term without its half
def my_phi(x, G):
    root = torch.sqrt(torch.tensor(1j * omega))
    return torch.exp(root * (G @ x) - root**2 * (x @ x))


def my_psi(w, b, G):
    root = torch.sqrt(torch.tensor(1j * omega))
    bias = torch.exp(torch.tensor(1j * omega * b))
    return bias * torch.exp(root * (G @ w) - root**2 * (w @ w))


# %% scalable_kernels-ex2: the second moment alone
def my_variance(u, v):
    return (torch.exp(2 * u @ v) * torch.exp((u + v) @ (u + v)) / m).item()


# %% scalable_kernels-ex2: forgets m
def my_variance(u, v):
    return (torch.exp(2 * u @ v) * torch.expm1((u + v) @ (u + v))).item()


# %% scalable_kernels-ex2: the standard deviation
def my_variance(u, v):
    return (torch.exp(2 * u @ v) * torch.expm1((u + v) @ (u + v)) / m).sqrt().item()


# %% scalable_kernels-ex2: the distance in the place of the sum
def my_variance(u, v):
    return (torch.exp(2 * u @ v) * torch.expm1((u - v) @ (u - v)) / m).item()


# %% scalable_kernels-ex3: twice the bottleneck, whatever the shapes
def break_even(d_in, d_out, h):
    return 2 * h


# %% scalable_kernels-ex3: forgets the biases
def break_even(d_in, d_out, h):
    return h * (d_in + d_out) // d_out


# %% scalable_kernels-ex3: divides by the inputs
def break_even(d_in, d_out, h):
    return h * (d_in + 1 + d_out) // d_in


# %% scalable_kernels-ex3: rounds up
def break_even(d_in, d_out, h):
    return -(-h * (d_in + 1 + d_out) // d_out) + 1


# %% scalable_kernels-ex4: forgets the length
def my_bundle(W1, b1, G2, u):
    return G2 @ W1, G2 @ b1 + u


# %% scalable_kernels-ex4: loses the bias
def my_bundle(W1, b1, G2, u):
    return G2 @ W1 / length, u


# %% scalable_kernels-ex4: divides the phases, too
def my_bundle(W1, b1, G2, u):
    return G2 @ W1 / length, (G2 @ b1 + u) / length


# %% scalable_kernels-ex4: loses the phases
def my_bundle(W1, b1, G2, u):
    return G2 @ W1 / length, G2 @ b1 / length
