# ruff: noqa
"""Wrong answers to the exercises of interpretability/saliency_backprop: none may score in full."""


# %% saliency_backprop-ex1: an average instead of a sum
def normgrad_3x3(f, g):
    energy = (f * f).sum(1, keepdim=True)
    window = torch.nn.functional.avg_pool2d(energy, 3, stride=1, padding=1)
    return window.sqrt() * g.norm(dim=1, keepdim=True)


# %% saliency_backprop-ex1: no zeros outside
def normgrad_3x3(f, g):
    energy = (f * f).sum(1, keepdim=True)
    window = 9 * torch.nn.functional.avg_pool2d(
        energy, 3, stride=1, padding=1, count_include_pad=False
    )
    return window.sqrt() * g.norm(dim=1, keepdim=True)


# %% saliency_backprop-ex1: the norm of the sum
def normgrad_3x3(f, g):
    total = 9 * torch.nn.functional.avg_pool2d(f, 3, stride=1, padding=1)
    return total.norm(dim=1, keepdim=True) * g.norm(dim=1, keepdim=True)


# %% saliency_backprop-ex1: one place only
def normgrad_3x3(f, g):
    return f.norm(dim=1, keepdim=True) * g.norm(dim=1, keepdim=True)


# %% saliency_backprop-ex1: the square
def normgrad_3x3(f, g):
    energy = (f * f).sum(1, keepdim=True)
    window = 9 * torch.nn.functional.avg_pool2d(energy, 3, stride=1, padding=1)
    return window * (g * g).sum(1, keepdim=True)


# %% saliency_backprop-ex2: the gradient's sum
coordinates = {
    "a": ("bias", "sum"),
    "b": ("scaling", "sum"),
    "c": ("conv1x1", "norm"),
    "d": ("conv1x1", "sum"),
}

# %% saliency_backprop-ex2: the largest, not the largest absolute one
coordinates = {
    "a": ("bias", "max"),
    "b": ("scaling", "sum"),
    "c": ("conv1x1", "norm"),
    "d": ("conv1x1", "sum"),
}

# %% saliency_backprop-ex2: c and d exchanged
coordinates = {
    "a": ("bias", "abs_max"),
    "b": ("scaling", "sum"),
    "c": ("conv1x1", "sum"),
    "d": ("conv1x1", "norm"),
}

# %% saliency_backprop-ex2: one is missing
coordinates = {"a": ("bias", "abs_max"), "b": ("scaling", "sum"), "c": ("conv1x1", "norm")}

# %% saliency_backprop-ex3: the flattened one, too
meet = {"average": "stages.2", "flatten": "stages.2"}

# %% saliency_backprop-ex3: nowhere
meet = {"average": "nowhere", "flatten": "nowhere"}

# %% saliency_backprop-ex3: one stage early
meet = {"average": "stages.1", "flatten": "nowhere"}

# %% saliency_backprop-ex3: exchanged
meet = {"average": "nowhere", "flatten": "stages.2"}
