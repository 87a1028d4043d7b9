"""Language models: answers, ends, streams, and requests that run together; on real small models."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from models_here import Heard, job_for, needs, store_of

from headrace.batch.contract import Cancelled, Job
from headrace.batch.pipelines.llm import Llm
from headrace.batch.turns import DeviceTurns
from headrace.models.cache import ModelCache
from headrace.models.store import ModelStore
from stream.errors import InvalidInput

TINY = "demo:tiny-llama"
SMOL = "demo:smollm2"
smol = needs("smollm2")


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest) -> ModelStore:
    return store_of(request.config)


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache("cpu")


class Asking:
    def __init__(self, store: ModelStore, models: ModelCache) -> None:
        self._store, self._models = store, models
        self._turns = DeviceTurns()
        self._llm = Llm()

    def job(self, model: str, text: str, heard: Heard | None = None, **inputs: Any) -> Job:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "temperature": 0, **inputs}
        if "prompt" in inputs:
            del asked["messages"]
        return job_for(self._store, "llm", model, asked, listener=heard, turns=self._turns)

    def run(self, job: Job) -> dict[str, Any]:
        return self._llm.run(job, self._models).body

    def __call__(self, model: str, text: str, heard: Heard | None = None, **inputs: Any) -> dict[str, Any]:
        return self.run(self.job(model, text, heard, **inputs))


@pytest.fixture
def ask(store: ModelStore, models: ModelCache) -> Asking:
    return Asking(store, models)


def test_an_answer_counts_its_tokens_and_says_why_it_ended_and_with_which_weights(ask: Asking) -> None:
    body = ask(TINY, "Hello", max_tokens=7)
    assert body["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 7
    assert body["usage"]["prompt_tokens"] == len("Hello") + 3
    assert body["weights"] == "random"


def test_what_is_streamed_is_the_answer(ask: Asking) -> None:
    heard = Heard()
    body = ask(TINY, "Hello", heard, max_tokens=60, temperature=1.0, seed=5)
    assert "".join(piece["text"] for piece in heard.pieces) == body["text"]
    assert [p.step for p in heard.told if p.phase == "running"][-1] == body["usage"]["completion_tokens"]


def test_seeds_repeat_an_answer_and_differ_from_each_other(ask: Asking) -> None:
    first, again, other = (ask(TINY, "x", max_tokens=20, temperature=1.0, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["seed"] == 0
    assert other["text"] != first["text"]


def test_requests_together_answer_as_each_does_alone(ask: Asking) -> None:
    """Sixteen requests of different lengths, prompts, seeds and ends, interleaved."""
    asked = [
        {
            "text": "word " * (number % 7 * 30 + 1) + str(number),
            "max_tokens": 5 + number % 11 * 4,
            "temperature": 0 if number % 2 else 0.9,
            "seed": number,
            "stop": ["e", "zz"] if number % 5 == 0 else [],
        }
        for number in range(16)
    ]
    alone = [ask(TINY, **one) for one in asked]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda one: ask(TINY, **one), asked))
    assert together == alone


def test_an_answer_ends_before_a_stop_sequence(ask: Asking) -> None:
    whole = ask(TINY, "Hello", max_tokens=40, temperature=1.0, seed=2)["text"]
    stop = whole[10:13]
    heard = Heard()
    body = ask(TINY, "Hello", heard, max_tokens=40, temperature=1.0, seed=2, stop=[stop, "never said"])
    assert body["finish_reason"] == "stop"
    assert body["text"] == whole[: whole.index(stop)]
    assert "".join(piece["text"] for piece in heard.pieces) == body["text"]
    assert body["usage"]["completion_tokens"] <= 40


def test_a_cancelled_request_leaves_the_others_running(ask: Asking) -> None:
    class Leaves(Heard):
        job: Job

        def piece(self, piece: dict[str, Any]) -> None:
            super().piece(piece)
            if len(self.pieces) == 3:
                self.job.cancel("the client left")

    leaving = Leaves()
    leaving.job = ask.job(TINY, "a", leaving, max_tokens=1500, temperature=1.0, seed=1)
    expected = ask(TINY, "b", max_tokens=50, seed=0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask.run, leaving.job)
        second = pool.submit(ask, TINY, "b", max_tokens=50, seed=0)
        with pytest.raises(Cancelled, match="the client left"):
            first.result()
        assert second.result() == expected
    assert len(leaving.pieces) < 1000


def test_the_computing_thread_ends_with_its_work(ask: Asking) -> None:
    ask(TINY, "x", max_tokens=3)
    end = time.monotonic() + 10
    while any(thread.name == "llm" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(ask: Asking) -> None:
    with pytest.raises(InvalidInput, match=r"3003 tokens; the model's context is 2048") as caught:
        ask(TINY, "x" * 3000)
    assert caught.value.field == "messages"


def test_an_answer_ends_with_the_context(ask: Asking) -> None:
    body = ask(TINY, "x" * 2030, max_tokens=500)
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"], body["finish_reason"]) == (
        2033,
        15,
        "length",
    )


def test_a_plain_prompt_is_continued_without_a_template(ask: Asking) -> None:
    assert ask(TINY, "", prompt="abc", max_tokens=2)["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "user"}, {"content": "no role"}]}, "messages"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_field(ask: Asking, inputs: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ask(TINY, "x", **inputs)
    assert caught.value.field == field


@smol
def test_a_real_model_answers_and_ends_by_itself(ask: Asking) -> None:
    # Nothing is said of how: as its authors advise.
    body = ask(SMOL, "What is the capital of France?", max_tokens=40, temperature=None, seed=1)
    assert "Paris" in body["text"]
    assert (body["finish_reason"], body["weights"]) == ("stop", "real")


@smol
def test_a_real_model_says_the_same_to_several_at_once_as_to_each_alone(ask: Asking) -> None:
    asked = [("Name a colour.", 0), ("Count to five in words, please.", 0), ("What is water?", 7)]
    alone = [ask(SMOL, text, max_tokens=5, temperature=0.8 if seed else 0, seed=seed) for text, seed in asked]
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(ask, SMOL, text, max_tokens=5, temperature=0.8 if seed else 0, seed=seed)
            for text, seed in asked
        ]
        assert [job.result() for job in jobs] == alone
