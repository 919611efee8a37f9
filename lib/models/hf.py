"""Checkpoints of RoBERTa and GPT-2 in the book's own ``Encoder`` and ``Decoder``.

Needs the package ``transformers`` (extra ``hf``), for the files alone: what runs afterwards is
``lib.models.transformer``, with its names of parameters and its calls. Dropout is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from lib.models.transformer import Block, Decoder, Encoder, FeedForward, LanguageModel

KINDS = ("roberta", "gpt2")


def from_pretrained(name: str) -> LanguageModel:
    """The checkpoint ``name`` (``"roberta-base"``, ``"gpt2"``, a folder) as Encoder or Decoder.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: the checkpoint is of another kind of model.
    """
    transformers = _transformers()
    kind = transformers.AutoConfig.from_pretrained(name).model_type
    if kind not in KINDS:
        raise ValueError(f"name={name!r} is a {kind!r}; allowed are {', '.join(KINDS)}")
    masked = kind == "roberta"
    load = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    return convert(load.from_pretrained(name))


def tokenizer(name: str) -> Any:
    """The checkpoint's own tokenizer.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    return _transformers().AutoTokenizer.from_pretrained(name)


def convert(theirs: nn.Module) -> LanguageModel:
    """A ``RobertaForMaskedLM`` as ``Encoder``, a ``GPT2LMHeadModel`` as ``Decoder``: same weights.

    The result is in evaluation mode, in the weights' type, on the CPU.

    Raises:
        ValueError: another kind of model, or one with options that change its formulas.
    """
    config = theirs.config
    if config.model_type not in KINDS:
        raise ValueError(f"model: {config.model_type!r}; allowed are {', '.join(KINDS)}")
    state = {name: t.detach().cpu() for name, t in theirs.state_dict().items()}
    make = _roberta if config.model_type == "roberta" else _gpt2
    ours, weights = make(config, state)
    ours = ours.to(next(iter(weights.values())).dtype)
    # Strict but for the tied matrix, which is listed under two names.
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"unembed.weight"}:
        raise ValueError(f"model: weights do not fit; missing {missing}, unexpected {unexpected}")
    return ours.eval()


def _roberta(config: Any, state: Mapping[str, Tensor]) -> tuple[Encoder, dict[str, Tensor]]:
    _expect(config, hidden_act="gelu")
    dim, eps = config.hidden_size, config.layer_norm_eps
    norm = partial(nn.LayerNorm, eps=eps)
    first = config.pad_token_id + 1  # their positions are counted from here
    ours = Encoder(
        config.vocab_size,
        dim,
        config.num_hidden_layers,
        config.num_attention_heads,
        positions=config.max_position_embeddings - first,
        block=lambda dim, heads: Block(
            dim,
            heads,
            order="post",
            norm=norm,
            feedforward=lambda dim: FeedForward(dim, config.intermediate_size),
        ),
        embed_norm=norm,
        head=lambda dim: nn.Sequential(nn.Linear(dim, dim), nn.GELU(), norm(dim)),
    )
    words = "roberta.embeddings."
    weights = {
        "embed.weight": state[words + "word_embeddings.weight"],
        # Every token is of type 0.
        "positions.weight": state[words + "position_embeddings.weight"][first:]
        + state[words + "token_type_embeddings.weight"][0],
        "unembed.bias": state["lm_head.bias"],
    }
    modules = {
        "embed_norm": words + "LayerNorm",
        "head.0": "lm_head.dense",
        "head.2": "lm_head.layer_norm",
    }
    for i in range(config.num_hidden_layers):
        there = f"roberta.encoder.layer.{i}."
        for mine, theirs in {
            "attn.q": "attention.self.query",
            "attn.k": "attention.self.key",
            "attn.v": "attention.self.value",
            "attn.out": "attention.output.dense",
            "attn_norm": "attention.output.LayerNorm",
            "mlp.up": "intermediate.dense",
            "mlp.down": "output.dense",
            "mlp_norm": "output.LayerNorm",
        }.items():
            modules[f"blocks.{i}.{mine}"] = there + theirs
    for mine, theirs in modules.items():
        for leaf in ("weight", "bias"):
            weights[f"{mine}.{leaf}"] = state[f"{theirs}.{leaf}"]
    return ours, weights


def _gpt2(config: Any, state: Mapping[str, Tensor]) -> tuple[Decoder, dict[str, Tensor]]:
    _expect(
        config,
        activation_function="gelu_new",
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    dim, norm = config.n_embd, partial(nn.LayerNorm, eps=config.layer_norm_epsilon)
    act = partial(nn.GELU, approximate="tanh")
    ours = Decoder(
        config.vocab_size,
        dim,
        config.n_layer,
        config.n_head,
        positions=config.n_positions,
        block=lambda dim, heads: Block(
            dim,
            heads,
            norm=norm,
            feedforward=lambda dim: FeedForward(dim, config.n_inner or 4 * dim, act),
        ),
        norm=norm,
    )
    weights = {
        "embed.weight": state["transformer.wte.weight"],
        "positions.weight": state["transformer.wpe.weight"],
        "norm.weight": state["transformer.ln_f.weight"],
        "norm.bias": state["transformer.ln_f.bias"],
    }
    for i in range(config.n_layer):
        there, here = f"transformer.h.{i}.", f"blocks.{i}."
        for mine, theirs in {"attn_norm": "ln_1", "mlp_norm": "ln_2"}.items():
            for leaf in ("weight", "bias"):
                weights[f"{here}{mine}.{leaf}"] = state[f"{there}{theirs}.{leaf}"]
        # Their linear maps are stored in x out; queries, keys and values side by side.
        for mine, theirs in {
            "attn.out": "attn.c_proj",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }.items():
            weights[f"{here}{mine}.weight"] = state[f"{there}{theirs}.weight"].T
            weights[f"{here}{mine}.bias"] = state[f"{there}{theirs}.bias"]
        for leaf in ("weight", "bias"):
            three = state[f"{there}attn.c_attn.{leaf}"].split(dim, dim=-1)
            for name, part in zip("qkv", three, strict=True):
                weights[f"{here}attn.{name}.{leaf}"] = part.T if leaf == "weight" else part
    return ours, weights


def _expect(config: Any, **wanted: Any) -> None:
    for name, value in wanted.items():
        got = getattr(config, name, value)
        if got != value:
            raise ValueError(f"model: {name}={got!r}; allowed is {value!r}")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModuleNotFoundError(
            "checkpoints need the package transformers: pip install transformers"
        ) from error
    return transformers
