"""Against an existing ComfyUI: ``make test-comfyui COMFYUI=DIR [COMFYUI_PYTHON=PATH]``."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from textwrap import dedent
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio

from headrace.comfyui.host.options import ComfyOptions
from headrace.comfyui.installation import Installation
from headrace.comfyui.service import ComfyService, ComfySettings
from headrace.comfyui.setup import wait_until_known
from headrace.engine.client import EngineProcessor
from headrace.engine.link import Message
from headrace.models.ledger_service import LedgerService
from headrace.models.refs import ModelKey
from stream.errors import HeadraceError, InvalidWorkflow
from stream.frames import Picture, VideoFrame

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "live"))

from live_rig import Viewer, clip, running

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("HEADRACE_TEST_COMFYUI", "")
PYTHON = os.environ.get("HEADRACE_TEST_COMFYUI_PYTHON") or None
READY = 600.0

pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="no ComfyUI is named (make test-comfyui COMFYUI=DIR)"),
    pytest.mark.asyncio(loop_scope="module"),
]

LOAD = {"class_type": "LoadTensor", "inputs": {}}


def graph(*nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """in -> nodes called a, b, c, ... -> out, which shows the first output of the last one."""
    made: dict[str, Any] = {"in": LOAD}
    for name, (class_type, inputs) in zip("abcdefgh", nodes, strict=False):
        made[name] = {"class_type": class_type, "inputs": inputs}
    made["out"] = {"class_type": "SaveTensor", "inputs": {"images": ["abcdefgh"[len(nodes) - 1], 0]}}
    return made


FRAME: list[Any] = ["in", 0]
CASES: dict[str, dict[str, Any]] = {
    "invert": graph(("ImageInvert", {"image": FRAME})),
    "scale": graph(
        (
            "ImageScale",
            {"image": FRAME, "upscale_method": "lanczos", "width": 96, "height": 72, "crop": "center"},
        )
    ),
    "bicubic": graph(("ImageScaleBy", {"image": FRAME, "upscale_method": "bicubic", "scale_by": 1.5})),
    "blend": graph(
        ("ImageInvert", {"image": FRAME}),
        (
            "ImageBlend",
            {"image1": FRAME, "image2": ["a", 0], "blend_factor": 0.3, "blend_mode": "soft_light"},
        ),
    ),
    "blur": graph(("ImageBlur", {"image": FRAME, "blur_radius": 3, "sigma": 1.5})),
    "quantize": graph(("ImageQuantize", {"image": FRAME, "colors": 8, "dither": "bayer-4"})),
    "sharpen": graph(("ImageSharpen", {"image": FRAME, "sharpen_radius": 1, "sigma": 1.0, "alpha": 1.0})),
    "masks": graph(
        ("ImageToMask", {"image": FRAME, "channel": "red"}),
        ("InvertMask", {"mask": ["a", 0]}),
        ("GrowMask", {"mask": ["b", 0], "expand": 2, "tapered_corners": True}),
        ("FeatherMask", {"mask": ["c", 0], "left": 4, "top": 4, "right": 4, "bottom": 4}),
        ("MaskToImage", {"mask": ["d", 0]}),
    ),
    "composite": graph(
        ("ImageInvert", {"image": FRAME}),
        (
            "ImageCompositeMasked",
            {"destination": FRAME, "source": ["a", 0], "x": 8, "y": 8, "resize_source": False},
        ),
    ),
}
"""Of both kinds: at 0.3.64 the post-processing nodes are schema classes, scaling and masks the older kind."""

PACK = """
    import asyncio
    import torch
    import comfy.model_management, comfy.model_patcher, comfy.utils, folder_paths
    from comfy_api.latest import ComfyExtension, io

    class Weights:
        # Reads a file and brings what is in it to the device, as loaders do.

        RETURN_TYPES = ("FLOAT",)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"ckpt_name": (folder_paths.get_filename_list("checkpoints"),)}}

        def run(self, ckpt_name):
            made = comfy.utils.load_torch_file(folder_paths.get_full_path("checkpoints", ckpt_name))
            self.model = torch.nn.Linear(2048, 2048, bias=False)
            self.model.load_state_dict(made)
            device = comfy.model_management.get_torch_device()
            self.patcher = comfy.model_patcher.ModelPatcher(self.model, device, torch.device("cpu"))
            comfy.model_management.load_models_gpu([self.patcher])
            return (float(self.model.weight[0, 0]),)

    class Halve:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"image": ("IMAGE",), "by": ("FLOAT", {"default": 0.5})}}

        async def run(self, image, by):
            await asyncio.sleep(0)
            return (image * by,)

    class Doubled(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="Doubled", category="test",
                inputs=[io.Image.Input("image"), io.Float.Input("by", default=2.0)],
                outputs=[io.Image.Output()],
            )

        @classmethod
        async def execute(cls, image, by):
            await asyncio.sleep(0)
            return io.NodeOutput(image * by)

    class Extension(ComfyExtension):
        async def get_node_list(self):
            return [Doubled]

    async def comfy_entrypoint():
        return Extension()
