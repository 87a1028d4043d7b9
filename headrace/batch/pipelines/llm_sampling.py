"""Choosing the next token of one request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_GREEDY = 1e-5
_FIRST_LOOK = 256
"""Most likely tokens that are looked at before the whole vocabulary is sorted for top-p."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request wants its tokens chosen. ``temperature`` 0: the most likely; ``top_k`` below 1: all. The
    defaults hold where neither it nor the model says anything."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0


_OWN = ("temperature", "top_p", "top_k")
_OPEN = Sampling()


def own_sampling(config: Any) -> dict[str, float]:
    """What a model's authors advise, in its ``generation_config.json`` (`transformers.GenerationConfig`)."""
    told = config.to_diff_dict()
    return {name: told[name] for name in _OWN if isinstance(told.get(name), (int, float))}


def wished(inputs: Mapping[str, Any], own: Mapping[str, float], seed: int) -> Sampling:
    """A request's ``inputs``; what it leaves open is as in ``own``."""

    def value(name: str) -> float:
        asked = inputs.get(name)
        return float(own.get(name, getattr(_OPEN, name)) if asked is None else asked)

    return Sampling(
        temperature=value("temperature"),
        top_p=value("top_p"),
        top_k=int(value("top_k")),
        presence_penalty=value("presence_penalty"),
        frequency_penalty=value("frequency_penalty"),
        seed=seed,
    )


class Sampler:
    """Chooses the tokens of one request, with random numbers of its own: equal seeds give equal choices."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._how = sampling
        self._random = torch.Generator(device).manual_seed(sampling.seed & (2**63 - 1))
        self._counts: Counter[int] = Counter()

    def choose(self, logits: torch.Tensor) -> int:
        """The next token from ``logits`` of the whole vocabulary, [vocabulary]."""
        how = self._how
        logits = self._penalised(logits.float())
        if how.temperature < _GREEDY or how.top_p <= 0:
            token = int(logits.argmax())
        else:
            values, tokens = self._candidates(logits / how.temperature)
            chosen = torch.multinomial(values.softmax(-1), 1, generator=self._random)
            token = int(chosen if tokens is None else tokens[chosen])
        self._counts[token] += 1
        return token

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        how = self._how
        if not self._counts or not (how.presence_penalty or how.frequency_penalty):
            return logits
        tokens = torch.tensor(list(self._counts), device=logits.device)
        counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
        return logits.index_add(0, tokens, -(how.presence_penalty + how.frequency_penalty * counts))

    def _candidates(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits and numbers of the tokens that top-k and top-p leave, the most likely first."""
        how = self._how
        size = logits.shape[-1]
        if 0 < how.top_k < size:
            values, tokens = logits.topk(how.top_k)
            if how.top_p >= 1:
                return values, tokens
            shares = values.softmax(-1)
        elif how.top_p < 1:
            values, tokens = logits.topk(min(_FIRST_LOOK, size))
            shares = (values - logits.logsumexp(-1)).exp()
            if float(shares.sum()) < how.top_p:
                values, tokens = logits.sort(descending=True)
                shares = values.softmax(-1)
        else:
            return logits, None
        # Those before which less than top_p is reached: the first always.
        kept = int(((shares.cumsum(-1) - shares) < how.top_p).sum())
        return values[:kept], tokens[:kept]
