# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/predictive_coding: none may score in full."""


# %% predictive_coding-ex1: the sum in place of the mean
def price(mu_q, logs_q, mu_p, logs_p):
    quadratic = ((mu_q - mu_p) ** 2 + (2 * logs_q).exp()) / (2 * (2 * logs_p).exp())
    return (logs_p - logs_q + quadratic - 0.5).sum(-1)


# %% predictive_coding-ex1: p and q change places
def price(mu_q, logs_q, mu_p, logs_p):
    quadratic = ((mu_q - mu_p) ** 2 + (2 * logs_p).exp()) / (2 * (2 * logs_q).exp())
    return (logs_q - logs_p + quadratic - 0.5).mean(-1)


# %% predictive_coding-ex1: standard deviations that are not squared
def price(mu_q, logs_q, mu_p, logs_p):
    quadratic = ((mu_q - mu_p) ** 2 + logs_q.exp()) / (2 * logs_p.exp())
    return (logs_p - logs_q + quadratic - 0.5).mean(-1)


# %% predictive_coding-ex1: without the constant
def price(mu_q, logs_q, mu_p, logs_p):
    quadratic = ((mu_q - mu_p) ** 2 + (2 * logs_q).exp()) / (2 * (2 * logs_p).exp())
    return (logs_p - logs_q + quadratic).mean(-1)


# %% predictive_coding-ex1: mean over everything
def price(mu_q, logs_q, mu_p, logs_p):
    quadratic = ((mu_q - mu_p) ** 2 + (2 * logs_q).exp()) / (2 * (2 * logs_p).exp())
    return (logs_p - logs_q + quadratic - 0.5).mean()


# %% predictive_coding-ex2: not halved
import math


def shift_cost(delta, sigma):
    return delta**2 / sigma**2


def largest_shift(nats, sigma):
    return sigma * nats**0.5


def certainty_cost(r):
    return -math.log(r) + r**2 / 2 - 0.5


# %% predictive_coding-ex2: certainty is the logarithm alone
import math


def shift_cost(delta, sigma):
    return delta**2 / (2 * sigma**2)


def largest_shift(nats, sigma):
    return sigma * (2 * nats) ** 0.5


def certainty_cost(r):
    return -math.log(r)


# %% predictive_coding-ex2: linear in the shift
import math


def shift_cost(delta, sigma):
    return delta / (2 * sigma)


def largest_shift(nats, sigma):
    return 2 * sigma * nats


def certainty_cost(r):
    return -math.log(r) + r**2 / 2 - 0.5


# %% predictive_coding-ex2: the sign of the logarithm
import math


def shift_cost(delta, sigma):
    return delta**2 / (2 * sigma**2)


def largest_shift(nats, sigma):
    return sigma * (2 * nats) ** 0.5


def certainty_cost(r):
    return math.log(r) + r**2 / 2 - 0.5


# %% predictive_coding-ex3: only the steps of the error
def reached(observed, first, last):
    return list(range(first, min(observed, last) + 1))


# %% predictive_coding-ex3: all that is observed
def reached(observed, first, last):
    return list(range(1, observed + 1))


# %% predictive_coding-ex3: up to the error, observed or not
def reached(observed, first, last):
    return list(range(1, last + 1))


# %% predictive_coding-ex3: one step too few
def reached(observed, first, last):
    return list(range(1, min(observed, last)))


# %% predictive_coding-ex4: the weights were good already
def predictions():
    return {"new sequence": "the same", "training data": "the same"}


# %% predictive_coding-ex4: more learning is better everywhere
def predictions():
    return {"new sequence": "lower", "training data": "lower"}


# %% predictive_coding-ex4: nothing is forgotten
def predictions():
    return {"new sequence": "lower", "training data": "the same"}


# %% predictive_coding-ex4: the sequence does not gain
def predictions():
    return {"new sequence": "the same", "training data": "higher"}
