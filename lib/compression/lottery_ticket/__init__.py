"""The lottery ticket hypothesis: a dense network holds a small one that could train alone.

J. Frankle and M. Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural
Networks", ICLR 2019, arXiv 1803.03635.

Train a network, remove the weights of smallest magnitude, put the others back to the values they
had before training, and repeat. The small network that is left, mask and initial values together,
is a winning ticket if it trains as fast and as well as the dense one.

``pruning``   iterative magnitude pruning, with resetting (the paper's method) or with continued
              training, layer by layer or globally, to step 0 or to a later one; one-shot pruning is
              one round of it; the two controls, fresh weights and a shuffled mask.
``training``  how all these networks are trained, many at once, on the same batches.
``analysis``  the early-stopping step, and what distinguishes the weights that stay.
``recipes``   the paper's networks and settings.

Not implemented: the stability measures of the follow-up paper, which belong to ``stable_tickets``.
"""

from lib.compression.lottery_ticket.analysis import (
    early_stop_iteration,
    first_reach,
    movement,
    sign_agreement,
    split_by,
)
from lib.compression.lottery_ticket.pruning import (
    IterativeMagnitudePruning,
    magnitude_mask,
    one_shot_rate,
    random_mask_like,
    random_reinit,
    remaining_after,
    run_together,
)
from lib.compression.lottery_ticket.recipes import RECIPES, Recipe, layer_rates
from lib.compression.lottery_ticket.training import Start, Ticket, Training, accuracy

__all__ = [
    "RECIPES",
    "IterativeMagnitudePruning",
    "Recipe",
    "Start",
    "Ticket",
    "Training",
    "accuracy",
    "early_stop_iteration",
    "first_reach",
    "layer_rates",
    "magnitude_mask",
    "movement",
    "one_shot_rate",
    "random_mask_like",
    "random_reinit",
    "remaining_after",
    "run_together",
    "sign_agreement",
    "split_by",
]