"""


@dataclass
class Around:
    """The installation, and folders of the test's beside it."""

    installation: Installation
    folder: Path

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("--cpu", "--extra-model-paths-config", str(self.folder / "paths.yaml"))


def digest_of(folder: Path) -> dict[str, str]:
    """Every file and folder but for byte code and the history of versions."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "__pycache__" not in name and not name.startswith(".git/") and not _in_environment(name):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def _in_environment(name: str) -> bool:
    return name.partition("/")[0] in ("venv", ".venv", "python_embeded", "models", "output")


def write_weights(path: Path) -> None:
    """16 MiB of 0.5 as ``weight``."""
    data = np.full((2048, 2048), 0.5, np.float32).tobytes()
    about = {"weight": {"dtype": "F32", "shape": [2048, 2048], "data_offsets": [0, len(data)]}}
    header = json.dumps(about).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    installation = Installation.at(Path(FOLDER), PYTHON)
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("input/3d", "packs/of_the_test", "packs/broken", "packs/quits", "checkpoints", "server"):
        (folder / name).mkdir(parents=True)
    source = dedent(PACK)
    # One pack of each kind: a module has either mappings or an entry point.
    older = (
        source[: source.index("class Doubled")]
        + 'NODE_CLASS_MAPPINGS = {"Halve": Halve, "Weights": Weights}\n'
    )
    newer = source[: source.index("class Weights")] + source[source.index("class Doubled") :]
    (folder / "packs/of_the_test/__init__.py").write_text(older)
    (folder / "packs/newer.py").write_text(newer)
    (folder / "packs/broken/__init__.py").write_text("import a_package_that_nobody_has\n")
    (folder / "packs/quits/__init__.py").write_text("import sys\nsys.exit(1)\n")
    write_weights(folder / "checkpoints/of-the-test.safetensors")
    places = {"base_path": str(folder), "custom_nodes": "packs", "checkpoints": "checkpoints"}
    lines = "".join(f"    {name}: {place}\n" for name, place in places.items())
    (folder / "paths.yaml").write_text("test:\n" + lines)
    before = digest_of(installation.directory)
    yield Around(installation, folder)
    assert digest_of(installation.directory) == before, "a file of the installation was changed"


BUDGET = 64 << 30


@pytest.fixture(scope="module")
def ledger() -> LedgerService:
    return LedgerService(BUDGET)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def service(around: Around, ledger: LedgerService) -> AsyncIterator[ComfyService]:
    settings = ComfySettings(
        around.installation,
        ComfyOptions(
            str(around.installation.directory),
            "",
            arguments=around.arguments,
            input_folder=str(around.folder / "input"),
        ),
        around.folder / "cache",
        device="cpu",
        second="off",
    )
    made = ComfyService(settings, lambda definitions: None, ledger)
    await wait_until_known(made, READY)
    yield made
    await made.stop()


async def session(service: ComfyService, workflow: dict[str, Any]) -> EngineProcessor:
    made = EngineProcessor(service.first, {"kind": "workflow", "workflow": workflow}, session="s")
    await made.load_model()
    await made.on_stream_start({})
    return made


def noise() -> Any:
    return np.random.default_rng(7).integers(0, 256, (64, 80, 3), np.uint8)


async def through(processor: EngineProcessor, pixels: Any) -> Any:
    picture = Picture.from_rgb(pixels)
    result = await processor.process_video_async(VideoFrame.from_picture(picture, 0, Fraction(1, 30)))
    assert isinstance(result, VideoFrame)
    return result.picture.rgb()


async def test_packs_by_extra_paths_are_loaded_and_bad_ones_are_named(service: ComfyService) -> None:
    packs = {pack["name"]: pack for pack in service.report()["packs"]}
    assert packs["of_the_test"]["loaded"]
    assert packs["newer.py"]["loaded"]
    failed = {pack["name"]: pack["reason"] for pack in service.failed_packs()}
    assert "a_package_that_nobody_has" in failed["broken"]
    assert "sys.exit" in failed["quits"]
    assert service.definitions["CheckpointLoaderSimple"].inputs["ckpt_name"].choices is not None
    assert "of-the-test.safetensors" in (
        service.definitions["CheckpointLoaderSimple"].inputs["ckpt_name"].choices or ()
    )
    assert not any(
        known.python_module.startswith("comfy_api_nodes") for known in service.definitions.values()
    )


async def test_object_info_is_that_of_its_own_server(service: ComfyService, around: Around) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    own = around.folder / "server"
    arguments = [
        *("--input-directory", around.folder / "input", "--output-directory", own, "--temp-directory", own),
        *("--user-directory", own, "--database-url", "sqlite:///:memory:", "--disable-api-nodes"),
        *(
            "--port",
            port,
            "--whitelist-custom-nodes",
            "of_the_test",
            "newer.py",
            "--disable-all-custom-nodes",
        ),
    ]
    process = await asyncio.create_subprocess_exec(
        around.installation.python,
        "main.py",
        *around.arguments,
        *map(str, arguments),
        cwd=around.installation.directory,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        theirs = await _asked(f"http://127.0.0.1:{port}/object_info", process)
    finally:
        process.kill()
        await process.wait()
    kept = next((around.folder / "cache").glob("*.json"))
    ours = json.loads(kept.read_bytes())
    for entry in ours.values():
        entry.pop("headrace", None)
    shared = set(theirs) & set(ours)
    assert len(shared) > 300
    # Packs in its own folder are not in the server's, which loads only the test's.
    builtin = {name for name, entry in ours.items() if not entry["python_module"].startswith("custom_nodes")}
    assert builtin | {"Halve", "Weights", "Doubled"} == set(theirs)
    assert [name for name in theirs if theirs[name] != ours[name]] == []


async def _asked(url: str, process: asyncio.subprocess.Process) -> Any:
    until = time.monotonic() + READY
    async with aiohttp.ClientSession() as http:
        while time.monotonic() < until:
            assert process.returncode is None, "its own server does not start"
            try:
                async with http.get(url) as answer:
                    return await answer.json()
            except aiohttp.ClientError:
                await asyncio.sleep(0.5)
    raise AssertionError("its own server does not answer")


async def run(*command: str, env: dict[str, str]) -> None:
    """Run a program to its end; fails with what it says when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **env}
    )
    async with asyncio.timeout(READY):
        said, _ = await process.communicate()
    assert process.returncode == 0, said[-3000:].decode(errors="replace")


