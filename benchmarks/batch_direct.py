"""The work of a batch request without a worker around it, in a process like the batch engine.

    python -m benchmarks.batch_direct SOCKET

It gets the engine's environment, niceness and threads. A call comes as ``(name, inputs)`` and is answered
with `Answer` as a tuple. Names: ``text-to-image`` and ``llm`` run the worker's own pipeline classes,
``text-to-image library`` and ``llm library`` what a script would call, diffusers and transformers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.workers import Program, wait_until

IMAGE_MODEL, TEXT_MODEL = "demo:tiny-sd", "demo:tiny-llama"
ANSWER_S = 120.0


class Answer(NamedTuple):
    """``ms``: the whole call; ``encoding_ms``: of that, the picture's file. ``data``: the picture's RGB bytes
    before its mark, or the text."""

    ms: float
    encoding_ms: float
    data: bytes


class Direct:
    """Calls to such a process."""

    def __init__(self, path: Path, program: Program) -> None:
        wait_until("the direct process", path.exists, [program], 120)
        self._program = program
        self._connection: Any = Client(str(path))

    def call(self, name: str, inputs: dict[str, Any]) -> Answer:
        """Raises `BenchmarkError` when it does not answer."""
        self._connection.send((name, inputs))
        wait_until(
            f"an answer to {name}", lambda: bool(self._connection.poll(0.5)), [self._program], ANSWER_S
        )
        return Answer(*self._connection.recv())


class Library:
    """diffusers and transformers, called as their documentation does; all is kept from call to call."""

    def __init__(self, store: Any) -> None:
        import diffusers
        import transformers

        from headrace.models.tiny import ensure_built

        folders = {name: ensure_built(store.find(name), store).path for name in (IMAGE_MODEL, TEXT_MODEL)}
        self._pictures: Any = diffusers.StableDiffusionPipeline.from_pretrained(folders[IMAGE_MODEL])
        self._pictures.set_progress_bar_config(disable=True)
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folders[TEXT_MODEL])
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folders[TEXT_MODEL]).eval()

    def picture(self, inputs: dict[str, Any]) -> Answer:
        import torch

        from headrace.batch.pipelines.images import mark
        from headrace.batch.pipelines.pictures import png

        arguments = {name: value for name, value in inputs.items() if name not in ("seed", "model_id")}
        begun = time.perf_counter()
        generator = torch.Generator("cpu").manual_seed(inputs["seed"])
        made = self._pictures(**arguments, generator=generator, output_type="np").images[0]
        pixels = (made * 255).round().clip(0, 255).astype("uint8")
        drawn = time.perf_counter()
        png(mark(pixels))
        ended = time.perf_counter()
        return Answer((ended - begun) * 1000, (ended - drawn) * 1000, pixels.tobytes())

    def text(self, inputs: dict[str, Any]) -> Answer:
        begun = time.perf_counter()
        prompt = self._tokenizer.apply_chat_template(
            inputs["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        length = prompt["input_ids"].shape[1]
        made = self._model.generate(**prompt, max_new_tokens=inputs["max_tokens"], do_sample=False)
        text = self._tokenizer.decode(made[0, length:], skip_special_tokens=True)
        return Answer((time.perf_counter() - begun) * 1000, 0.0, text.encode())


class Pipelines:
    """The worker's own pipeline classes on a cache of their own, without engine, queue and HTTP."""

    def __init__(self, store: Any) -> None:
        from headrace.batch.pipelines.registry import Pipelines as Registry
        from headrace.models.cache import ModelCache

        self._registry, self._cache, self._store = Registry(), ModelCache("cpu"), store
        self._number = 0

    def call(self, pipeline: str, model: str, inputs: dict[str, Any]) -> Answer:
        from headrace.batch.contract import Job

        self._number += 1
        begun = time.perf_counter()
        job = Job(f"direct{self._number}", pipeline, model, inputs)
        job.store = self._store
        result = self._registry.get(pipeline).run(job, self._cache)
        taken = (time.perf_counter() - begun) * 1000
        return Answer(taken, 0.0, str(result.body.get("text", "")).encode())


def serve(path: str) -> None:
    """Answer calls until the other side is gone."""
    import torch

    from headrace.batch.client import default_engine
    from headrace.models.roots import Roots
    from headrace.models.store import ModelStore

    settings = default_engine()
    os.nice(settings.nice)
    torch.set_num_threads(settings.threads)
    store = ModelStore(Roots.from_environment())
    library, own = Library(store), Pipelines(store)
    calls: dict[str, Callable[[dict[str, Any]], Answer]] = {
        "text-to-image library": library.picture,
        "text-to-image": lambda inputs: own.call("text-to-image", IMAGE_MODEL, inputs),
        "llm library": library.text,
        "llm": lambda inputs: own.call("llm", TEXT_MODEL, inputs),
    }
    with Listener(path) as listener, listener.accept() as connection, torch.no_grad():
        while True:
            try:
                name, inputs = connection.recv()
            except EOFError:
                return
            connection.send(tuple(calls[name](inputs)))


if __name__ == "__main__":
    serve(sys.argv[1])
