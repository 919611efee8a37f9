# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/spiking_delays: none may score in full."""


# %% spiking_delays-ex1: the normalization does not move
def bump_and_slope(p, sigma, bins):
    n = torch.arange(bins, dtype=p.dtype)
    h = torch.exp(-((n - p[:, None]) ** 2) / (2 * sigma**2))
    k = h / h.sum(1, keepdim=True)
    return k, k / sigma**2 * (n - p[:, None])


# %% spiking_delays-ex1: the wrong sign
def bump_and_slope(p, sigma, bins):
    n = torch.arange(bins, dtype=p.dtype)
    h = torch.exp(-((n - p[:, None]) ** 2) / (2 * sigma**2))
    k = h / h.sum(1, keepdim=True)
    return k, k / sigma**2 * ((n * k).sum(1, keepdim=True) - n)


# %% spiking_delays-ex1: not normalized
def bump_and_slope(p, sigma, bins):
    n = torch.arange(bins, dtype=p.dtype)
    h = torch.exp(-((n - p[:, None]) ** 2) / (2 * sigma**2))
    return h, h * (n - p[:, None]) / sigma**2


# %% spiking_delays-ex1: the width is not squared
def bump_and_slope(p, sigma, bins):
    n = torch.arange(bins, dtype=p.dtype)
    h = torch.exp(-((n - p[:, None]) ** 2) / (2 * sigma**2))
    k = h / h.sum(1, keepdim=True)
    return k, k / sigma * (n - (n * k).sum(1, keepdim=True))


# %% spiking_delays-ex2: one side
def taps(sigma, share=0.01):
    return math.floor(sigma * math.sqrt(-2 * math.log(share))) + 1


# %% spiking_delays-ex2: without the peak
def taps(sigma, share=0.01):
    return 2 * math.floor(sigma * math.sqrt(-2 * math.log(share)))


# %% spiking_delays-ex2: rounds up
def taps(sigma, share=0.01):
    return 2 * math.ceil(sigma * math.sqrt(-2 * math.log(share))) + 1


# %% spiking_delays-ex2: the factor two is forgotten
def taps(sigma, share=0.01):
    return 2 * math.floor(sigma * math.sqrt(-math.log(share))) + 1


# %% spiking_delays-ex2: three widths
def taps(sigma, share=0.01):
    return 2 * math.floor(3 * sigma) + 1


# %% spiking_delays-ex3: always to the last spike
def align(fired, bins):
    t = int(fired.max())
    d = t - fired
    return torch.where(d < bins, d, 0), t


# %% spiking_delays-ex3: advances instead of delays
def align(fired, bins):
    d = (fired - fired.min()).clamp(0, bins - 1)
    return d, int(fired.min())


# %% spiking_delays-ex3: delays of bins and more
def align(fired, bins):
    t = int(fired.max())
    return t - fired, t


# %% spiking_delays-ex3: as late as possible
def align(fired, bins):
    best = None
    for t in range(int(fired.max()) + bins):
        d = t - fired
        able = (d >= 0) & (d < bins)
        if best is None or able.sum() >= best[0]:
            best = able.sum(), torch.where(able, d, 0), t
    return best[1], best[2]


# %% spiking_delays-ex4: one of five neurons
def forgetful_accuracy(classes):
    return 1 / 5


# %% spiking_delays-ex4: it can tell the first spike
def forgetful_accuracy(classes):
    return min(1.0, 5 / classes)


# %% spiking_delays-ex4: eight classes whatever comes
def forgetful_accuracy(classes):
    return 1 / 8


# %% spiking_delays-ex4: solved
def forgetful_accuracy(classes):
    return 1.0
