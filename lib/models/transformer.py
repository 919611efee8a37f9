"""Attention, feed-forward layers, the residual block, and transformers on vectors and on words.

Vaswani et al., *Attention Is All You Need*, 2017 (arXiv 1706.03762), with the norm in front of
each layer (Xiong et al., 2020, arXiv 2002.04745) unless asked otherwise. What a chapter varies is
passed in as a factory: another attention, another norm, another feed-forward layer. There is no
flag for it here, so the block stays as short as its picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.models.positions import sinusoidal


class SequenceModel(nn.Module):
    """A transformer from continuous tokens to continuous outputs, one output a token.

    Args:
        d_in, d_out: features of a token and of an output.
        dim: width of the residual stream.
        depth: number of blocks.
        heads: attention heads in each block; must divide ``dim``.
        mask: ``None`` (every token sees every token), or a function from the number of tokens to
            a Boolean ``n n`` matrix that is True where row may attend to column: ``causal_mask``,
            ``context_mask``, or the caller's own.
        positions: ``None`` for sets, ``"sinusoidal"``, or a module or function from the number of
            tokens to an ``n dim`` tensor that is added to the embedded tokens.
        block: builds one block from ``(dim, heads)``.
        norm: builds the norm in front of the read-out; ``None`` leaves it out.

    Raises:
        ValueError: ``depth`` below 1, an unknown name for ``positions``, heads that do not divide.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        mask: Callable[[int], Tensor] | None = None,
        positions: str | Callable[[int], Tensor] | None = None,
        block: Callable[[int, int], nn.Module] | None = None,
        norm: Callable[[int], nn.Module] | None = nn.LayerNorm,
    ):
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth={depth}: allowed is 1 or more")
        if isinstance(positions, str):
            if positions != "sinusoidal":
                raise ValueError(f"positions={positions!r}: the one name allowed is 'sinusoidal'")
            positions = lambda n: sinusoidal(torch.arange(n), dim)
        self.mask, self.positions = mask, positions
        self.embed = nn.Linear(d_in, dim)
        self.blocks = nn.ModuleList((block or Block)(dim, heads) for _ in range(depth))
        self.norm = nn.Identity() if norm is None else norm(dim)
        self.readout = nn.Linear(dim, d_out)

    def hidden(self, tokens: Float[Tensor, "b n d_in"]) -> list[Float[Tensor, "b n dim"]]:
        """The residual stream: the embedded tokens, then the state after each block."""
        x, n = self.embed(tokens), tokens.shape[1]
        if self.positions is not None:
            x = x + self.positions(n).to(x)
        mask = None if self.mask is None else self.mask(n).to(x.device)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], mask=mask))
        return states

    def forward(self, tokens: Float[Tensor, "b n d_in"]) -> Float[Tensor, "b n d_out"]:
        return self.readout(self.norm(self.hidden(tokens)[-1]))


