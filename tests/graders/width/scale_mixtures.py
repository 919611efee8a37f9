# ruff: noqa
"""Wrong answers to the exercises of width/scale_mixtures: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% scale_mixtures-ex1: the outputs do not count
def predictive(a, b, q, n, C):
    return (2 * b + q) / (2 * a + n), 2 * a + n


# %% scale_mixtures-ex1: the prior's factor
def predictive(a, b, q, n, C):
    return b / a, 2 * a


# %% scale_mixtures-ex1: the posterior's numbers without the halves
def predictive(a, b, q, n, C):
    return (b + q) / (a + n * C), 2 * (a + n * C)


# %% scale_mixtures-ex1: the mean of the scale
def predictive(a, b, q, n, C):
    return (b + q / 2) / (a + n * C / 2 - 1), 2 * a + n * C


# %% scale_mixtures-ex1: the most likely scale
def predictive(a, b, q, n, C):
    return q / (n * C), 2 * a + n * C


# %% scale_mixtures-ex2: the prior as proposal
def share_that_counts(log_w):
    w = torch.softmax(log_w, 0)
    return 1 / (len(w) * w.square().sum().item())


def proposal(q, count):
    return prior_2


# %% scale_mixtures-ex2: weights that underflow
def share_that_counts(log_w):
    w = log_w.exp() / log_w.exp().sum()
    return 1 / (len(w) * w.square().sum().item())


def proposal(q, count):
    return InverseGamma(prior_2.a + count / 2, prior_2.b + q / 2)


# %% scale_mixtures-ex2: the number, not the share
def share_that_counts(log_w):
    w = torch.softmax(log_w, 0)
    return 1 / w.square().sum().item()


def proposal(q, count):
    return InverseGamma(prior_2.a + count / 2, prior_2.b + q / 2)


# %% scale_mixtures-ex2: q in place of half of it
def share_that_counts(log_w):
    w = torch.softmax(log_w, 0)
    return 1 / (len(w) * w.square().sum().item())


def proposal(q, count):
    return InverseGamma(prior_2.a + count / 2, prior_2.b + q)


# %% scale_mixtures-ex2: the right place, too wide
def share_that_counts(log_w):
    w = torch.softmax(log_w, 0)
    return 1 / (len(w) * w.square().sum().item())


def proposal(q, count):
    return InverseGamma(4.0, 4.0 * q / count)


# %% scale_mixtures-ex3: not the excess
def kurtosis_of_output():
    return 3 + 6 / (2 * shape_3 - 4)


def shape_for(k):
    return 2 + 3 / k


# %% scale_mixtures-ex3: the factor does not cancel
def kurtosis_of_output():
    return stretch**4 * 6 / (2 * shape_3 - 4)


def shape_for(k):
    return 2 + 3 / k


# %% scale_mixtures-ex3: degrees of freedom in place of the shape
def kurtosis_of_output():
    return 6 / (shape_3 - 4 + 1e-3)


def shape_for(k):
    return 4 + 6 / k


# %% scale_mixtures-ex3: the inverse of another formula
def kurtosis_of_output():
    return 6 / (2 * shape_3 - 4)


def shape_for(k):
    return 2 + 6 / k
