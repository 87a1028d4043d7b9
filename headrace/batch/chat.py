"""Answers of language models in ai-runner's form and in OpenAI's, whole and in pieces."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace.batch.service import Outcome

Form = Literal["native", "chat", "completion"]


@dataclass(slots=True)
class Writer:
    """Makes the JSON of one answer.

    ``native``: usage and role in every piece, ``finish_reason`` ``""`` until the last, and no nulls,
    which the published JavaScript client refuses.
    """

    form: Form
    model: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    _prompt_tokens: int = 0
    _completion_tokens: int = 0
    _begun: bool = False

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """The answer that is not streamed."""
        body = outcome.result.body
        self._count(body.get("usage") or {})
        choice: dict[str, Any] = {"index": 0, "finish_reason": body.get("finish_reason", "stop")}
        if self.form == "completion":
            choice |= {"text": body["text"], "logprobs": None}
        else:
            message: dict[str, Any] = {"role": "assistant", "content": body["text"]}
            if calls := body.get("tool_calls"):
                message["tool_calls"] = calls
                if self.form == "chat" and not body["text"]:
                    message["content"] = None
            choice["message"] = message
        kind = "text_completion" if self.form == "completion" else "chat.completion"
        told = {"usage": self.usage(), "choices": [choice], "weights": outcome.weights}
        return {**self._head(kind), **told}

    def piece(self, piece: dict[str, Any]) -> list[dict[str, Any]]:
        """A piece of the text as the chunks that carry it."""
        self._count(piece)
        text = piece.get("text", "")
        if self.form == "completion":
            return [self._chunk({"text": text, "logprobs": None, "finish_reason": None})]
        if self.form == "native":
            delta = {"role": "assistant", "content": text}
            return [{**self._chunk({"finish_reason": "", "delta": delta}), "usage": self.usage()}]
        chunks = [self._chunk({"finish_reason": None, "delta": {"content": text}})]
        return [*self.begin(), *chunks]

    def begin(self) -> list[dict[str, Any]]:
        """The chunk with the role, once, where the form has one."""
        if self._begun or self.form != "chat":
            return []
        self._begun = True
        return [self._chunk({"finish_reason": None, "delta": {"role": "assistant", "content": ""}})]

    def last(self, outcome: Outcome, *, include_usage: bool) -> list[dict[str, Any]]:
        """What comes after the last piece of text."""
        body = outcome.result.body
        self._count(body.get("usage") or {})
        choice: dict[str, Any] = {"finish_reason": body.get("finish_reason", "stop")}
        delta: dict[str, Any] = {}
        if calls := body.get("tool_calls"):
            delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
        if self.form == "completion":
            chunks = [self._chunk({**choice, "text": "", "logprobs": None})]
        elif self.form == "native":
            delta = {"role": "assistant", "content": "", **delta}
            return [{**self._chunk({**choice, "delta": delta}), "usage": self.usage()}]
        else:
            chunks = [*self.begin(), self._chunk({**choice, "delta": delta})]
        if include_usage:
            chunks.append({**self._chunk(None), "usage": self.usage()})
        return chunks

    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }

    def _count(self, told: dict[str, Any]) -> None:
        self._prompt_tokens = int(told.get("prompt_tokens", self._prompt_tokens))
        self._completion_tokens = int(told.get("completion_tokens", self._completion_tokens))

    def _chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        kind = "text_completion" if self.form == "completion" else "chat.completion.chunk"
        return {**self._head(kind), "choices": [] if choice is None else [{"index": 0, **choice}]}

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "cmpl" if self.form == "completion" else "chatcmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