async def test_pictures_equal_those_of_direct_calls_bit_for_bit(
    service: ComfyService, around: Around
) -> None:
    np.save(around.folder / "frame.npy", noise())
    (around.folder / "cases.json").write_text(json.dumps(CASES))
    out = around.folder / "direct.npz"
    await run(
        around.installation.python,
        str(Path(__file__).with_name("direct.py")),
        str(ROOT / "headrace/engine/bootstrap.py"),
        str(around.installation.directory),
        *(str(around.folder / name) for name in ("cases.json", "frame.npy")),
        str(out),
        env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""},
    )
    direct = np.load(out)
    for name, workflow in CASES.items():
        processor = await session(service, workflow)
        made = await through(processor, noise())
        await processor.on_stream_stop()
        assert made.shape == direct[name].shape, name
        assert np.array_equal(made, direct[name]), f"{name}: {np.abs(made - direct[name]).max()} apart"
        assert len(np.unique(made)) > 1, name


async def test_async_nodes_of_both_kinds_run_and_their_parameters_are_live(service: ComfyService) -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    both = graph(("Halve", {"image": FRAME, "by": 0.5}), ("Doubled", {"image": ["a", 0], "by": 4.0}))
    processor = await session(service, both)
    assert (await through(processor, grey) == 200).all()
    await processor.update_params({"b.by": 1.0})
    assert (await through(processor, grey) == 50).all()
    assert processor.info().schema["properties"]["b.by"]["type"] == "number"
    await processor.on_stream_stop()


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "..\\..\\secret.png [output]", "~/secret.png", "a/../../b.png"]
)
async def test_load_image_cannot_leave_its_folder(service: ComfyService, name: str) -> None:
    workflow = graph(
        ("LoadImage", {"image": name}),
        (
            "ImageBlend",
            {"image1": FRAME, "image2": ["a", 0], "blend_factor": 0.5, "blend_mode": "normal"},
        ),
    )
    workflow["in"] = {**LOAD, "_meta": {"title": "input"}}
    with pytest.raises(InvalidWorkflow) as caught:
        await session(service, workflow)
    assert caught.value.details[0]["code"] == "not_confined"


