"""Good functional priors: weights whose functions are those of a Gaussian process.

B.-H. Tran, S. Rossi, D. Milios and M. Filippone, "All You Need is a Good Functional Prior for
Bayesian Deep Learning", JMLR 2022, arXiv 2011.12829.

A Gaussian prior on weights is a prior on functions that nobody chose. Here the functions are chosen
first, as a Gaussian process, and the hyper-parameters of the weights' prior are tuned until the
network's functions are near it in Wasserstein distance, played by a critic at random points.

Read in this order: ``match`` (the distance, the critic and the tuning: the idea itself), ``priors``
(the target, and networks with Gaussian, hierarchical and flow priors), ``posterior`` (chains under
a prior, scores, and the rivals: maximum a posteriori, deep ensembles, dropout, SWAG),
``experiments`` (the paper's tables and images, at full size).

Not implemented: the search over the Gaussian process's own hyper-parameters (they are given, or
log-normal), and prior layers for normalization: such layers keep their numbers.
"""

from lib.width.functional_prior.experiments import PRIORS, UCI, images, prior_named, regression
from lib.width.functional_prior.match import (
    Critic,
    WassersteinMapper,
    correlation,
    covariance_error,
    critic_objective,
    critic_w1,
    difference,
    empirical_w1_1d,
    gradient_penalty,
    match_variance,
    train_critic,
    uniform_points,
)
from lib.width.functional_prior.posterior import (
    SGHMCPosterior,
    class_probabilities,
    classification_scores,
    conditional_precision,
    deep_ensemble,
    entropy,
    gaussian,
    log_posterior,
    maximum_a_posteriori,
    mc_dropout,
    predictive_nll,
    rmse,
    sample_hmc,
    softmax,
    swag,
)
from lib.width.functional_prior.priors import (
    BNNPrior,
    GPPrior,
    PlanarFlow,
    SylvesterFlow,
)

__all__ = [
    "BNNPrior",
    "Critic",
    "GPPrior",
    "PRIORS",
    "PlanarFlow",
    "SGHMCPosterior",
    "SylvesterFlow",
    "UCI",
    "WassersteinMapper",
    "class_probabilities",
    "classification_scores",
    "conditional_precision",
    "correlation",
    "covariance_error",
    "critic_objective",
    "critic_w1",
    "deep_ensemble",
    "difference",
    "empirical_w1_1d",
    "entropy",
    "gaussian",
    "gradient_penalty",
    "images",
    "log_posterior",
    "match_variance",
    "maximum_a_posteriori",
    "mc_dropout",
    "predictive_nll",
    "prior_named",
    "regression",
    "rmse",
    "sample_hmc",
    "softmax",
    "swag",
    "train_critic",
    "uniform_points",
]
