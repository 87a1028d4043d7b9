"""Captions of the three kinds of models there are: BLIP, BLIP-2, and those that talk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models_here import Heard, job_for, store_of
from pictures_here import Asking, upload, with_own_models

from headrace.batch.contract import Cancelled, Progress
from headrace.batch.pipelines.audio_decoding import wav
from headrace.batch.pipelines.audio_to_text import AudioToText
from headrace.batch.pipelines.image_to_text import ImageToText
from headrace.batch.pipelines.llm import Llm
from headrace.models.tiny import fill
from stream.errors import InvalidInput

BLIP = "demo:tiny-blip"


@pytest.fixture(scope="module")
def asking(request: pytest.FixtureRequest) -> Asking:
    return Asking(store_of(request.config))


def test_a_caption_begins_as_the_prompt_says_and_is_as_long_as_allowed(asking: Asking) -> None:
    heard = Heard()
    made = asking.ask(ImageToText(), BLIP, {"max_new_tokens": 5}, upload(), heard)
    assert made.body["weights"] == "random"
    assert made.body["text"]
    tokens = [told.step for told in heard.told if told.phase == "running"]
    assert tokens == list(range(1, len(tokens) + 1))
    assert 1 <= len(tokens) <= 5
    asked = asking.ask(ImageToText(), BLIP, {"max_new_tokens": 5, "prompt": "a dog"}, upload())
    assert "a dog" in asked.body["text"]
    other = asking.ask(ImageToText(), BLIP, {"max_new_tokens": 5}, upload(seed=1))
    assert other.body["text"]


def test_a_caption_ends_where_the_model_has_no_more_room(asking: Asking) -> None:
    heard = Heard()
    assert asking.ask(ImageToText(), BLIP, {"max_new_tokens": 1024}, upload(), heard).body["text"]
    assert asking.ask(ImageToText(), BLIP, {"prompt": "a dog"}, upload()).body["text"]
    assert max(told.step for told in heard.told if told.phase == "running") <= 63  # of 64 positions
    with pytest.raises(InvalidInput, match="of the 64 tokens"):
        asking.ask(ImageToText(), BLIP, {"prompt": "a dog " * 40}, upload())


def test_a_recogniser_or_a_language_model_is_asked_of_no_captioner(asking: Asking) -> None:
    with pytest.raises(InvalidInput, match="is a blip; speech is recognised by Whisper alone"):
        asking.ask(AudioToText(), BLIP, {}, {"audio": wav(np.zeros(1600, np.float32), 16_000)})
    with pytest.raises(InvalidInput, match="is no language model") as caught:
        asking.ask(Llm(), BLIP, {"messages": [{"role": "user", "content": "hi"}]}, {})
    assert len(caught.value.message) < 400


def test_a_cancelled_caption_ends_at_the_next_word(asking: Asking) -> None:
    job = job_for(asking.store, "image-to-text", BLIP, {"max_new_tokens": 30}, upload())

    class Leaving(Heard):
        def progress(self, progress: Progress) -> None:
            super().progress(progress)
            if progress.phase == "running":
                job.cancel()

    job._listener = heard = Leaving()
    with pytest.raises(Cancelled):
        ImageToText().run(job, asking.models)
    assert len([told for told in heard.told if told.phase == "running"]) == 1
    assert all(entry.leases == 0 for entry in asking.models.entries())


def make_llava(folder: Path) -> None:
    """A model that talks about pictures, in miniature: its own template, a token where the picture goes."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from headrace.models.tiny_text import chat_tokenizer

    tokenizer = chat_tokenizer(("<image>",))
    vision = CLIPVisionConfig(
        image_size=32, patch_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    fill(LlavaForConditionalGeneration(config), "llava").save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}<|{{ m['role'] }}|>{% for c in m['content'] %}"
            "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|end|>"
            "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
        ),
    ).save_pretrained(folder)


def test_a_model_that_talks_is_asked_in_its_form_and_its_answer_does_not_repeat_the_question(
    asking: Asking, tmp_path: Path
) -> None:
    own = Asking(with_own_models(asking.store, tmp_path))
    make_llava(own.store.roots.models / "llava")
    question = "What colour is the house?"
    heard = Heard()
    made = own.ask(ImageToText(), "llava", {"prompt": question, "max_new_tokens": 6}, upload(), heard)
    assert made.body["weights"] == "real"
    assert question not in made.body["text"]
    assert len([told for told in heard.told if told.phase == "running"]) == 6
    texts = {
        own.ask(ImageToText(), "llava", {"prompt": question, "max_new_tokens": 6}, upload(seed=seed)).body[
            "text"
        ]
        for seed in range(4)
    }
    assert len(texts) > 1


def make_blip2(folder: Path) -> None:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
    )

    from headrace.models.tiny_text import chat_tokenizer

    tokenizer = chat_tokenizer(("<image>",))
    tokenizer.chat_template = None
    small = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    config = Blip2Config(
        vision_config=Blip2VisionConfig(image_size=32, patch_size=16, **small).to_dict(),
        qformer_config=Blip2QFormerConfig(vocab_size=32, encoder_hidden_size=16, **small).to_dict(),
        text_config=OPTConfig(
            vocab_size=len(tokenizer), hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=128, word_embed_proj_dim=16,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    fill(Blip2ForConditionalGeneration(config), "blip 2").save_pretrained(folder)
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(pictures, tokenizer, num_query_tokens=4).save_pretrained(folder)


def test_blip_2_captions_pictures(asking: Asking, tmp_path: Path) -> None:
    own = Asking(with_own_models(asking.store, tmp_path))
    make_blip2(own.store.roots.models / "blip2")
    for prompt in ("", "Question: what is it? Answer:"):
        heard = Heard()
        wish = {"prompt": prompt, "max_new_tokens": 4}
        made = own.ask(ImageToText(), "blip2", wish, upload(), heard)
        assert isinstance(made.body["text"], str)
        assert 1 <= len([told for told in heard.told if told.phase == "running"]) <= 4


def test_models_of_other_kinds_are_refused(asking: Asking) -> None:
    for model in ("demo:tiny-sd", "demo:tiny-llama"):
        with pytest.raises(InvalidInput, match="does not describe pictures") as caught:
            asking.ask(ImageToText(), model, {}, upload())
        assert caught.value.field == "model_id"