async def test_a_stream_goes_on_in_comfyui_when_it_is_killed_and_moves_to_a_second_one(
    around: Around, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a viewer sees: red and blue are bright while ComfyUI inverts, dark again while it only blurs."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    settings = {
        "comfyui": around.installation.directory,
        "comfyui_python": around.installation.python,
        "comfyui_args": " ".join(around.arguments),
        "comfyui_second": "on",
        "comfyui_prefer": True,
        "batch": False,
    }
    segments = clip(300, fps=10)
    async with running(tmp_path, **settings) as rig:
        assert rig.worker.comfyui is not None
        comfyui = rig.worker.comfyui.service
        await comfyui.wait_introduced(READY)
        assert (await rig.get("/comfyui"))["engines"][0]["state"] == "ready"
        inverting = graph(("Halve", {"image": FRAME, "by": 1.0}), ("ImageInvert", {"image": ["a", 0]}))
        params = {"width": 128, "height": 128, "workflow": inverting}
        status, body = await rig.start(params=params)
        assert status == 200, body
        viewer = Viewer(rig.channel("one-out"))
        watching = asyncio.ensure_future(viewer.run())
        playing = asyncio.ensure_future(rig.play(segments))
        await rig.until(lambda report: viewer.pictures and viewer.pictures[-1].mean[0] > 150, timeout=READY)
        first = comfyui.engines[0]
        generation = first.generation
        first.condemn("is killed by the test")
        await rig.until(lambda report: first.generation > generation, timeout=READY)
        seen = len(viewer.pictures)
        await rig.until(
            lambda report: any(one.mean[0] > 150 for one in viewer.pictures[seen:]), timeout=READY
        )
        blurring = graph(("Halve", {"image": FRAME, "by": 0.5}), ("Doubled", {"image": ["a", 0], "by": 2.0}))
        begun = viewer.pictures[-1].at
        status, body = await rig.post("/stream/params", {"workflow": blurring}, **{"X-Stream-Id": "one"})
        assert status == 200, body
        assert comfyui.uses["comfyui-2"] == 1
        await rig.until(lambda report: viewer.pictures[-1].mean[0] < 100, timeout=READY)
        gap = viewer.longest_gap(since=begun)
        sys.stdout.write(f"longest gap between pictures over the swap: {gap * 1000:.0f} ms\n")
        bad = graph(("Halve", {"image": FRAME, "by": 1.0}), ("NoSuchClass", {"image": ["a", 0]}))
        status, body = await rig.post("/stream/params", {"workflow": bad}, **{"X-Stream-Id": "one"})
        assert status == 400
        mixed = graph(("Halve", {"image": FRAME, "by": 1.0}), ("StyleTransfer", {"image": ["a", 0]}))
        status, body = await rig.post("/stream/params", {"workflow": mixed}, **{"X-Stream-Id": "one"})
        assert status == 400
        assert "different engines" in json.dumps(body)
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        await rig.post("/stream/stop", {"stream_id": "one"})
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    # The loop is the module's; what waits in its threads is this test's.
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_file_is_processed_by_the_command_line(around: Around, tmp_path: Path) -> None:
    from byoc.mock import clip as clips

    recipe = clips.Recipe(width=64, height=64, seconds=1, bitrate=300_000, key_every=1)
    source = clips.cached(recipe, tmp_path)
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(CASES["sharpen"]))
    command = [sys.executable, "-m", "headrace", "process", str(source), str(tmp_path / "out.mp4")]
    command += ["--workflow", str(workflow), "--hardware", "off"]
    command += [
        "--comfyui",
        str(around.installation.directory),
        "--comfyui-python",
        around.installation.python,
    ]
    await run(*command, env={"HEADRACE_CACHE": str(tmp_path / "cache"), "HEADRACE_COMFYUI_PREFER": "1"})
    assert (tmp_path / "out.mp4").stat().st_size > 1000


