"""What is to be seen in a picture, in words: BLIP, BLIP-2, and models that talk about pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines.images import uploaded
from headrace.batch.pipelines.pictures import Pixels
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.tiny import ensure_built
from stream.errors import InvalidInput, NotInstalled

TOKENS = 128
_NO_LIMIT = 1 << 20
QUESTION = "Describe this picture."
"""What a model that wants to be asked is asked when the request has no prompt."""


@dataclass
class Describer:
    """A model that turns pictures into words, and what prepares its inputs."""

    model: Any
    processor: Any

    @property
    def talks(self) -> bool:
        """Whether it is asked in the form of a conversation."""
        return bool(getattr(self.processor, "chat_template", None))

    def prepare(self, picture: Pixels, prompt: str) -> Any:
        from PIL import Image

        image = Image.fromarray(picture)
        if self.talks:
            said = [{"type": "image", "image": image}, {"type": "text", "text": prompt or QUESTION}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": said}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            inputs = self.processor(images=image, text=prompt or None, return_tensors="pt")
        return inputs.to(self.model.device, self.model.dtype)

    def room(self, inputs: Any) -> int:
        """Tokens that the model can make after ``inputs``. Raises `InvalidInput` where there is none."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        asked = inputs.get("input_ids")
        used = 1 if asked is None else int(asked.shape[1])
        if positions is not None and used >= positions:
            raise InvalidInput(
                f"prompt takes {used} of the {positions} tokens that the model can have", field="prompt"
            )
        return _NO_LIMIT if positions is None else int(positions) - used

    def read(self, inputs: Any, tokens: Any) -> str:
        """The new words among ``tokens``: a conversation's answer does not repeat the question."""
        asked = inputs.get("input_ids")
        if self.talks and asked is not None and tokens.shape[1] > asked.shape[1]:
            length = asked.shape[1]
            if torch.equal(tokens[:, :length], asked):
                tokens = tokens[:, length:]
        (text,) = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return str(text).strip()


class ImageToText:
    """``/image-to-text``: see `headrace.batch.contract.BatchPipeline`.

    The blob ``image``; inputs: ``prompt`` (a question, or how a caption begins), ``max_new_tokens``. The body
    has ``text``.
    """

    name: ClassVar[str] = "image-to-text"

    def run(self, job: Job, models: ModelCache) -> Result:
        picture = uploaded(job)
        most = int(job.inputs.get("max_new_tokens") or TOKENS)
        with _acquire(job, models) as lease:
            describer: Describer = lease.model
            with job.turn(), torch.no_grad():
                inputs = describer.prepare(picture, str(job.inputs.get("prompt") or "").strip())
                most = min(most, describer.room(inputs))
                tokens = describer.model.generate(
                    **inputs, max_new_tokens=most, do_sample=False, stopping_criteria=[_telling(job, most)]
                )
            return Result({"text": describer.read(inputs, tokens), "weights": lease.weights})

    def warm(self, job: Job, models: ModelCache) -> None:
        _acquire(job, models).release()


def _telling(job: Job, most: int) -> Any:
    """Tells the job of every word, and ends it when it was given up."""
    from transformers import StoppingCriteria

    class Telling(StoppingCriteria):  # type: ignore[misc]
        """Never stops by itself."""

        made = 0

        def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            self.made += 1
            job.progress(self.made, most, "tokens")
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return Telling()


# -- loading -------------------------------------------------------------------------------------------


def _acquire(job: Job, models: ModelCache) -> Lease:
    assert job.store is not None
    store, device = job.store, job.device
    found = store.find(job.model)
    if found.kind != "transformers":
        raise InvalidInput(f"model {job.model} does not describe pictures ({found.kind})", field="model_id")
    dtype = loading.dtype_for(device, wide=True)
    key = ModelKey(job.model, found.revision, loading.name_of(dtype), device, "image-to-text")

    def load(progress: LoadProgress) -> Loaded:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        built = ensure_built(found, store)
        processor = _processor(AutoProcessor, built.path, job.model)
        try:
            loaded = loading.load_transformers(
                built, AutoModelForImageTextToText, cache=store.roots.cache, device=device, dtype=dtype,
                progress=progress,
            )  # fmt: skip
        except ValueError as error:  # its configuration is none of such a model
            reason = str(error).partition("\n")[0][:200]
            raise InvalidInput(
                f"model {job.model} does not describe pictures: {reason}", field="model_id"
            ) from error
        describer = Describer(loaded.model, processor)
        return Loaded(describer, memory.parts_of(describer, name=str(key)), loaded.weights)

    size = partial(loading.expected_bytes, found, dtype)
    return models.acquire(key, load, size=size, cancel=job.check, on_progress=job.loading)


def _processor(kind: Any, folder: Any, model: str) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        raise NotInstalled(f"model {model} prepares its pictures with what is not here: {reason}") from error
