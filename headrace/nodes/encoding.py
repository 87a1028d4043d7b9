"""Texts to conditions: CLIP's encoders over chunks of 77 tokens, weighted against the empty text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.models import tensors
from headrace.models.errors import LoadFailed
from headrace.nodes.handles import Clip, Encoder
from headrace.nodes.prompts import Marks, Piece, Weighted, chunks_of, pieces_of

log = logging.getLogger(__name__)

Token = int | torch.Tensor
"""A number of the vocabulary, or a vector in its place."""
MAX_CHUNKS = 64
"""Chunks of a text: 4,800 tokens."""
_KEYS = {False: "clip_l", True: "clip_g"}


def encode(clip: Clip, text: str) -> list[list[Any]]:
    """ComfyUI's CONDITIONING of a text. Raises `ValueError` for a text of too many tokens."""
    states, pooled = [], None
    for encoder in clip.encoders:
        made, pooled = _encode(encoder, clip, text)
        states.append(made)
    length = min(state.shape[1] for state in states)
    together = torch.cat([state[:, :length] for state in states], dim=-1)
    return [[together, {"pooled_output": pooled}]]


def _encode(encoder: Encoder, clip: Clip, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    tokenizer = encoder.tokenizer
    marks: Marks[Token] = Marks(
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length
    )
    chunks = chunks_of([group for piece in pieces_of(text) for group in _groups(encoder, clip, piece)], marks)
    if len(chunks) > MAX_CHUNKS:
        raise ValueError(f"the text has {len(chunks)} chunks of tokens; {MAX_CHUNKS} are the limit")
    rows = [[token for token, _ in chunk] for chunk in chunks]
    weights = torch.tensor([[weight for _, weight in chunk] for chunk in chunks])
    weighted = bool((weights != 1).any())
    if weighted:
        rows.append([token for token, _ in chunks_of([], marks)[0]])
    states, pooled = _run(encoder, clip, rows, marks)
    if weighted:
        empty, states = states[-1:], states[:-1]
        states = torch.lerp(empty.expand_as(states), states, weights[..., None].to(states))
    return states.flatten(0, 1)[None], pooled[:1]


def _groups(encoder: Encoder, clip: Clip, piece: Piece) -> list[list[Weighted[Token]]]:
    """The tokens of a piece; those of an embedding and of what follows it stand apart."""
    text, groups = piece.text, list[list[Weighted[Token]]]()
    if piece.is_embedding:
        vectors, text = _embedding(encoder, clip, text)
        groups.append([(vector, piece.weight) for vector in vectors])
    if text:
        ids = encoder.tokenizer(text, truncation=False, verbose=False).input_ids[1:-1]
        groups.append([(number, piece.weight) for number in ids])
    return groups


# -- embeddings ----------------------------------------------------------------------------------------


def _embedding(encoder: Encoder, clip: Clip, text: str) -> tuple[Sequence[torch.Tensor], str]:
    """The vectors of ``name rest`` and the rest; a comma after the name belongs to the rest."""
    name, *rest = text.split() or [""]
    after = " ".join(rest)
    path = clip.files.embedding(name) if name else None
    if path is None and name != name.strip(","):
        bare = name.strip(",")
        path, after = clip.files.embedding(bare), f"{name[len(bare) :]} {after}"
    if path is None:
        log.warning("there is no embedding %r; the prompt goes on without it", name)
        return (), after
    width = encoder.inner.embeddings.token_embedding.weight.shape[1]
    vectors = [
        vector for vector in read_embedding(path, _KEYS[encoder.projected]) if vector.shape[-1] == width
    ]
    if not vectors:
        log.warning("the embedding %r is not of a width of %d; the prompt goes on without it", name, width)
    return vectors, after


def read_embedding(path: Path, key: str) -> Sequence[torch.Tensor]:
    """The vectors of a textual inversion. ``key``: which of the encoders, where a file is of two."""
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        data: Mapping[str, Any] = load_file(path)
    else:
        data = tensors.read_pickle(path)
    inner = data.get("string_to_param")
    if isinstance(inner, Mapping):
        data = inner
    found = data.get(key, next(iter(data.values()), None))
    if not isinstance(found, torch.Tensor):
        raise LoadFailed(f"{path.name} is no embedding", field="text")
    return list(found.float().reshape(-1, found.shape[-1]))


# -- the encoder ---------------------------------------------------------------------------------------


def _run(
    encoder: Encoder, clip: Clip, rows: list[list[Token]], marks: Marks[Token]
) -> tuple[torch.Tensor, torch.Tensor]:
    """States [rows, tokens, width] of the layer that is asked for, and what is pooled [rows, width]."""
    inner = encoder.inner
    device = inner.embeddings.position_embedding.weight.device
    numbers = torch.tensor(
        [[token if isinstance(token, int) else 0 for token in row] for row in rows], device=device
    )
    x = inner.embeddings.token_embedding(numbers)
    for row, tokens_of_row in enumerate(rows):
        for place, token in enumerate(tokens_of_row):
            if isinstance(token, torch.Tensor):
                x[row, place] = token.to(x)
    x = x + inner.embeddings.position_embedding.weight[: x.shape[1]]
    layers = inner.encoder.layers
    wanted, normed = _layer(clip, len(layers))
    hidden = x
    blind = torch.full((x.shape[1],) * 2, torch.finfo(x.dtype).min, dtype=x.dtype, device=device).triu(1)
    for number, layer in enumerate(layers):
        made = layer(x, blind[None, None])
        x = made[0] if isinstance(made, tuple) else made
        if number == wanted:
            hidden = x
    last = inner.final_layer_norm(x)
    states = last if wanted is None else inner.final_layer_norm(hidden) if normed else hidden
    ends = [next((p for p, token in enumerate(row) if _is(token, marks.end)), -1) for row in rows]
    pooled = last[torch.arange(len(rows), device=device), torch.tensor(ends, device=device)]
    if encoder.projected:
        pooled = encoder.module.text_projection(pooled)
    return states.float(), pooled.float()


def _is(token: Token, number: Token) -> bool:
    return isinstance(token, int) and token == number


def _layer(clip: Clip, layers: int) -> tuple[int | None, bool]:
    """The number of the layer whose states count (None: the last, normed), and whether these are normed.

    SDXL was trained on the last but one without a norm, the others on the last with one.
    """
    bare = any(encoder.projected for encoder in clip.encoders)
    stop = clip.stop_at if clip.stop_at is not None else -2 if bare else None
    if stop is None or abs(stop) > layers:
        return None, True
    return layers + stop, not bare