class LanguageModel(nn.Module):
    """A transformer from token numbers to a score for every word at every position.

    ``Decoder`` and ``Encoder`` below are this class with the choices of GPT-2 and of RoBERTa.

    Args:
        vocab: number of words.
        dim, depth, heads: as in ``SequenceModel``.
        positions: a number makes a learned table of that many positions; ``"sinusoidal"``; a
            module or function from positions ``n`` to vectors ``n dim``; ``None`` for none.
        mask: ``None``, or a function from the number of tokens to a Boolean ``n n`` matrix.
        block: builds one block from ``(dim, heads)``.
        embed_norm: builds the norm behind the embedding; ``None`` leaves it out.
        norm: builds the norm behind the last block; ``None`` leaves it out.
        head: builds what comes between there and the scores; ``None`` leaves it out.
        tie: the scores' matrix is the embedding's. One parameter, listed as ``embed.weight``.
        bias: a bias for every word's score.

    Raises:
        ValueError: ``depth`` or ``vocab`` below 1, an unknown name for ``positions``.
    """

    def __init__(
        self,
        vocab: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        positions: int | str | Callable[[Tensor], Tensor] | None,
        mask: Callable[[int], Tensor] | None = None,
        block: Callable[[int, int], nn.Module] | None = None,
        embed_norm: Callable[[int], nn.Module] | None = None,
        norm: Callable[[int], nn.Module] | None = nn.LayerNorm,
        head: Callable[[int], nn.Module] | None = None,
        tie: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth={depth}: allowed is 1 or more")
        if vocab < 1:
            raise ValueError(f"vocab={vocab}: allowed is 1 or more")
        if isinstance(positions, str):
            if positions != "sinusoidal":
                raise ValueError(f"positions={positions!r}: the one name allowed is 'sinusoidal'")
            positions = lambda t: sinusoidal(t, dim)
        elif isinstance(positions, int):
            positions = _embedding(positions, dim)
        self.positions, self.mask = positions, mask
        self.embed = _embedding(vocab, dim)
        self.embed_norm = nn.Identity() if embed_norm is None else embed_norm(dim)
        self.blocks = nn.ModuleList((block or Block)(dim, heads) for _ in range(depth))
        self.norm = nn.Identity() if norm is None else norm(dim)
        self.head = nn.Identity() if head is None else head(dim)
        self.unembed = nn.Linear(dim, vocab, bias=bias)
        if bias:
            nn.init.zeros_(self.unembed.bias)
        if tie:
            self.unembed.weight = self.embed.weight

    def hidden(
        self,
        tokens: Int[Tensor, "b n"] | Float[Tensor, "b n dim"],
        real: Bool[Tensor, "b n"] | None = None,
    ) -> list[Float[Tensor, "b n dim"]]:
        """The residual stream: the embedded tokens, then the state after each block.

        Args:
            tokens: numbers of words, or vectors in the place of the words' embeddings.
            real: False for padding, which nobody attends to. Positions are counted from the
                left, so padding belongs on the right.

        Raises:
            ValueError: more tokens than a learned table has positions.
        """
        x = tokens if tokens.is_floating_point() else self.embed(tokens)
        n = x.shape[1]
        if isinstance(self.positions, nn.Embedding) and n > self.positions.num_embeddings:
            raise ValueError(
                f"tokens: {n} of them; the model has {self.positions.num_embeddings} positions"
            )
        if self.positions is not None:
            x = x + self.positions(torch.arange(n, device=x.device)).to(x)
        mask = None if self.mask is None else self.mask(n).to(x.device)
        if real is not None:
            seen = real[:, None, None, :].expand(-1, 1, n, n)
            mask = seen if mask is None else seen & mask
        states = [self.embed_norm(x)]
        for block in self.blocks:
            states.append(block(states[-1], mask=mask))
        return states

    def read_out(self, state: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b v"]:
        """Scores of all words from the last residual state; for some positions or for all."""
        return self.unembed(self.head(self.norm(state)))

    def forward(
        self,
        tokens: Int[Tensor, "b n"] | Float[Tensor, "b n dim"],
        real: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n v"]:
        return self.read_out(self.hidden(tokens, real)[-1])


class Decoder(LanguageModel):
    """A causal language model, built like GPT-2: the scores at ``t`` are for the word at ``t + 1``.

    Radford et al., 2019. Norms in front of the layers and behind the last block, no bias in the
    scores. All of ``LanguageModel``'s arguments can be given.
    """

    def __init__(self, vocab: int, dim: int, depth: int, heads: int, **options):
        options = {"mask": causal_mask, **options}
        super().__init__(vocab, dim, depth, heads, **options)


class Encoder(LanguageModel):
    """A bidirectional language model, built like RoBERTa: the scores at ``t`` are for ``t`` itself.

    Liu et al., 2019 (arXiv 1907.11692). Norms behind the layers and behind the embedding, and a
    small network in front of the scores. Trained by covering words up (``lib.models.lm``). All of
    ``LanguageModel``'s arguments can be given.
    """

    def __init__(self, vocab: int, dim: int, depth: int, heads: int, **options):
        options = {
            "block": lambda dim, heads: Block(dim, heads, order="post"),
            "embed_norm": nn.LayerNorm,
            "norm": None,
            "head": lambda dim: nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim)),
            "bias": True,
            **options,
        }
        super().__init__(vocab, dim, depth, heads, **options)


def _embedding(n: int, dim: int) -> nn.Embedding:
    # Tied to the scores, torch's unit variance would make them start at sqrt(dim).
    table = nn.Embedding(n, dim)
    nn.init.normal_(table.weight, std=0.02)
    return table


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to the residual stream.

    Args:
        dim, heads: passed to the factories.
        norm: builds a norm from ``dim``; ``None`` leaves norms out.
        attention: builds the attention from ``(dim, heads)``. It is called as
            ``attention(x, context=..., mask=...)`` and returns what is added to ``x``.
        feedforward: builds the feed-forward layer from ``dim``; ``None`` leaves it out
            (attention-only transformers).
        order: ``"pre"`` normalizes what a layer reads, ``"post"`` the sum after it (2017), and in
            ``"parallel"`` both layers read the same normalized stream.
        cross: adds a second attention, from ``x`` to ``context``, between the two.

    Raises:
        ValueError: unknown ``order``, or ``"parallel"`` together with ``cross``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        norm: Callable[[int], nn.Module] | None = nn.LayerNorm,
        attention: Callable[[int, int], nn.Module] | None = None,
        feedforward: Callable[[int], nn.Module] | None = lambda dim: FeedForward(dim, 4 * dim),
        order: str = "pre",
        cross: bool = False,
    ):
        super().__init__()
        if order not in ("pre", "post", "parallel"):
            raise ValueError(f"order={order!r}: allowed are 'pre', 'post' and 'parallel'")
        if cross and order == "parallel":
            raise ValueError("cross=True with order='parallel': cross-attention needs an order")
        norm = norm or (lambda dim: nn.Identity())
        attention = attention or Attention
        self.order = order
        self.attn = attention(dim, heads)
        self.attn_norm = norm(dim)
        self.cross = attention(dim, heads) if cross else None
        self.cross_norm = norm(dim) if cross else None
        self.mlp = None if feedforward is None else feedforward(dim)
        self.mlp_norm = None if feedforward is None else norm(dim)

    def forward(
        self,
        x: Float[Tensor, "b n dim"],
        context: Float[Tensor, "b m dim"] | None = None,
        mask: Bool[Tensor, "*bh n n"] | None = None,
    ) -> Float[Tensor, "b n dim"]:
        """``context`` is what cross-attention reads; ``mask`` is for the self-attention alone.

        Raises:
            ValueError: ``context`` is missing where the block has cross-attention, or is given
                where it has none.
        """
        if (context is None) != (self.cross is None):
            given = "missing" if context is None else "given"
            raise ValueError(
                f"context is {given}, but the block has cross={self.cross is not None}"
            )
        if self.order == "parallel":
            y = self.attn_norm(x)
            return x + self.attn(y, mask=mask) + (0 if self.mlp is None else self.mlp(y))
        x = self._add(x, self.attn_norm, lambda y: self.attn(y, mask=mask))
        if self.cross is not None:
            x = self._add(x, self.cross_norm, lambda y: self.cross(y, context=context))
        return x if self.mlp is None else self._add(x, self.mlp_norm, self.mlp)

    def _add(self, x: Tensor, norm: nn.Module, layer: Callable[[Tensor], Tensor]) -> Tensor:
        return norm(x + layer(x)) if self.order == "post" else x + layer(norm(x))


