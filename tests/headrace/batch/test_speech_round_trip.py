"""Speech: decoding of recordings, transcripts with times, voices, a text that is spoken and heard again."""

from __future__ import annotations

import io
import re
import wave
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models_here import Heard, job_for, needs, store_of

from headrace.batch.contract import Cancelled
from headrace.batch.errors import UnsupportedMedia
from headrace.batch.pipelines.audio_decoding import Samples, decode_audio, wav
from headrace.batch.pipelines.audio_to_text import AudioToText
from headrace.batch.pipelines.audio_to_text_words import words_of
from headrace.batch.pipelines.text_to_speech import TextToSpeech
from headrace.batch.pipelines.text_to_speech_parts import parts_of
from headrace.models.cache import ModelCache
from headrace.models.store import ModelStore
from stream.errors import InvalidInput

TEXT = "The quick brown fox jumps over the lazy dog. Dr. Brown lives in a small house by the river."
WHISPER, HIBARI = "demo:whisper-tiny.en", "demo:hibari"
KNOWN = ("en", "de", "fr", "es")
hears, speaks = needs("whisper-tiny.en"), needs("hibari")


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest) -> ModelStore:
    return store_of(request.config)


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache("cpu")


def say(store: ModelStore, models: ModelCache, text: str = TEXT, model: str = HIBARI, **inputs: Any) -> Any:
    return TextToSpeech().run(
        job_for(store, "text-to-speech", model, {"text": text, "seed": 1, **inputs}), models
    )


def hear(store: ModelStore, models: ModelCache, audio: bytes, model: str = WHISPER, **inputs: Any) -> Any:
    heard = inputs.pop("listener", None)
    job = job_for(store, "audio-to-text", model, inputs, {"audio": audio}, listener=heard)
    return AudioToText().run(job, models).body


@pytest.fixture(scope="module")
def spoken(store: ModelStore, models: ModelCache) -> bytes:
    return bytes(say(store, models).blobs["speech.wav"])


def tone(seconds: float, rate: int = 48_000) -> Samples:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(kind: str, codec: str, samples: Samples, rate: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


# -- decoding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        ("mp4", "aac"),
        ("webm", "libopus"),
        ("flac", "flac"),
        ("wav", "pcm_s16le"),
        ("mp3", "libmp3lame"),
        ("ogg", "libopus"),
    ],
)
def test_every_container_is_decoded_to_one_channel_of_the_wanted_rate(kind: str, codec: str) -> None:
    samples = decode_audio(encoded(kind, codec, tone(1.5), 48_000), 16_000)
    assert samples.dtype == np.float32
    assert len(samples) / 16_000 == pytest.approx(1.5, abs=0.08)
    middle = samples[4000:20_000]
    loudest = np.abs(np.fft.rfft(middle)).argmax() * 16_000 / len(middle)
    assert loudest == pytest.approx(440, abs=2)


@pytest.mark.parametrize("data", [b"", b"not a recording", b"RIFF\0\0\0\0WAVE", bytes(5000)])
def test_what_is_no_recording_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match=r"malformed|no sound") as caught:
        decode_audio(data, 16_000)
    assert caught.value.status == 415
    assert caught.value.field == "audio"


