# ruff: noqa
"""Wrong answers to the exercises of language/skill_localization: none may score in full."""


# %% skill_localization-ex1: the formula, rounded
def graft(pre, ft, mask):
    return {n: p + mask[n] * (ft[n] - p) if n in mask else p for n, p in pre.items()}


# %% skill_localization-ex1: the other way round
def graft(pre, ft, mask):
    return {n: torch.where(mask[n], p, ft[n]) if n in mask else p for n, p in pre.items()}


# %% skill_localization-ex1: names without a mask are fine-tuned
def graft(pre, ft, mask):
    return {n: torch.where(mask[n], ft[n], p) if n in mask else ft[n] for n, p in pre.items()}


# %% skill_localization-ex1: names without a mask are lost
def graft(pre, ft, mask):
    return {n: torch.where(mask[n], ft[n], pre[n]) for n in mask}


# %% skill_localization-ex2: without the sign
def mask_gradient(grad, delta, score, base, bias):
    p = torch.sigmoid(score - bias)
    return grad * delta * p * (1 - p)


# %% skill_localization-ex2: without the bias
def mask_gradient(grad, delta, score, base, bias):
    p = torch.sigmoid(score)
    return (1 - 2 * base.to(grad)) * grad * delta * p * (1 - p)


# %% skill_localization-ex2: without the slope
def mask_gradient(grad, delta, score, base, bias):
    return (1 - 2 * base.to(grad)) * grad * delta


# %% skill_localization-ex2: nothing inside the base
def mask_gradient(grad, delta, score, base, bias):
    p = torch.sigmoid(score - bias)
    return (1 - base.to(grad)) * grad * delta * p * (1 - p)


# %% skill_localization-ex3: what both have
def both(pre, ft, one, two):
    return sl.graft(pre, ft, {n: one[n] & two[n] for n in one})


def loses(one, two):
    return float(sl.mask_overlap([one, two])[0, 1])


# %% skill_localization-ex3: the first alone
def both(pre, ft, one, two):
    return sl.graft(pre, ft, one)


def loses(one, two):
    return float(sl.mask_overlap([one, two])[0, 1])


# %% skill_localization-ex3: adds the movement twice
def both(pre, ft, one, two):
    first = {n: p + one[n] * (ft[n] - p) for n, p in pre.items()}
    return {n: p + two[n] * (ft[n] - pre[n]) for n, p in first.items()}


def loses(one, two):
    return float(sl.mask_overlap([one, two])[0, 1])


# %% skill_localization-ex3: the share of the other region
def both(pre, ft, one, two):
    return sl.graft(pre, ft, sl.union([one, two]))


def loses(one, two):
    return float(sl.mask_overlap([one, two])[1, 0])
