"""Sound, rules, warm-up, and what changes by itself, through `WorkflowProcessor`."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from stream.errors import InvalidInput, ProcessorError  # noqa: E402
from stream.frames import AudioFrame, VideoFrame  # noqa: E402
from stream.processor import Emission  # noqa: E402
from workflows import watching  # noqa: E402
from workflows.definitions import InputDefinition  # noqa: E402
from workflows.processor import WorkflowProcessor  # noqa: E402
from workflows.protocol import ExecutionBlocker  # noqa: E402
from workflows.registry import NodeRegistry  # noqa: E402
from workflows.rules import Rule  # noqa: E402
from workflows.sound import Ear  # noqa: E402

RATE = 48_000
LOAD = {"class_type": "LoadTensor", "inputs": {}}
calls: Counter[str] = Counter()


def node(inputs: dict[str, Any], outputs: tuple[str, ...], run: Any, **more: Any) -> Any:
    """A class whose instances call ``run``."""
    declared = {"required": inputs}
    body = {
        "INPUT_TYPES": classmethod(lambda cls: declared),
        "RETURN_TYPES": outputs,
        "FUNCTION": "run",
        "CATEGORY": "test",
        "run": lambda self, **given: run(**given),
    }
    return type("Made", (), body | more)


def save(class_type: str, name: str, source: str) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": {name: [source, 0]}}


async def loaded(graph: Any, classes: dict[str, Any], **options: Any) -> WorkflowProcessor:
    made = WorkflowProcessor(graph, NodeRegistry.builtin().add(classes), **options)
    await made.load_model()
    return made


def picture(value: float = 0.25) -> VideoFrame:
    return VideoFrame(torch.full((1, 4, 6, 3), value), 0, Fraction(1, 30))


async def shown(made: WorkflowProcessor, frame: VideoFrame | None = None) -> Any:
    result = await made.process_video_async(frame or picture())
    return None if result is None else round(float(result.tensor.mean()), 4)  # type: ignore[union-attr]


# -- sound -------------------------------------------------------------------------------------------------


def chunk(number: int, channels: int = 2, length: int = 960, value: float = 0.5) -> AudioFrame:
    samples = np.full((channels, length), value, np.float32)
    samples[-1] *= -1
    layout = "stereo" if channels == 2 else "mono"
    return AudioFrame(samples, number * length, Fraction(1, RATE), rate=RATE, format="fltp", layout=layout)


def sound(node_id: str = "2", milliseconds: float = 100.0) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadAudioTensor", "inputs": {"buffer_size": milliseconds}},
        "2": {"class_type": "Louder", "inputs": {"audio": ["1", 0], "gain": 2.0}},
        "3": save("SaveAudioTensor", "audio", node_id),
    }


def louder(audio: Any, gain: float) -> tuple[Any]:
    calls["louder"] += 1
    return ({**audio, "waveform": audio["waveform"] * gain},)


LOUDER = node({"audio": ("AUDIO",), "gain": ("FLOAT", {"default": 1.0})}, ("AUDIO",), louder)


async def test_sound_goes_through_in_stretches_of_the_declared_length_and_stays_stereo() -> None:
    made = await loaded(sound(), {"Louder": LOUDER})
    info = made.info()
    assert (info.video, info.audio) == (False, True)
    out = [frame for number in range(12) for frame in await made.process_audio_async(chunk(number)) or ()]
    assert [(frame.nb_samples, frame.timestamp, frame.rate) for frame in out] == [
        (4800, 0, RATE),
        (4800, 4800, RATE),
    ]
    # Twice as loud, but not beyond full scale.
    assert out[0].layout == "stereo"
    assert out[0].samples[:, 0].tolist() == [1.0, -1.0]


async def test_a_change_holds_from_the_next_stretch_and_mono_goes_out_on_all_channels() -> None:
    mono = node({"audio": ("AUDIO",), "gain": ("FLOAT", {"default": 1.0})}, ("AUDIO",), lambda audio, gain: (
        {"waveform": audio["waveform"].mean(1, keepdim=True) + gain, "sample_rate": 24_000},
    ))  # fmt: skip
    made = await loaded(sound(), {"Louder": mono})
    await made.update_params({"2.gain": 0.25})
    out = [frame for number in range(5) for frame in await made.process_audio_async(chunk(number)) or ()]
    assert out[0].rate == 24_000
    assert out[0].samples[:, 0].tolist() == [0.25, 0.25]


async def test_a_workflow_that_only_listens_lets_the_sound_pass_and_hears_it_mono() -> None:
    seen = []

    def words(audio: Any) -> tuple[str]:
        seen.append(tuple(audio["waveform"].shape))
        return (f"{float(audio['waveform'].mean()):.2f}",)

    graph = sound() | {
        "2": {"class_type": "Words", "inputs": {"audio": ["1", 0]}},
        "3": save("SaveTextTensor", "data", "2"),
    }
    made = await loaded(graph, {"Words": node({"audio": ("AUDIO",)}, ("STRING",), words)}, warm_runs=0)
    said: list[Emission] = []
    made.bind(said.append)
    frames = [chunk(number) for number in range(5)]
    assert [(await made.process_audio_async(frame))[0] is frame for frame in frames] == [True] * 5  # type: ignore[index]
    assert seen == [(1, 1, 4800)]
    assert [emission.data for emission in said] == ["0.00"]


async def test_pictures_are_worked_on_with_the_last_of_the_sound() -> None:
    def level(audio: Any) -> tuple[Any]:
        calls["level"] += 1
        return (float(audio["waveform"][0, 0].abs().mean()),)

    graph = {
        "in": LOAD,
        "ear": {"class_type": "LoadAudioTensor", "inputs": {"buffer_size": 20.0}},
        "level": {"class_type": "Level", "inputs": {"audio": ["ear", 0]}},
        "mix": {"class_type": "Mix", "inputs": {"image": ["in", 0], "level": ["level", 0]}},
        "out": save("SaveTensor", "images", "mix"),
    }
    mix = node({"image": ("IMAGE",), "level": ("FLOAT",)}, ("IMAGE",), lambda image, level: (image + level,))
    made = await loaded(graph, {"Level": node({"audio": ("AUDIO",)}, ("FLOAT",), level), "Mix": mix})
    info = made.info()
    assert (info.video, info.audio) == (True, True)
    assert await shown(made) == 0.25, "before there is sound, there is silence"
    calls.clear()
    await made.process_audio_async(chunk(0, channels=1, value=0.5))
    assert [await shown(made), await shown(made)] == [0.75, 0.75]
    assert calls["level"] == 1, "what depends on sound alone runs with sound"


@given(st.lists(st.integers(1, 700), min_size=1, max_size=20), st.integers(1, 20))
def test_an_ear_loses_nothing_and_keeps_time(lengths: list[int], milliseconds: int) -> None:
    ear, heard, position = Ear(), [], 0
    for length in lengths:
        samples = np.arange(position, position + length, dtype=np.float32)[None]
        frame = AudioFrame(samples, position, Fraction(1, 8000), rate=8000, format="fltp", layout="mono")
        heard += ear.take(frame, milliseconds)
        position += length
    wanted = 8 * milliseconds
    assert len(heard) == position // wanted
    for samples, begun in heard:
        assert samples.shape == (1, wanted)
        assert samples[0, 0] == begun * 8000


# -- rules -------------------------------------------------------------------------------------------------


def seeded(rule: str | None, seed: int = 3) -> dict[str, Any]:
    entry: dict[str, Any] = {"class_type": "Seed", "inputs": {"seed": seed}, "_meta": {"title": "Seed"}}
    if rule is not None:
        entry["_meta"]["control_after_generate"] = {"seed": rule}
    return {
        "fixed": {"class_type": "Seed", "inputs": {"seed": 1}},
        "seed": entry,
        "fill": {"class_type": "Fill", "inputs": {"a": ["seed", 0], "b": ["fixed", 0]}},
        "out": save("SaveTensor", "images", "fill"),
    }


def draw(seed: int) -> tuple[int]:
    calls[f"seed {seed}"] += 1
    return (seed,)


SEEDED = {
    "Seed": node({"seed": ("INT", {"default": 0, "min": 0, "max": 4})}, ("NOISE",), draw),
    "Fill": node(
        {"a": ("NOISE",), "b": ("NOISE",)},
        ("IMAGE",),
        lambda a, b: (torch.full((1, 4, 6, 3), a / 8 + b / 64),),
    ),
}


async def test_a_graph_without_input_makes_pictures_by_its_rules_and_runs_the_rest_once() -> None:
    calls.clear()
    made = await loaded(seeded("increment"), SEEDED)
    info = made.info()
    assert (info.video, info.generates) == (True, 30.0)
    assert calls["seed 1"] <= 3, "warm-up counts from the beginning"
    constant = calls["seed 1"]
    values = [round((await shown(made) - 1 / 64) * 8) for _ in range(4)]
    assert values == [3, 4, 0, 1], "in range, and over its end to the other"
    assert calls["seed 1"] == constant + 1  # as the seed that wrapped


def twice_seeded() -> dict[str, Any]:
    """Two nodes with one seed of the file."""
    graph = seeded("randomize")
    meta = {"control_after_generate": {"seed": "randomize"}, "shared_value": {"seed": "subgraph.seed"}}
    for node_id in ("seed", "other"):
        graph[node_id] = {"class_type": "Seed", "inputs": {"seed": 3}, "_meta": meta}
    graph["fill"] = {"class_type": "Fill", "inputs": {"a": ["seed", 0], "b": ["other", 0]}}
    return graph


@pytest.mark.parametrize("slow", [False, True])
async def test_a_seed_that_two_nodes_share_stays_one(slow: bool) -> None:
    pairs: list[tuple[int, int]] = []

    def fill(a: int, b: int) -> Any:
        pairs.append((a, b))
        picture = torch.full((1, 4, 6, 3), a / 8)
        return {"expand": {}, "result": (picture,)} if slow else (picture,)

    wide = node({"seed": ("INT", {"default": 0, "min": 0, "max": 9})}, ("NOISE",), draw)
    fills = node({"a": ("NOISE",), "b": ("NOISE",)}, ("IMAGE",), fill)
    graph = twice_seeded()
    graph["other"] = {**graph["other"], "class_type": "Wide"}
    made = await loaded(graph, {**SEEDED, "Wide": wide, "Fill": fills})
    for _ in range(20):
        await shown(made)
    assert all(a == b for a, b in pairs)
    assert {a for a, _ in pairs} <= {0, 1, 2, 3, 4}, "what both take"
    assert len({a for a, _ in pairs}) > 1
    await made.update_params({"other.seed.control_after_generate": "increment", "seed.seed": 1})
    pairs.clear()
    for _ in range(3):
        await shown(made)
    assert pairs == [(1, 1), (2, 2), (3, 3)], "a change of one is a change of both"
    with pytest.raises(InvalidInput, match=r"seed\.seed shares.*at most 4"):
        await made.update_params({"other.seed": 9})
    await made.update_params({"other.seed": 3, "seed.seed": 0, "seed.seed.control_after_generate": "fixed"})
    await shown(made)
    assert pairs[-1] == (0, 3), "unless each is given"


async def test_a_rule_is_a_parameter_and_a_graph_with_another_rule_is_a_change_of_it() -> None:
    made = await loaded(seeded("increment"), SEEDED)
    key = "seed.seed.control_after_generate"
    about = made.info().schema["properties"][key]
    assert about["default"] == "increment"
    assert "randomize" in about["enum"]
    await made.update_params({key: "fixed"})
    assert len({await shown(made) for _ in range(3)}) == 1
    plans = made._running.plans  # type: ignore[union-attr]
    other = seeded("decrement")
    await made.update_params({"prompt": dict(reversed(other.items()))})
    assert made._running.plans == plans, "the order in which nodes are written means nothing"  # type: ignore[union-attr]
    assert [round((await shown(made) - 1 / 64) * 8) for _ in range(5)] == [3, 2, 1, 0, 4]


@given(
    st.sampled_from(["increment", "decrement", "randomize", "increment-wrap"]),
    st.integers(-5, 5),
    st.integers(0, 9),
    st.integers(1, 4),
)
def test_a_rule_stays_within_the_range(kind: str, low: int, span: int, step: int) -> None:
    declared = InputDefinition("seed", "INT", minimum=low, maximum=low + span, step=step)
    rule = Rule(kind, declared, low)
    values = [rule.next() for _ in range(30)]
    assert values[0] == low
    assert all(low <= value <= low + span for value in values)
    rule.rewind()
    assert rule.next() == low


# -- warm-up -----------------------------------------------------------------------------------------------


def through(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {
        "in": LOAD,
        "x": {"class_type": class_type, "inputs": {"image": ["in", 0]} | inputs},
        "out": save("SaveTensor", "images", "x"),
    }


def percents_of(said: list[Emission]) -> list[int]:
    return [emission.data["percent"] for emission in said if emission.data["type"] == "progress"]


async def test_every_node_that_is_loaded_counts_as_progress() -> None:
    classes = {"Load": node({"more": ("FLOAT", {"default": 1.0})}, ("FLOAT",), lambda more: (more,))}
    graph = {str(number): {"class_type": "Load", "inputs": {"more": float(number)}} for number in range(1, 4)}
    graph["5"] = {"class_type": "Load", "inputs": {"more": ["1", 0]}}
    classes["Use"] = node(
        {"image": ("IMAGE",), "a": ("FLOAT",), "b": ("FLOAT",), "c": ("FLOAT",)},
        ("IMAGE",),
        lambda image, a, b, c: (image * 1,),
    )
    graph |= through("Use", a=["5", 0], b=["2", 0], c=["3", 0])
    made = WorkflowProcessor(graph, NodeRegistry.builtin().add(classes))
    said: list[Emission] = []
    made.bind(said.append)
    await made.load_model()
    assert [percent for percent in percents_of(said) if percent <= 50][:5] == [0, 12, 25, 38, 50]


async def test_warm_up_uses_made_up_pictures_of_the_streams_size_and_tells_how_far_it_is() -> None:
    seen: list[Any] = []

    def look(image: Any) -> tuple[Any]:
        seen.append(image)
        return (image * 1,)

    def fail(image: Any) -> tuple[Any]:
        raise ArithmeticError("not on this")

    classes = {
        "Look": node({"image": ("IMAGE",)}, ("IMAGE",), look),
        "Fail": node({"image": ("IMAGE",)}, ("IMAGE",), fail),
    }
    made = WorkflowProcessor(through("Look"), NodeRegistry.builtin().add(classes))
    said: list[Emission] = []
    made.bind(said.append)
    await made.load_model(width=32, height=16)
    assert [tuple(image.shape) for image in seen] == [(1, 16, 32, 3)]
    assert all(0 <= float(image.min()) < 0.1 and 0.9 < float(image.max()) <= 1 for image in seen)
    assert made.progress() == ("Warmed up", 1.0)
    assert percents_of(said) == [0, 50, 100]
    await shown(made)
    seen.clear()
    other = {**through("Look"), "y": {"class_type": "Look", "inputs": {"image": ["x", 0]}}}
    other["out"] = save("SaveTensor", "images", "y")
    await made.prepare_params({"workflow": other})
    assert {tuple(image.shape) for image in seen} == {(1, 4, 6, 3)}
    with pytest.raises(
        ProcessorError, match=r"on a made-up picture of 6 x 4: node x \(Fail\): ArithmeticError"
    ):
        await made.prepare_params({"workflow": through("Fail")})
    assert await shown(made) == 0.25


async def test_warm_up_costs_no_more_than_it_can_prove() -> None:
    seen: list[tuple[int, ...]] = []

    def look(image: Any) -> tuple[Any]:
        seen.append(tuple(image.shape[1:3]))
        if image.shape[1] < 100 and picky:
            raise ArithmeticError("too low")
        return (image * 1,)

    classes = {"Look": node({"image": ("IMAGE",)}, ("IMAGE",), look)}

    async def sizes(device: str, *, plain: bool) -> list[tuple[int, ...]]:
        made = WorkflowProcessor(through("Look"), NodeRegistry.builtin().add(classes, plain=plain))
        seen.clear()
        await made.load_model(width=320, height=120, device=device)
        return list(seen)

    picky = False
    assert await sizes("cpu", plain=True) == await sizes("cuda:0", plain=True) == [(64, 64)]
    assert await sizes("cpu", plain=False) == [(120, 320)]
    assert await sizes("cuda:0", plain=False) == [(120, 320)] * 2
    picky = True
    assert await sizes("cpu", plain=True) == [(64, 64), (120, 320)], "refused only for what a real size does"


# -- execution blockers, constants that are written into, and what changes by itself -----------------------


async def test_a_blocked_picture_does_not_go_out() -> None:
    def gate(image: Any) -> tuple[Any]:
        return (ExecutionBlocker("dark") if float(image.mean()) < 0.1 else image * 2,)

    made = await loaded(through("Gate"), {"Gate": node({"image": ("IMAGE",)}, ("IMAGE",), gate)})
    assert [await shown(made, picture(value)) for value in (0.25, 0.0, 0.5)] == [0.5, None, 1.0]


async def test_a_constant_that_a_node_writes_into_is_made_anew_and_then_copied() -> None:
    calls.clear()

    def make(value: float) -> tuple[Any]:
        calls["make"] += 1
        return ({"samples": torch.full((1, 4, 6, 3), value)},)

    def spoil(image: Any, latent: Any) -> tuple[Any]:
        return (image + latent["samples"].mul_(2),)

    graph = through("Spoil", latent=["made", 0]) | {
        "made": {"class_type": "Make", "inputs": {"value": 0.125}}
    }
    classes = {
        "Make": node({"value": ("FLOAT", {"default": 0.0})}, ("LATENT",), make),
        "Spoil": node({"image": ("IMAGE",), "latent": ("LATENT",)}, ("IMAGE",), spoil),
    }
    one = await loaded(graph, classes, warm_runs=0)
    other = WorkflowProcessor(copy.deepcopy(graph), one._registry, warm_runs=0)
    await other.load_model()
    assert calls["make"] == 1
    assert [await shown(one) for _ in range(3)] == [0.5, 0.5, 0.5]
    assert [await shown(other) for _ in range(3)][1:] == [0.5, 0.5], "whoever shares it notices, too"


class Watched:
    """A constant that reads something which changes."""

    RETURN_TYPES = ("NUMBER",)
    FUNCTION = "run"
    CATEGORY = "test"
    content: ClassVar[float] = 0.0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> float:  # noqa: N802
        return cls.content

    def run(self) -> tuple[float]:
        calls["watched"] += 1
        return (self.content,)


async def test_what_a_node_reads_is_asked_for_beside_the_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "ASK_EVERY", 0.0)
    calls.clear()
    add = node(
        {"image": ("IMAGE",), "number": ("NUMBER",)}, ("IMAGE",), lambda image, number: (image + number,)
    )
    graph = through("Plus", number=["read", 0]) | {"read": {"class_type": "Watched", "inputs": {}}}
    made = await loaded(graph, {"Plus": add, "Watched": Watched})
    try:
        assert await shown(made) == 0.25
        Watched.content = 0.5
        for _ in range(2000):
            if await shown(made) == 0.75:
                break
            await asyncio.sleep(0.01)
        assert await shown(made) == 0.75
        assert calls["watched"] == 2
    finally:
        Watched.content = 0.0
        await made.on_stream_stop()
