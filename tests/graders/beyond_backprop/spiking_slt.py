# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/spiking_slt: none may score in full."""


# %% spiking_slt-ex1: cut does nothing
def layer(current, decay, cut):
    u, out = torch.zeros_like(current[0]), []
    for i in current:
        v = decay * u + i
        spikes = fire(v)
        u = v - spikes
        out.append(spikes)
    return torch.stack(out)


# %% spiking_slt-ex1: always cut
def layer(current, decay, cut):
    u, out = torch.zeros_like(current[0]), []
    for i in current:
        v = decay * u.detach() + i
        spikes = fire(v)
        u = v - spikes
        out.append(spikes)
    return torch.stack(out)


# %% spiking_slt-ex1: hard reset
def layer(current, decay, cut):
    u, out = torch.zeros_like(current[0]), []
    for i in current:
        v = decay * (u.detach() if cut else u) + i
        spikes = fire(v)
        u = v * (1 - spikes)
        out.append(spikes)
    return torch.stack(out)


# %% spiking_slt-ex1: the reset has no gradient
def layer(current, decay, cut):
    u, out = torch.zeros_like(current[0]), []
    for i in current:
        v = decay * (u.detach() if cut else u) + i
        spikes = fire(v)
        u = v - spikes.detach()
        out.append(spikes)
    return torch.stack(out)


# %% spiking_slt-ex1: no leak
def layer(current, decay, cut):
    u, out = torch.zeros_like(current[0]), []
    for i in current:
        v = (u.detach() if cut else u) + i
        spikes = fire(v)
        u = v - spikes
        out.append(spikes)
    return torch.stack(out)


# %% spiking_slt-ex1: spikes by comparison
def layer(current, decay, cut):
    u, out = torch.zeros_like(current[0]), []
    for i in current:
        v = decay * u + i
        spikes = (v >= 1).to(v)
        u = v - spikes
        out.append(spikes)
    return torch.stack(out)


# %% spiking_slt-ex2: also a gradient for the input
def backward_products(widths, active):
    return 2 * active * sum(n * m for n, m in zip(widths[:-1], widths[1:]))


# %% spiking_slt-ex2: outer products only
def backward_products(widths, active):
    return active * sum(n * m for n, m in zip(widths[:-1], widths[1:]))


# %% spiking_slt-ex2: all four steps
def backward_products(widths, active):
    sizes = [n * m for n, m in zip(widths[:-1], widths[1:])]
    return 4 * (sum(sizes) + sum(sizes[1:]))


# %% spiking_slt-ex2: multiplications and additions
def backward_products(widths, active):
    sizes = [n * m for n, m in zip(widths[:-1], widths[1:])]
    return 2 * active * (sum(sizes) + sum(sizes[1:]))


# %% spiking_slt-ex3: rounds down
def horizon(tau, share):
    return math.floor(math.log(share) / math.log(1 - 1 / tau))


# %% spiking_slt-ex3: continuous time
def horizon(tau, share):
    return math.ceil(-tau * math.log(share))


# %% spiking_slt-ex3: the share that is lost
def horizon(tau, share):
    return math.ceil(math.log(share) / math.log(1 / tau))


# %% spiking_slt-ex3: one step late
def horizon(tau, share):
    return math.ceil(math.log(share) / math.log(1 - 1 / tau) - 1e-12) + 1


# %% spiking_slt-ex4: learns neither
def predictions():
    return {"delayed match": (True, False), "silent cue": (True, False)}


# %% spiking_slt-ex4: learns both
def predictions():
    return {"delayed match": (True, True), "silent cue": (True, True)}


# %% spiking_slt-ex4: a gradient that is not zero
def predictions():
    return {"delayed match": (False, True), "silent cue": (True, False)}


# %% spiking_slt-ex4: one task only
def predictions():
    return {"delayed match": (True, True)}
