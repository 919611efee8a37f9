"""What one does with a language model: score words, cover them up, read an answer from a prompt.

The model is a ``Decoder`` or an ``Encoder`` of ``lib.models.transformer``, small ones trained here
or checkpoints from ``lib.models.hf``: the same calls.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.models.transformer import LanguageModel


def token_logprobs(
    model: nn.Module, ids: Int[Tensor, "b n"], real: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, "b n"]:
    """``log p(ids[t] | ids[:t])`` under a causal model; 0 at the first position and at padding."""
    scores = model(ids, real)[:, :-1].log_softmax(-1)
    picked = F.pad(scores.gather(-1, ids[:, 1:, None])[..., 0], (1, 0))
    return picked if real is None else picked.masked_fill(~real, 0.0)


def lm_loss(
    model: nn.Module,
    ids: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    denominator: float | Tensor,
) -> Float[Tensor, ""]:
    """Minus the log-probability of the words where ``mask`` is True, over ``denominator``.

    The first word has no past and never counts. ``denominator`` is the caller's: the number of
    words in the batch, or of sequences.
    """
    return -token_logprobs(model, ids).masked_fill(~mask, 0.0).sum() / denominator


def cover(
    ids: Int[Tensor, "b n"],
    p: float,
    mask_id: int,
    gen: torch.Generator,
    keep: Bool[Tensor, "n"] | None = None,
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Replace each word by ``mask_id`` with probability ``p``; also says where.

    BERT's corruption (Devlin et al., 2018, arXiv 1810.04805) without its random replacements.

    Args:
        keep: positions that are never covered.

    Raises:
        ValueError: ``p`` outside 0 to 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: allowed is 0 to 1")
    covered = (torch.rand(ids.shape, generator=gen) < p).to(ids.device)
    if keep is not None:
        covered &= ~keep
    return ids.masked_fill(covered, mask_id), covered


def masked_lm_loss(
    model: LanguageModel, ids: Int[Tensor, "b n"], covered: Bool[Tensor, "b n"], mask_id: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the covered words given the others; 0 where nothing is covered.

    Scores are computed for the covered positions alone.
    """
    states = model.hidden(ids.masked_fill(covered, mask_id))[-1]
    scores = model.read_out(states[covered])
    return F.cross_entropy(scores, ids[covered], reduction="sum") / max(1, int(covered.sum()))


def label_logits(
    model: LanguageModel,
    ids: Int[Tensor, "b n"],
    position: Int[Tensor, "b"] | int,
    words: Int[Tensor, "c"] | Int[Tensor, "b c"],
    real: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b c"]:
    """The scores of the label words at one position of each prompt: a classifier made of a prompt.

    For an ``Encoder`` the position is that of the mask token. For a ``Decoder`` it is that of the
    last word before the answer.

    Args:
        position: one for all or one for each prompt; negative numbers count from the end.
        words: one label word for each class (the verbalizer), for all prompts or for each its own.

    Raises:
        ValueError: a position outside the prompt.
    """
    n = ids.shape[1]
    where = torch.as_tensor(position, device=ids.device).expand(len(ids))
    if len(where) and not -n <= int(where.min()) <= int(where.max()) < n:
        raise ValueError(f"position: allowed is {-n} to {n - 1} for {n} tokens, got {position}")
    states = model.hidden(ids, real)[-1]
    at = states[torch.arange(len(ids), device=ids.device), where]
    return model.read_out(at).gather(1, words.expand(len(ids), -1))
