# ruff: noqa
"""Wrong answers to the exercises of width/functional_prior: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% functional_prior-ex1: the slope is a constant to the gradient
def penalty(W, b, v, f):
    W, f = W.detach().requires_grad_(), f.detach().requires_grad_()
    value = torch.nn.functional.softplus(f @ W.T + b) @ v
    (slope,) = torch.autograd.grad(value.sum(), f)
    found = weight * (slope.norm(dim=1) - 1).square().mean()
    (pull,) = torch.autograd.grad(found, W)
    return found.detach(), pull


# %% functional_prior-ex1: the mean value's slope
def penalty(W, b, v, f):
    W, f = W.detach().requires_grad_(), f.detach().requires_grad_()
    value = torch.nn.functional.softplus(f @ W.T + b) @ v
    (slope,) = torch.autograd.grad(value.mean(), f, create_graph=True)
    found = weight * (slope.norm(dim=1) - 1).square().mean()
    (pull,) = torch.autograd.grad(found, W)
    return found.detach(), pull


# %% functional_prior-ex1: the norm over functions
def penalty(W, b, v, f):
    W, f = W.detach().requires_grad_(), f.detach().requires_grad_()
    value = torch.nn.functional.softplus(f @ W.T + b) @ v
    (slope,) = torch.autograd.grad(value.sum(), f, create_graph=True)
    found = weight * (slope.norm(dim=0) - 1).square().mean()
    (pull,) = torch.autograd.grad(found, W)
    return found.detach(), pull


# %% functional_prior-ex1: the excess of the mean norm
def penalty(W, b, v, f):
    W, f = W.detach().requires_grad_(), f.detach().requires_grad_()
    value = torch.nn.functional.softplus(f @ W.T + b) @ v
    (slope,) = torch.autograd.grad(value.sum(), f, create_graph=True)
    found = weight * (slope.norm(dim=1).mean() - 1).square()
    (pull,) = torch.autograd.grad(found, W)
    return found.detach(), pull


# %% functional_prior-ex1: no square root
def penalty(W, b, v, f):
    W, f = W.detach().requires_grad_(), f.detach().requires_grad_()
    value = torch.nn.functional.softplus(f @ W.T + b) @ v
    (slope,) = torch.autograd.grad(value.sum(), f, create_graph=True)
    found = weight * (slope.square().sum(1) - 1).square().mean()
    (pull,) = torch.autograd.grad(found, W)
    return found.detach(), pull


# %% functional_prior-ex1: no gradient
def penalty(W, b, v, f):
    W, f = W.detach().requires_grad_(), f.detach().requires_grad_()
    value = torch.nn.functional.softplus(f @ W.T + b) @ v
    (slope,) = torch.autograd.grad(value.sum(), f, create_graph=True)
    found = weight * (slope.norm(dim=1) - 1).square().mean()
    (pull,) = torch.autograd.grad(found, W)
    return found.detach(), torch.zeros_like(W)


# %% functional_prior-ex2: forgets the output's bias
def output_scale(x, sigma_w1, sigma_b1, sigma_b2):
    seen = gaussian_mean(lambda h: torch.tanh(h) ** 2, (sigma_w1 * x) ** 2 + sigma_b1**2)
    return math.sqrt(amplitude**2 / seen.item())


# %% functional_prior-ex2: a linear network
def output_scale(x, sigma_w1, sigma_b1, sigma_b2):
    return math.sqrt((amplitude**2 - sigma_b2**2) / ((sigma_w1 * x) ** 2 + sigma_b1**2))


# %% functional_prior-ex2: no hidden bias
def output_scale(x, sigma_w1, sigma_b1, sigma_b2):
    seen = gaussian_mean(lambda h: torch.tanh(h) ** 2, (sigma_w1 * x) ** 2 + 1e-9)
    return math.sqrt((amplitude**2 - sigma_b2**2) / seen.item())


# %% functional_prior-ex2: variance and standard deviation mixed up
def output_scale(x, sigma_w1, sigma_b1, sigma_b2):
    seen = gaussian_mean(lambda h: torch.tanh(h) ** 2, (sigma_w1 * x) ** 2 + sigma_b1**2)
    return (amplitude**2 - sigma_b2**2) / seen.item()


# %% functional_prior-ex3: the derivative is not squared
def first_scale(length, sigma_b1):
    flat = gaussian_mean(lambda h: 1 - torch.tanh(h) ** 2, sigma_b1**2).item()
    return 1 / (length * sigma_w2 * math.sqrt(flat))


def factor():
    return 2.0


# %% functional_prior-ex3: forgets the output weights
def first_scale(length, sigma_b1):
    flat = gaussian_mean(lambda h: (1 - torch.tanh(h) ** 2) ** 2, sigma_b1**2).item()
    return 1 / (length * math.sqrt(flat))


def factor():
    return 2.0


# %% functional_prior-ex3: smaller where it should be larger
def first_scale(length, sigma_b1):
    flat = gaussian_mean(lambda h: (1 - torch.tanh(h) ** 2) ** 2, sigma_b1**2).item()
    return length / (sigma_w2 * math.sqrt(flat))


def factor():
    return 0.5


# %% functional_prior-ex3: the factor of the variance
def first_scale(length, sigma_b1):
    flat = gaussian_mean(lambda h: (1 - torch.tanh(h) ** 2) ** 2, sigma_b1**2).item()
    return 1 / (length * sigma_w2 * math.sqrt(flat))


def factor():
    return 4.0