def test_a_film_without_sound_is_unsupported() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(UnsupportedMedia, match="no sound"):
        decode_audio(file.getvalue(), 16_000)


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=50))
def test_a_wav_file_has_the_samples_within_one_step(values: list[float]) -> None:
    with wave.open(io.BytesIO(wav(np.array(values, np.float32), 24_000))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        back = np.frombuffer(file.readframes(len(values)), "<i2") / 32767
    assert np.abs(back - np.clip(values, -1, 1)).max() <= 1 / 32767


# -- words and parts -----------------------------------------------------------------------------------


def test_tokens_become_words_with_their_marks_and_times() -> None:
    pieces = [" He", "llo", ",", " (", "you", ")", " there", "."]
    words = words_of(
        range(8), [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.4], lambda t: "".join(pieces[n] for n in t), end=1.6
    )
    assert [(w.text, w.start, w.end) for w in words] == [
        (" Hello,", 0.0, 0.5),
        (" (you)", 0.5, 1.0),
        (" there.", 1.0, 1.6),
    ]


def test_languages_without_spaces_have_their_characters_apart() -> None:
    words = words_of(
        range(3), [0.0, 0.5, 1.0], lambda t: "".join("你好。"[n] for n in t), end=1.2, language="zh"
    )
    assert [w.text for w in words] == ["你", "好。"]


@given(st.text("abc .,!?\n", max_size=1200))
def test_parts_are_short_and_lose_no_letter(text: str) -> None:
    parts = list(parts_of(text))
    assert all(0 < len(part) <= 400 for part in parts)
    assert re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", text)


def test_a_title_does_not_end_a_sentence() -> None:
    assert list(parts_of("Dr. Smith met J. Doe. They left!")) == ["Dr. Smith met J. Doe.", "They left!"]


# -- with real models ----------------------------------------------------------------------------------


@hears
@speaks
def test_what_is_spoken_is_heard_again(store: ModelStore, models: ModelCache, spoken: bytes) -> None:
    body = hear(store, models, spoken)
    assert words_in(body["text"]) == words_in(TEXT.replace("Dr.", "Doctor")) or words_in(
        body["text"]
    ) == words_in(TEXT)
    assert (body["weights"], body["language"]) == ("real", "en")
    assert "".join(chunk["text"] for chunk in body["chunks"]) == body["text"]
    times = [moment for chunk in body["chunks"] for moment in chunk["timestamp"]]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= body["duration"]


@hears
@speaks
def test_words_have_times_of_their_own(store: ModelStore, models: ModelCache, spoken: bytes) -> None:
    body = hear(store, models, spoken, timestamps="word")
    assert "".join(chunk["text"] for chunk in body["chunks"]) == body["text"]
    assert len(body["chunks"]) == len(body["text"].split())
    assert all(
        0 <= start <= end <= body["duration"] for start, end in (c["timestamp"] for c in body["chunks"])
    )
    fox = next(c for c in body["chunks"] if "fox" in c["text"])
    assert 0.8 < fox["timestamp"][0] < 2.0


@hears
@speaks
def test_a_recording_longer_than_a_window_is_heard_to_its_end(store: ModelStore, models: ModelCache) -> None:
    first, last = (
        decode_audio(say(store, models, text).blobs["speech.wav"], 16_000)
        for text in ("The quick brown fox.", "This is the very end.")
    )
    recording = np.concatenate([first, np.zeros(32 * 16_000 - len(first), np.float32), last])
    heard = Heard()
    body = hear(store, models, wav(recording, 16_000), listener=heard)
    assert body["duration"] > 33
    assert words_in(body["text"])[:2] == ["the", "quick"]
    assert words_in(body["text"])[-2:] == ["very", "end"]
    assert body["chunks"][-1]["timestamp"][0] >= 30
    steps = [p.step for p in heard.told if p.phase == "running"]
    assert steps == sorted(steps)
    assert steps[-1] >= 15


def test_hearing_can_be_cancelled_between_two_tokens(store: ModelStore, models: ModelCache) -> None:
    audio = {"audio": wav(tone(0.1, 16_000), 16_000)}
    job = job_for(store, "audio-to-text", "demo:tiny-whisper", {"language": "en"}, audio)

    class Leaves(Heard):
        def progress(self, progress: Any) -> None:
            if progress.phase == "running":
                job.cancel()

    job._listener = Leaves()
    with pytest.raises(Cancelled):
        AudioToText().run(job, models)


@hears
@speaks
@pytest.mark.parametrize(
    ("inputs", "field"), [({"language": "de"}, "language"), ({"task": "translate"}, "task")]
)
def test_an_english_model_says_that_it_is_one(
    store: ModelStore, models: ModelCache, spoken: bytes, inputs: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidInput, match="English") as caught:
        hear(store, models, spoken, **inputs)
    assert caught.value.field == field


def test_a_model_of_several_languages_takes_one_or_finds_it_out(
    store: ModelStore, models: ModelCache
) -> None:
    audio = wav(tone(0.1, 16_000), 16_000)
    body = hear(store, models, audio, "demo:tiny-whisper", language="German", task="translate", temperature=1)
    assert (body["language"], body["weights"]) == ("de", "random")
    assert (
        hear(store, models, audio, "demo:tiny-whisper", temperature=1, timestamps="none")["language"] in KNOWN
    )
    with pytest.raises(InvalidInput, match="klingon"):
        hear(store, models, audio, "demo:tiny-whisper", language="klingon")


@speaks
def test_a_seed_repeats_speech_and_speed_changes_its_length(store: ModelStore, models: ModelCache) -> None:
    first, again = (say(store, models, "Hello there.").blobs["speech.wav"] for _ in range(2))
    assert first == again
    slow, fast = (say(store, models, "Hello there.", speed=speed).body["duration"] for speed in (0.5, 2.0))
    assert slow > 1.5 * fast


def test_vits_speaks_with_a_seed_and_leaves_the_model_as_it_was(
    store: ModelStore, models: ModelCache
) -> None:
    model = "demo:tiny-vits"
    results = [say(store, models, "Hello. Goodbye.", model, seed=seed, speed=1.5) for seed in (0, 0, 5)]
    first, again, other = (result.blobs["speech.wav"] for result in results)
    assert first == again != other
    assert results[0].body["weights"] == "random"
    assert results[0].body["sample_rate"] == 16_000
    assert results[0].body["seed"] == 0


def test_a_text_without_anything_to_speak_is_refused(store: ModelStore, models: ModelCache) -> None:
    with pytest.raises(InvalidInput, match="text") as caught:
        say(store, models, " \n ", "demo:tiny-vits")
    assert caught.value.field == "text"


def words_in(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
