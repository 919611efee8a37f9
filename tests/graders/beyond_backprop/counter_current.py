# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/counter_current: none may score in full."""


# %% counter_current-ex1: no slope of the activation
def pair_gradient(X, W, b, G, y, lam=0.5):
    H = F.elu(X @ W.T + b)
    M = F.one_hot(y, len(G)).to(X)
    e = 512 * lam / (W.shape[0] * len(X) * len(G)) * (H @ G.T - M)
    return (e @ G).T @ X


# %% counter_current-ex1: the square's factor two forgotten
def pair_gradient(X, W, b, G, y, lam=0.5):
    u = X @ W.T + b
    H, slope = F.elu(u), torch.where(u > 0, torch.ones_like(u), u.exp())
    M = F.one_hot(y, len(G)).to(X)
    e = 256 * lam / (W.shape[0] * len(X) * len(G)) * (H @ G.T - M)
    return (e @ G * slope).T @ X


# %% counter_current-ex1: mean over samples only
def pair_gradient(X, W, b, G, y, lam=0.5):
    u = X @ W.T + b
    H, slope = F.elu(u), torch.where(u > 0, torch.ones_like(u), u.exp())
    M = F.one_hot(y, len(G)).to(X)
    e = 512 * lam / (W.shape[0] * len(X)) * (H @ G.T - M)
    return (e @ G * slope).T @ X


# %% counter_current-ex1: target minus product
def pair_gradient(X, W, b, G, y, lam=0.5):
    u = X @ W.T + b
    H, slope = F.elu(u), torch.where(u > 0, torch.ones_like(u), u.exp())
    M = F.one_hot(y, len(G)).to(X)
    e = 512 * lam / (W.shape[0] * len(X) * len(G)) * (M - H @ G.T)
    return (e @ G * slope).T @ X


# %% counter_current-ex1: the slope at the activity
def pair_gradient(X, W, b, G, y, lam=0.5):
    H = F.elu(X @ W.T + b)
    slope = torch.where(H > 0, torch.ones_like(H), H.exp())
    M = F.one_hot(y, len(G)).to(X)
    e = 512 * lam / (W.shape[0] * len(X) * len(G)) * (H @ G.T - M)
    return (e @ G * slope).T @ X


# %% counter_current-ex2: the inverse permutation
def permuted(net, x, y, order):
    with torch.no_grad():
        acts, signals = net(x, torch.eye(len(order))[order])
    row = (acts[0] @ signals[0].T).argmax(1)
    share = lambda answer: (answer == y).float().mean().item()
    return share(acts[-1].argmax(1)), share(row), share(order.argsort()[row])


# %% counter_current-ex2: prediction drops too
def permuted(net, x, y, order):
    with torch.no_grad():
        acts, signals = net(x, torch.eye(len(order))[order])
    row = (acts[0] @ signals[0].T).argmax(1)
    share = lambda answer: (answer == y).float().mean().item()
    return share(order[acts[-1].argmax(1)]), share(row), share(order[row])


# %% counter_current-ex2: columns permuted, not rows
def permuted(net, x, y, order):
    with torch.no_grad():
        acts, signals = net(x, torch.eye(len(order))[:, order])
    row = (acts[0] @ signals[0].T).argmax(1)
    share = lambda answer: (answer == y).float().mean().item()
    return share(acts[-1].argmax(1)), share(row), share(order[row])


# %% counter_current-ex2: nothing changes
def permuted(net, x, y, order):
    with torch.no_grad():
        acts, signals = net(x, torch.eye(len(order)))
    row = (acts[0] @ signals[0].T).argmax(1)
    share = lambda answer: (answer == y).float().mean().item()
    return share(acts[-1].argmax(1)), share(row), share(row)


# %% counter_current-ex3: the feedback network has a row for each sample
def traffic(widths, batch, rule):
    return 2 * batch * sum(widths[1:-1])


# %% counter_current-ex3: weights travel
def traffic(widths, batch, rule):
    units = sum(widths[1:-1])
    down = widths[-1] if rule == "ccl" else batch
    matrices = sum(n * m for n, m in zip(widths[1:], widths[2:]))
    return (batch + down) * units + (matrices if rule == "backprop" else 0)


# %% counter_current-ex3: logits counted
def traffic(widths, batch, rule):
    down = widths[-1] if rule == "ccl" else batch
    return (batch + down) * sum(widths[1:])


# %% counter_current-ex3: both halves of a pair counted
def traffic(widths, batch, rule):
    units = sum(widths[1:-1])
    down = widths[-1] if rule == "ccl" else batch
    return (batch + down) * units * (2 if rule == "ccl" else 1)


# %% counter_current-ex4: one norm for all
def clip_layers(grads, limit):
    flat = [g for layer in grads.values() for g in layer]
    norm = sum(g.square().sum() for g in flat).sqrt()
    for g in flat:
        g.mul_((limit / norm).clamp_max(1.0))


# %% counter_current-ex4: matrix and bias apart
def clip_layers(grads, limit):
    for layer in grads.values():
        for g in layer:
            g.mul_((limit / g.norm().clamp_min(1e-12)).clamp_max(1.0))


# %% counter_current-ex4: every norm is the limit
def clip_layers(grads, limit):
    for layer in grads.values():
        norm = sum(g.square().sum() for g in layer).sqrt()
        for g in layer:
            g.mul_(limit / norm)


# %% counter_current-ex4: entry by entry
def clip_layers(grads, limit):
    for layer in grads.values():
        for g in layer:
            g.clamp_(-limit, limit)
