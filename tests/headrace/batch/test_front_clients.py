"""The published clients against the real routes: PyPI `openai` and `livepeer-ai`."""

import asyncio
import base64
import io
import json
import wave
from importlib import import_module

import av
import httpx2
import pytest
from batch_stand_in import PNG, StandInEngine, batch_server, until, wav

from headrace.batch.subtitles import segments_of, srt, vtt
from stream import sse


@pytest.fixture
async def served():
    async with batch_server(StandInEngine()) as server:
        yield server


# The clients take seconds to import, and every process of a run collects every module.
@pytest.fixture
def openai():
    return import_module("openai")


@pytest.fixture
def errors():
    """Those of livepeer-ai."""
    return import_module("livepeer_ai.models.errors")


@pytest.fixture
async def client(openai, served):
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
        yield client


# -- openai --------------------------------------------------------------------------------------------

HI = [{"role": "user", "content": "hi"}]


async def test_openai_chat(client, served):
    answer = await client.chat.completions.create(model="demo:smollm2", messages=HI, stop="\n", seed=3)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        7,
        3,
        10,
    )
    inputs = served.engine.calls[-1][2]
    assert inputs["stop"] == ["\n"]
    assert [inputs[name] for name in ("temperature", "top_p", "top_k")] == [None] * 3
    short = await client.chat.completions.create(model="", messages=HI, max_completion_tokens=1)
    assert short.choices[0].finish_reason == "length"


async def test_openai_chat_in_pieces(client):
    text, reasons, usage = "", [], None
    stream = await client.chat.completions.create(
        model="", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
        usage = chunk.usage or usage
    assert text == "Hello there"
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}
    assert usage.total_tokens == 10


async def test_openai_completions(client):
    answer = await client.completions.create(model="", prompt="Once")
    assert (answer.object, answer.choices[0].text) == ("text_completion", "Hello there")
    texts = [
        c.choices[0].text async for c in await client.completions.create(model="", prompt="x", stream=True)
    ]
    assert "".join(texts) == "Hello there"


async def test_openai_images(openai, client, served):
    answer = await client.images.generate(model="", prompt="a cat", n=2, size="512x256")
    assert [base64.b64decode(image.b64_json)[:4] for image in answer.data] == [b"\x89PNG"] * 2
    inputs = served.engine.calls[-1][2]
    assert (inputs["width"], inputs["height"], inputs["num_images_per_prompt"]) == (512, 256, 2)
    answer = await client.images.generate(model="", prompt="a cat", response_format="url")
    async with served.client.get(answer.data[0].url) as response:
        assert response.content_type == "image/png"
    for size in ("5x5", "100000x8", "big"):
        with pytest.raises(openai.BadRequestError):
            await client.images.generate(model="", prompt="a cat", size=size)


@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt", "verbose_json"])
async def test_openai_transcriptions(openai, client, served, form):
    granularities = ["word", "segment"] if form == "verbose_json" else openai.omit
    answer = await client.audio.transcriptions.create(
        model="",
        file=("a.wav", wav()),
        response_format=form,
        language="en",
        timestamp_granularities=granularities,
    )
    if form == "json":
        assert answer.text == "Hello world."
    elif form == "verbose_json":
        assert [word.word for word in answer.words] == ["Hello", "world."]
        assert [(s.start, s.end, s.text) for s in answer.segments] == [(0.0, 1.2, " Hello world.")]
        assert (answer.language, answer.duration) == ("en", 1.2)
    elif form == "srt":
        assert answer == "1\n00:00:00,000 --> 00:00:01,200\nHello world.\n"
    elif form == "vtt":
        assert answer == "WEBVTT\n\n00:00:00.000 --> 00:00:01.200\nHello world.\n"
    else:
        assert answer == "Hello world.\n"
    assert served.engine.calls[-1][2]["language"] == "en"


@pytest.mark.parametrize("form", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
async def test_openai_speech(client, form):
    answer = await client.audio.speech.create(model="", voice="alloy", input="hello", response_format=form)
    assert answer.response.headers["content-type"].startswith("audio/")
    assert answer.response.headers["x-headrace-weights"] == "substitute:hibari"
    if form == "pcm":
        assert len(answer.content) == 2 * 24000 * 0.2
        return
    with av.open(io.BytesIO(answer.content)) as file:
        seconds = sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))
    assert seconds == pytest.approx(0.2, abs=0.12)


