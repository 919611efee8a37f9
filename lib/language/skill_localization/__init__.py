"""Skill localization: a few fine-tuned parameters, grafted onto the pre-trained model, do the task.

A. Panigrahi, N. Saunshi, H. Zhao and S. Arora, "Task-Specific Skill Localization in Fine-tuned
Language Models", ICML 2023, arXiv 2302.06600.

``grafting``  the grafted model, masks by movement, and the search for a mask by gradient descent
              through a relaxation (section 2 and appendix), with the cost of storing a skill.
``tuning``    what is compared: fine-tuning by prompt, masked or autoregressive, and by a head on
              [CLS]; SGD, AdamW, AdamW with an L1 penalty on the movement; biases alone; training
              the found parameters anew, as with lottery tickets.
``regions``   where a graft lies, how regions of several tasks overlap, grafts of several tasks,
              and tasks learned one after the other.

Everything works on dictionaries of parameters by name and leaves the model as it was. The same
calls take the small models of the chapter and checkpoints from ``lib.models.hf``. Calibration is
in ``lib.core.metrics``, masks in ``lib.core.masks``. Not implemented: the paper's bound on the
generalization of sparse grafts.
"""

from lib.core.masks import overlap as mask_overlap
from lib.core.metrics import ece as expected_calibration_error
from lib.kernels.graft_step import graft_step, relaxed_graft
from lib.language.skill_localization.grafting import (
    Found,
    GraftOptimizer,
    find_graft,
    graft,
    random_mask,
    skill_bytes,
    top_movement_mask,
)
from lib.language.skill_localization.regions import (
    Stage,
    by_module,
    continual,
    union,
)
from lib.language.skill_localization.tuning import (
    HeadClassifier,
    PromptClassifier,
    Score,
    fine_tune,
    logits_of,
    retrain,
    score,
    trainable,
)

__all__ = [
    "Found",
    "GraftOptimizer",
    "HeadClassifier",
    "PromptClassifier",
    "Score",
    "Stage",
    "by_module",
    "continual",
    "expected_calibration_error",
    "find_graft",
    "fine_tune",
    "graft",
    "graft_step",
    "logits_of",
    "mask_overlap",
    "random_mask",
    "relaxed_graft",
    "retrain",
    "score",
    "skill_bytes",
    "top_movement_mask",
    "trainable",
    "union",
]