class Attention(nn.Module):
    """Multi-head softmax attention, ``softmax(q k^T / sqrt(dim / heads)) v``.

    Args:
        dim: width of tokens, of all heads together, and of the output.
        heads: must divide ``dim``.
        bias: biases in the four projections.
        explicit: compute the attention matrix itself, in plain tensor operations. Needed for
            second derivatives, forward-mode derivatives, and wherever the matrix is looked at
            (``last_weights``). Otherwise PyTorch's fused kernel runs; the numbers are the same.

    Raises:
        ValueError: ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True, explicit: bool = False):
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        self.heads, self.explicit = heads, explicit
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=bias) for _ in range(4))
        self.last_weights: Float[Tensor, "b h n m"] | None = None

    def forward(
        self,
        x: Float[Tensor, "b n dim"],
        context: Float[Tensor, "b m dim"] | None = None,
        mask: Bool[Tensor, "*bh n m"] | None = None,
    ) -> Float[Tensor, "b n dim"]:
        """Queries from ``x``; keys and values from ``context`` if given, else from ``x``.

        ``mask`` is True where a row may attend to a column. A row that may attend to nothing
        gets zeros from the explicit path and from the fused one.
        """
        source = x if context is None else context
        q, k, v = (self._split(f(t)) for f, t in ((self.q, x), (self.k, source), (self.v, source)))
        if self.explicit:
            scores = q @ k.mT / q.shape[-1] ** 0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            weights = scores.softmax(-1)
            if mask is not None:
                weights = weights.masked_fill(~mask, 0.0)
            # Inside vmap the matrix belongs to all members and does not outlive the call.
            batched = torch._C._functorch.is_batchedtensor(weights)
            self.last_weights = None if batched else weights.detach()
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b h n k"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear maps with a nonlinearity between them, ``W_2 act(W_1 x)``.

    Args:
        dim, hidden: width of the tokens and of the layer between.
        act: builds the nonlinearity.
        gated: multiply the activated half by a second linear map of ``x`` (gated linear unit).
        linear: builds the linear maps from ``(n_in, n_out)``.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        act: Callable[[], nn.Module] = nn.GELU,
        *,
        gated: bool = False,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ):
        super().__init__()
        self.up = linear(dim, hidden)
        self.gate = linear(dim, hidden) if gated else None
        self.act = act()
        self.down = linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b dim"]:
        if self.gate is None:
            return self.down(self.act(self.up(x)))
        return self.down(self.act(self.gate(x)) * self.up(x))


def causal_mask(n: int) -> Bool[Tensor, "{n} {n}"]:
    """True where token ``i`` may attend to ``j``: ``j <= i``."""
    return torch.ones(n, n, dtype=torch.bool).tril()


def context_mask(n: int, queries: int = 1) -> Bool[Tensor, "{n} {n}"]:
    """Every token attends to the context alone: the last ``queries`` tokens are nobody's keys.

    Raises:
        ValueError: ``queries`` leaves no context.
    """
    if not 1 <= queries < n:
        raise ValueError(f"queries={queries}: allowed is 1 to {n - 1}, for {n} tokens")
    mask = torch.ones(n, n, dtype=torch.bool)
    mask[:, n - queries :] = False
    return mask