async def test_a_load_asks_the_ledger_and_what_it_loads_is_let_go(
    service: ComfyService, ledger: LedgerService
) -> None:
    """A batch engine has an idle model in all of the budget; it is asked to release it."""
    asked: list[str] = []

    async def ask(body: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(str(body["what"]))
        return {"released": body["keys"]}

    ledger.attach("batch", ask)
    key = ModelKey("m", "", "", "cpu", "x").as_dict()
    entry = {"key": key, "state": "loaded", "progress": 1.0, "what": "", "parts": {"w": BUDGET}, "leases": 0}
    entry |= {"pinned": False, "last_used": 1.0, "weights": "real", "load_seconds": 0.0}
    body = {"kind": "report", "device": "cpu", "total": 0, "entries": [entry]}
    ledger.received("batch", Message(body))
    workflow = graph(("ImageBlend", {"image1": FRAME, "image2": FRAME, "blend_mode": "normal"}))
    workflow["a"]["inputs"]["blend_factor"] = ["w", 0]
    workflow["w"] = {"class_type": "Weights", "inputs": {"ckpt_name": "of-the-test.safetensors"}}
    processor = await session(service, workflow)
    assert asked == ["release"]
    pixels = noise()
    assert np.array_equal(await through(processor, pixels), pixels)
    memory = service._memory[service.first.settings.name]
    async with asyncio.timeout(READY):
        while memory.reclaimable != 16 << 20:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.1)
        while memory.reclaimable:
            await memory._ask({"what": "release", "keys": []})
            await asyncio.sleep(0.5)
    await processor.on_stream_stop()


async def test_errors_of_its_nodes_name_the_node(service: ComfyService) -> None:
    processor = await session(service, graph(("Halve", {"image": FRAME, "by": 0.5})))
    with pytest.raises(HeadraceError, match="by"):
        await processor.update_params({"a.by": "not a number"})
    assert (await through(processor, np.full((16, 16, 3), 100, np.uint8)) == 50).all()
    await processor.on_stream_stop()
