from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from stream.errors import InvalidWorkflow  # noqa: E402
from stream.frames import VideoFrame  # noqa: E402
from workflows.check import examine  # noqa: E402
from workflows.nodes.load_image import bound_to  # noqa: E402
from workflows.processor import WorkflowProcessor  # noqa: E402
from workflows.registry import NodeRegistry  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "in" / "sub" / "b.png")
    Image.fromarray(pixels).save(tmp_path / "secret.png")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "out.png").symlink_to(tmp_path / "secret.png")
    return tmp_path / "in"


def test_a_picture_comes_as_it_is_with_an_empty_mask(folder: Path) -> None:
    image, mask = bound_to(folder)().load_image("a.png")
    assert image.shape == (1, 4, 6, 3)
    assert torch.allclose(image[0] * 255, torch.arange(72).reshape(4, 6, 3).float())
    assert mask.shape == (1, 64, 64)
    assert mask.sum() == 0


def test_alpha_becomes_the_mask(folder: Path) -> None:
    pixels = np.zeros((5, 3, 4), np.uint8)
    pixels[..., 3] = 51
    Image.fromarray(pixels).save(folder / "alpha.png")
    image, mask = bound_to(folder)().load_image("alpha.png")
    assert image.shape == (1, 5, 3, 3)
    assert torch.allclose(mask, torch.full((1, 5, 3), 0.8))


def test_sixteen_bits_and_palettes_are_read(folder: Path) -> None:
    Image.fromarray(np.full((2, 2), 32768, np.uint16)).save(folder / "deep.png")
    image, _ = bound_to(folder)().load_image("deep.png")
    assert abs(image.mean().item() - 0.5) < 0.01
    Image.new("P", (2, 2), 0).save(folder / "p.png")
    assert bound_to(folder)().load_image("p.png")[0].shape == (1, 2, 2, 3)


def test_the_folder_is_listed_with_what_lies_below_it(folder: Path) -> None:
    choices = bound_to(folder).INPUT_TYPES()["required"]["image"][0]
    assert choices == ["a.png", "out.png", "sub/b.png"]
    assert bound_to(None).INPUT_TYPES()["required"]["image"][0] == []


OUTSIDE = ["../secret.png", "sub/../../secret.png", "..\\secret.png", "/etc/hostname", "out.png"]
NO_PICTURE = ["nothing.png", ".", "a\0.png", "x" * 5000, "notes.txt", ""]


@pytest.mark.parametrize("name", OUTSIDE + NO_PICTURE)
def test_a_name_cannot_leave_the_folder_nor_name_anything_else(folder: Path, name: str) -> None:
    node_class = bound_to(folder)
    assert node_class.VALIDATE_INPUTS(image=name) is not True
    with pytest.raises(ValueError, match="picture"):
        node_class().load_image(name)
    with pytest.raises(ValueError, match="no input folder is set"):
        bound_to(None).path_of("a.png")


def test_windows_separators_and_the_editors_suffix_are_understood(folder: Path) -> None:
    assert bound_to(folder).VALIDATE_INPUTS(image="sub\\b.png") is True
    assert bound_to(folder).VALIDATE_INPUTS(image="a.png [input]") is True


def blend(picture: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "PrimaryInputLoadImage", "inputs": {"image": "whatever.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": picture}, "_meta": {"title": "Overlay"}},
        "3": {
            "class_type": "ImageBlend",
            "inputs": {"image1": ["1", 0], "image2": ["2", 0], "blend_factor": 1.0, "blend_mode": "normal"},
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }


async def test_a_reference_picture_stands_beside_the_stream(folder: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(folder / "red.png")
    Image.new("RGB", (4, 4), (0, 0, 255)).save(folder / "blue.png")
    processor = WorkflowProcessor(blend("red.png"), NodeRegistry.builtin(folder))
    await processor.load_model()
    frame = VideoFrame.from_tensor(torch.zeros(1, 8, 8, 3))
    result = await processor.process_video_async(frame)
    assert isinstance(result, VideoFrame)
    assert result.tensor[0, 3, 3].tolist() == [1, 0, 0]
    await processor.update_params({"Overlay.image": "blue.png"})
    result = await processor.process_video_async(frame)
    assert isinstance(result, VideoFrame)
    assert result.tensor[0, 3, 3].tolist() == [0, 0, 1]


async def test_a_missing_reference_picture_is_a_problem_of_its_node(folder: Path) -> None:
    processor = WorkflowProcessor(blend("gone.png"), NodeRegistry.builtin(folder))
    with pytest.raises(
        InvalidWorkflow,
        match=r'node 2 "Overlay" \(LoadImage\), input image: the file \'gone.png\' is missing',
    ) as caught:
        await processor.load_model()
    [detail] = caught.value.details
    assert (detail["code"], detail["node_id"], detail["input"]) == ("missing_file", "2", "image")
    assert "a.png" in detail["choices"]


@pytest.mark.parametrize("name", ["sub/b.png", "sub\\b.png", "a.png [input]", "later.png"])
def test_a_picture_that_is_in_the_folder_is_no_problem(folder: Path, name: str) -> None:
    definitions = NodeRegistry.builtin(folder).definitions
    assert definitions["LoadImage"].inputs["image"].choices
    Image.new("RGB", (4, 4)).save(folder / "later.png")  # after the folder was listed
    assert examine(blend(name), definitions)[1] == []


@pytest.mark.parametrize("name", [*OUTSIDE[:3], "nothing.png", "a.png [output]", "a\0.png"])
def test_a_picture_that_is_not_there_is_found_before_anything_runs(folder: Path, name: str) -> None:
    for registry in (NodeRegistry.builtin(folder), NodeRegistry.builtin()):
        [problem] = examine(blend(name), registry.definitions)[1]
        assert (problem.code, problem.node_id, problem.input) == ("missing_file", "2", "image")
