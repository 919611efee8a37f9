# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/physical_networks: none may score in full."""


# %% physical_networks-ex1: forgets the slope of the magnitude
def local_gradient(W, q_pos, q_neg, r, theta):
    a_pos, a_neg = q_pos @ W.T, q_neg @ W.T
    size_pos, size_neg = (a.norm(dim=1, keepdim=True) for a in (a_pos, a_neg))
    g_pos = (a_pos.abs() @ r)[:, None] / size_pos
    g_neg = (a_neg.abs() @ r)[:, None] / size_neg
    up = r / size_pos - g_pos * a_pos.abs() / size_pos**2
    down = r / size_neg - g_neg * a_neg.abs() / size_neg**2
    share = -theta / len(q_pos) * torch.sigmoid(-theta * (g_pos - g_neg))
    return (share * up).T @ q_pos - (share * down).T @ q_neg


# %% physical_networks-ex1: the norm as a constant
def local_gradient(W, q_pos, q_neg, r, theta):
    a_pos, a_neg = q_pos @ W.T, q_neg @ W.T
    size_pos, size_neg = (a.norm(dim=1, keepdim=True) for a in (a_pos, a_neg))
    g_pos = (a_pos.abs() @ r)[:, None] / size_pos
    g_neg = (a_neg.abs() @ r)[:, None] / size_neg
    share = -theta / len(q_pos) * torch.sigmoid(-theta * (g_pos - g_neg))
    up, down = a_pos.sign() * r / size_pos, a_neg.sign() * r / size_neg
    return (share * up).T @ q_pos - (share * down).T @ q_neg


# %% physical_networks-ex1: summed over the batch
def local_gradient(W, q_pos, q_neg, r, theta):
    a_pos, a_neg = q_pos @ W.T, q_neg @ W.T
    size_pos, size_neg = (a.norm(dim=1, keepdim=True) for a in (a_pos, a_neg))
    g_pos = (a_pos.abs() @ r)[:, None] / size_pos
    g_neg = (a_neg.abs() @ r)[:, None] / size_neg
    up = a_pos.sign() * (r / size_pos - g_pos * a_pos.abs() / size_pos**2)
    down = a_neg.sign() * (r / size_neg - g_neg * a_neg.abs() / size_neg**2)
    share = -theta * torch.sigmoid(-theta * (g_pos - g_neg))
    return (share * up).T @ q_pos - (share * down).T @ q_neg


# %% physical_networks-ex1: uphill
def local_gradient(W, q_pos, q_neg, r, theta):
    a_pos, a_neg = q_pos @ W.T, q_neg @ W.T
    size_pos, size_neg = (a.norm(dim=1, keepdim=True) for a in (a_pos, a_neg))
    g_pos = (a_pos.abs() @ r)[:, None] / size_pos
    g_neg = (a_neg.abs() @ r)[:, None] / size_neg
    up = a_pos.sign() * (r / size_pos - g_pos * a_pos.abs() / size_pos**2)
    down = a_neg.sign() * (r / size_neg - g_neg * a_neg.abs() / size_neg**2)
    share = theta / len(q_pos) * torch.sigmoid(-theta * (g_pos - g_neg))
    return (share * up).T @ q_pos - (share * down).T @ q_neg


# %% physical_networks-ex1: the bad pass is left out
def local_gradient(W, q_pos, q_neg, r, theta):
    a_pos, a_neg = q_pos @ W.T, q_neg @ W.T
    size_pos, size_neg = (a.norm(dim=1, keepdim=True) for a in (a_pos, a_neg))
    g_pos = (a_pos.abs() @ r)[:, None] / size_pos
    g_neg = (a_neg.abs() @ r)[:, None] / size_neg
    up = a_pos.sign() * (r / size_pos - g_pos * a_pos.abs() / size_pos**2)
    share = -theta / len(q_pos) * torch.sigmoid(-theta * (g_pos - g_neg))
    return (share * up).T @ q_pos


# %% physical_networks-ex1: automatic differentiation
def local_gradient(W, q_pos, q_neg, r, theta):
    W = W.requires_grad_()
    g = [(q @ W.T).abs() @ r / (q @ W.T).norm(dim=1) for q in (q_pos, q_neg)]
    loss = torch.log1p(torch.exp(-theta * (g[0] - g[1]))).mean()
    return torch.autograd.grad(loss, W)[0]


# %% physical_networks-ex2: every inner step asks again
def training_queries(batches, size, stages, n_inner):
    return 2 * batches * size * stages * n_inner


def scan_queries(samples, classes, stages):
    return samples * classes * stages


# %% physical_networks-ex2: one pass a sample
def training_queries(batches, size, stages, n_inner):
    return batches * size * stages


def scan_queries(samples, classes, stages):
    return samples * classes * stages


# %% physical_networks-ex2: labels are tried at the first device only
def training_queries(batches, size, stages, n_inner):
    return 2 * batches * size * stages


def scan_queries(samples, classes, stages):
    return samples * (classes + stages - 1)


# %% physical_networks-ex2: no label scan
def training_queries(batches, size, stages, n_inner):
    return 2 * batches * size * stages


def scan_queries(samples, classes, stages):
    return samples * stages


# %% physical_networks-ex3: everybody survives a swap before training
def predictions():
    return {
        "local": (True, False),
        "in silico": (True, False),
        "physics-aware": (True, False),
        "feedback alignment": (True, False),
    }


# %% physical_networks-ex3: a wrong derivative is fatal
def predictions():
    return {
        "local": (True, False),
        "in silico": (False, False),
        "physics-aware": (False, False),
        "feedback alignment": (True, False),
    }


# %% physical_networks-ex3: random feedback is fatal
def predictions():
    return {
        "local": (True, False),
        "in silico": (False, False),
        "physics-aware": (True, False),
        "feedback alignment": (False, False),
    }


# %% physical_networks-ex3: the local rule never notices
def predictions():
    return {
        "local": (True, True),
        "in silico": (False, False),
        "physics-aware": (True, False),
        "feedback alignment": (True, False),
    }


# %% physical_networks-ex3: the twin still holds after training
def predictions():
    return {
        "local": (True, False),
        "in silico": (False, True),
        "physics-aware": (True, False),
        "feedback alignment": (True, False),
    }


# %% physical_networks-ex4: r itself
def best(r):
    return 1.0, r


# %% physical_networks-ex4: magnitudes of r
def best(r):
    return (r.abs() @ r).item(), r.abs()


# %% physical_networks-ex4: the typical value for many entries
def best(r):
    return 0.5**0.5, r.clamp_min(0)


# %% physical_networks-ex4: the largest entry alone
def best(r):
    a = torch.zeros_like(r)
    a[r.argmax()] = 1.0
    return r.max().item(), a


# %% physical_networks-ex4: the signs
def best(r):
    a = (r > 0).to(r)
    return (a @ r / a.norm()).item(), a
