"""Language models: any causal model of transformers with its chat template, its requests run together."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines.acquiring import acquire
from headrace.batch.pipelines.llm_decoder import Decoder, Finish, Generation, Said
from headrace.batch.pipelines.llm_prompt import prompt_tokens
from headrace.batch.pipelines.llm_sampling import Sampler, own_sampling, wished
from headrace.batch.pipelines.llm_text import Detokenizer, StopScanner
from headrace.batch.pipelines.llm_tools import OPENING, split_calls
from headrace.models import loading
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.demos import advised
from headrace.models.store import Located
from stream.errors import InvalidInput

_TOGETHER = {"cpu": 8, "cuda": 32}
"""Requests of one model that run together; more wait."""
_NO_LIMIT = 1 << 20
_DEFAULT_TOKENS = 256


@dataclass(frozen=True)
class LanguageModel:
    """What the cache keeps of one model."""

    tokenizer: Any
    decoder: Decoder
    context: int
    """Tokens of prompt and answer together."""
    ends: frozenset[int]
    sampling: Mapping[str, float]
    """How its authors advise to choose its tokens, as far as they do."""


class Llm:
    """``/llm``: see `headrace.batch.contract.BatchPipeline`.

    Inputs: ``messages`` or ``prompt``, ``max_tokens``, ``temperature``, ``top_p``, ``top_k``, ``stop``,
    ``seed``, ``presence_penalty``, ``frequency_penalty``, ``tools``, ``tool_choice``. Pieces: ``text`` and
    the counts so far. The body has ``text``, ``finish_reason`` (``stop``, ``length``, ``tool_calls``),
    ``tool_calls``, ``usage`` (``prompt_tokens``, ``completion_tokens``), ``seed``. An answer that reaches the
    end of the model's context ends there, with ``length``.
    """

    name: ClassVar[str] = "llm"

    def run(self, job: Job, models: ModelCache) -> Result:
        _check_format(job)
        with _acquire(job, models) as lease:
            model: LanguageModel = lease.model
            prompt = prompt_tokens(model.tokenizer, job.inputs, model.context)
            seed = job.inputs.get("seed")
            seed = secrets.randbits(32) if seed is None else int(seed)
            generation = _generation(job, model, prompt, seed)
            text, finish, made = _listen(job, generation, model.decoder)
            calls: list[dict[str, Any]] = []
            if job.inputs.get("tools"):
                text, calls = split_calls(text)
            body: dict[str, Any] = {
                "text": text,
                "finish_reason": "tool_calls" if calls else finish,
                "usage": {"prompt_tokens": len(prompt), "completion_tokens": made},
                "seed": seed,
                "weights": lease.weights,
            }
            return Result({**body, "tool_calls": calls} if calls else body)

    def warm(self, job: Job, models: ModelCache) -> None:
        _acquire(job, models).release()


def _generation(job: Job, model: LanguageModel, prompt: list[int], seed: int) -> Generation:
    inputs = job.inputs
    wanted = inputs.get("max_tokens")
    stops = inputs.get("stop") or []
    return Generation(
        job=job,
        prompt=prompt,
        max_tokens=min(int(_DEFAULT_TOKENS if wanted is None else wanted), model.context - len(prompt)),
        sampler=Sampler(wished(inputs, model.sampling, seed), model.decoder.device),
        ends=model.ends,
        detokenizer=Detokenizer(model.decoder.decode),
        scanner=StopScanner([stops] if isinstance(stops, str) else stops),
    )


def _listen(job: Job, generation: Generation, decoder: Decoder) -> tuple[str, Finish, int]:
    """Have the request run and stream what it says; the whole text, why it ended, and its tokens."""
    parts: list[str] = []
    # With tools, text from the first call on is told at the end, when it is known whether it is one.
    scanner = StopScanner([OPENING] if job.inputs.get("tools") else [])
    try:
        with job.waking(lambda: generation.events.put(Said(""))):
            decoder.submit(generation)
            while True:
                said = _next(job, generation.events)
                parts.append(said.text)
                text = scanner.push(said.text) + ("" if said.finish is None else scanner.finish())
                if text:
                    counts = {"prompt_tokens": len(generation.prompt), "completion_tokens": said.tokens}
                    job.emit({"text": text, **counts})
                if said.tokens:
                    job.progress(said.tokens, generation.max_tokens, "tokens")
                if said.finish is not None:
                    return "".join(parts), said.finish, said.tokens
    finally:
        generation.gone = True


def _next(job: Job, events: queue.SimpleQueue[Said | BaseException]) -> Said:
    """What the model said since the last time; several pieces when the client's side was behind."""
    text, tokens = "", 0
    while True:
        said = events.get()
        job.check()
        if isinstance(said, BaseException):
            raise said
        text, tokens = text + said.text, max(tokens, said.tokens)
        if said.finish is not None or events.empty():
            return Said(text, said.finish, tokens)


def _check_format(job: Job) -> None:
    wanted = job.inputs.get("response_format") or {}
    if wanted.get("type", "text") != "text":
        raise InvalidInput(
            f"response_format is {wanted.get('type')!r}; only text can be had, ask for JSON in words",
            field="response_format",
        )


# -- loading -------------------------------------------------------------------------------------------


def _acquire(job: Job, models: ModelCache) -> Lease:
    assert job.store is not None
    store = job.store
    found = store.find(job.model, variant=loading.variant_for(job.device))
    if found.kind not in ("transformers", "gguf"):
        raise InvalidInput(f"model {job.model} is no language model ({found.kind})", field="model")
    dtype = loading.dtype_for(job.device, wide=True)
    turns = job.turns

    def load(built: Located, progress: LoadProgress) -> tuple[LanguageModel, Loaded]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            loaded = loading.load_transformers(
                built,
                AutoModelForCausalLM,
                cache=store.roots.cache,
                device=job.device,
                dtype=dtype,
                progress=progress,
            )
        except ValueError as error:  # its configuration is none of such a model
            reason = str(error).partition("\n")[0][:200]
            raise InvalidInput(f"model {job.model} is no language model: {reason}", field="model") from error
        progress(0.9, "reading the tokenizer")
        folder = loading.text_folder(built, store.roots.cache)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

        def decode(tokens: Any) -> str:
            return str(tokenizer.decode(tokens, skip_special_tokens=True))

        decoder = Decoder(loaded.model, turns, limit=_TOGETHER[torch.device(job.device).type], decode=decode)
        kept = LanguageModel(
            tokenizer,
            decoder,
            _context(loaded.model, tokenizer),
            _ends(loaded.model, tokenizer),
            advised(built.ref) or own_sampling(loaded.model.generation_config),
        )
        return kept, loaded

    return acquire(job, models, found, kind="llm", dtype=dtype, load=load)


def _context(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config()
    known = getattr(config, "max_position_embeddings", None)
    return int(known or min(tokenizer.model_max_length, _NO_LIMIT))


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: a model may have one for turns beside one for texts."""
    ends: set[int] = set()
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        value = getattr(source, "eos_token_id", None)
        ends.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return frozenset(ends)