async def test_openai_models(openai, client):
    names = [model.id async for model in client.models.list()]
    assert {"acme/talker", "demo:smollm2"} <= set(names)
    assert (await client.models.retrieve("acme/talker")).owned_by == "acme"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("acme/none")


async def test_openai_errors(openai, client, served):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="acme/none", messages=HI)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="", messages=HI, temperature=9)
    assert caught.value.param == "temperature"
    served.engine.dies = True
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="", messages=HI)
    assert caught.value.response.headers["retry-after"] == "3"
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="", messages=HI, stream=True)


async def test_openai_errors_have_the_names_of_its_own_fields(openai, client, served):
    asked = {
        "model": client.audio.speech.create(model="acme/none", voice="x", input="hi"),
        "size": client.images.generate(model="", prompt="x", size="63x64"),
        "file": client.audio.transcriptions.create(model="", file=b""),
        "logprobs": client.chat.completions.create(model="", messages=HI, logprobs=True),
        "logit_bias": client.chat.completions.create(model="", messages=HI, logit_bias={"5": 1}),
        "suffix": client.completions.create(model="", prompt="x", suffix="y"),
        "best_of": client.completions.create(model="", prompt="x", best_of=2),
        "output_format": client.images.generate(model="", prompt="x", output_format="jpeg"),
        "stream": client.audio.transcriptions.create(model="", file=b"RIFF", stream=True),
        "include[]": client.audio.transcriptions.create(model="", file=b"RIFF", include=["logprobs"]),
        "stream_format": client.audio.speech.create(model="", voice="x", input="hi", stream_format="sse"),
    }
    for param, asking in asked.items():
        with pytest.raises(openai.APIStatusError) as caught:
            await asking
        assert caught.value.param == param
    assert not served.engine.calls
    await client.chat.completions.create(model="", messages=HI, logprobs=False, logit_bias={})


async def test_openai_completions_take_a_list_of_one_text(openai, client, served):
    answer = await client.completions.create(model="", prompt=["Once upon"])
    assert served.engine.calls[-1][2]["prompt"] == "Once upon"
    assert answer.id.startswith("cmpl-")
    with pytest.raises(openai.UnprocessableEntityError):
        await client.completions.create(model="", prompt=["Once", "twice"])


