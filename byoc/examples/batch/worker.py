"""A capability without streams: requests are answered with JSON, or with events as they come."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, Field

from byoc import FrameProcessor, StreamServer, request_handler


class Summarise(BaseModel):
    text: str = Field(min_length=1, max_length=100_000)
    sentences: int = Field(1, ge=1, le=20)


def sentences_of(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]


def weights_of(text: str) -> Counter[str]:
    """How often each longer word comes."""
    return Counter(word for word in re.findall(r"\w+", text.lower()) if len(word) > 3)


class Texts(FrameProcessor):
    async def load_model(self, **kwargs: Any) -> None:
        """Where a model would be loaded; requests wait for it."""

    @request_handler("/summarise", concurrency=4)
    def summarise(self, asked: Summarise) -> dict[str, Any]:
        """The sentences that say most, in their order. A plain function: it may take long."""
        weights, sentences = weights_of(asked.text), sentences_of(asked.text)
        best = sorted(sentences, key=lambda each: -sum(weights[word] for word in weights_of(each)))
        chosen = set(best[: asked.sentences])
        return {"summary": " ".join(each for each in sentences if each in chosen)}

    @request_handler("/words")
    async def words(self, asked: Summarise) -> AsyncIterator[dict[str, Any]]:
        """Each of the most frequent words as an event."""
        for word, count in weights_of(asked.text).most_common(20):
            yield {"word": word, "count": count}
            await asyncio.sleep(0)


if __name__ == "__main__":
    port, token = int(os.environ.get("PORT", "8000")), os.environ.get("AUTH_TOKEN") or None
    server = StreamServer(Texts(), port=port, token=token)
    asyncio.run(server.run_forever())