async def test_a_stream_whose_client_takes_nothing_is_given_up(served, monkeypatch):
    monkeypatch.setattr(sse, "STALL", 0.3)

    async def run(*args, on_piece, **rest):
        for _ in range(2000):
            on_piece({"text": "word " * 4000})
            await asyncio.sleep(0.01)

    monkeypatch.setattr(served.engine, "run", run)
    body = json.dumps({"messages": HI, "stream": True}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]), limit=1)
    head = (
        "POST /llm HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    writer.write("\r\n".join([*head, "", ""]).encode() + body)
    await until(lambda: served.front.service.queue.running == 1)
    await until(lambda: served.front.service.queue.running == 0)
    writer.close()


async def test_openai_takes_its_leave_in_the_middle_of_a_stream(client, served, monkeypatch):
    pieces = asyncio.Event()

    async def run(*args, on_piece, **rest):
        served.engine.running += 1
        try:
            for _ in range(100_000):
                on_piece({"text": "word "})
                pieces.set()
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            served.engine.cancelled += 1
            raise

    monkeypatch.setattr(served.engine, "run", run)
    stream = await client.chat.completions.create(model="", messages=HI, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await until(lambda: served.engine.cancelled == 1)
    await until(lambda: served.front.service.queue.running == 0)


async def test_openai_retries_after_a_full_queue(openai, served):
    served.engine.gate.clear()
    waiting = [asyncio.ensure_future(served.json("/llm", {"messages": HI})) for _ in range(1)]
    await until(lambda: served.engine.running == 1)
    served.front.service.queue.limit = 0
    answers: list[httpx2.Response] = []

    async def seen(response):
        answers.append(response)
        served.front.service.queue.limit = 20
        served.engine.gate.set()

    async with (
        httpx2.AsyncClient(event_hooks={"response": [seen]}) as http,
        openai.AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="any", max_retries=2, http_client=http
        ) as client,
    ):
        assert (await client.chat.completions.create(model="", messages=HI)).choices
    assert [answer.status_code for answer in answers] == [429, 200]
    assert int(answers[0].headers["retry-after"]) >= 1
    await asyncio.gather(*waiting)


# -- livepeer-ai ---------------------------------------------------------------------------------------

FILE = {"file_name": "a.png", "content": PNG}


async def livepeer(served, method, request):
    from livepeer_ai import Livepeer

    with Livepeer(http_bearer="any", server_url=served.url) as client:
        return await asyncio.to_thread(getattr(client.generate, method), request=request)


async def test_livepeer_pictures(served):
    found = await livepeer(served, "text_to_image", {"prompt": "a cat", "seed": 0})
    assert (found.image_response.images[0].seed, found.image_response.images[0].nsfw) == (0, False)
    found = await livepeer(served, "image_to_image", {"prompt": "", "image": FILE, "loras": ""})
    assert found.image_response.images[0].url.startswith("data:image/png")
    assert "image" in served.engine.calls[-1][3]
    found = await livepeer(served, "upscale", {"prompt": "", "image": FILE})
    assert len(found.image_response.images) == 1
    found = await livepeer(served, "image_to_video", {"image": FILE})
    assert found.video_response.images[0].url.startswith("data:video/mp4")
    found = await livepeer(served, "image_to_text", {"image": FILE})
    assert found.image_to_text_response.text == "a cat"
    found = await livepeer(served, "segment_anything2", {"image": FILE, "box": "[1, 2, 3, 4]"})
    assert found.masks_response.masks == "[[[1.5, 1.5]], [[1.5, 1.5]], [[1.5, 1.5]]]"


async def test_livepeer_sound_and_language(served):
    found = await livepeer(served, "audio_to_text", {"audio": {"file_name": "a.wav", "content": wav()}})
    assert found.text_response.chunks[0].timestamp == [0.0, 1.2]
    found = await livepeer(served, "text_to_speech", {"text": "hello"})
    head, _, data = found.audio_response.audio.url.partition(",")
    assert head == "data:audio/wav;base64"
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        assert file.getframerate() == 24000
    found = await livepeer(served, "llm", {"messages": HI})
    assert found.llm_response.choices[0].message.content == "Hello there"
    assert found.llm_response.usage.total_tokens == 10


async def test_livepeer_errors(errors, served):
    for request in ({"prompt": ""}, {"prompt": "x", "width": 17}, {"prompt": "x", "loras": "{"}):
        with pytest.raises(errors.HTTPError) as caught:
            await livepeer(served, "text_to_image", request)
        assert caught.value.data.detail.msg
    served.engine.dies = True
    with pytest.raises(errors.SDKError) as caught:
        await livepeer(served, "text_to_image", {"prompt": "x"})
    assert caught.value.status_code == 503


async def test_livepeer_learns_of_a_wrong_token(errors):
    async with batch_server(StandInEngine(), token="s3cret") as server:
        with pytest.raises(errors.HTTPError) as caught:
            await livepeer(server, "text_to_image", {"prompt": "x"})
        assert "token" in caught.value.data.detail.msg


# -- transcripts ---------------------------------------------------------------------------------------


def test_ends_that_are_not_known_are_the_recordings():
    body = {"chunks": [{"timestamp": [3661.5, None], "text": " a <b>"}], "duration": 3700.25}
    (segment,) = segments_of(body)
    assert segment.end == 3700.25
    assert "01:01:01,500 --> 01:01:40,250\na <b>" in srt([segment])
    assert "01:01:01.500 --> 01:01:40.250\na &lt;b&gt;" in vtt([segment])
    assert segments_of({"chunks": [{"timestamp": [2.0, None], "text": "x"}]})[0].end == 2.0
    assert srt([]) == ""
