"""Everything that code written for PyTrickle imports is there under its name."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import byoc

ROOT = Path(__file__).resolve().parent.parent.parent

NAMES = {
    "byoc": """TrickleClient StreamServer StreamProcessor VideoProcessingResult TrickleProtocol
        VideoFrame AudioFrame VideoOutput AudioOutput TricklePublisher TrickleSubscriber
        FrameBuffer StreamState TrickleComponent ComponentState RegisterCapability api
        ErrorCallback FrameProcessor FPSMeter FrameSkipConfig OverlayConfig OverlayMode
        OverlayController __version__""",
    "byoc.frame_processor": "FrameProcessor",
    "byoc.frames": """VideoFrame AudioFrame VideoOutput AudioOutput FrameBuffer SideData InputFrame
        OutputFrame DEFAULT_WIDTH DEFAULT_HEIGHT""",
    "byoc.stream_processor": "StreamProcessor VideoProcessingResult",
    "byoc.decorators": """video_handler audio_handler model_loader param_updater on_stream_start
        on_stream_stop
        trickle_handler""",
    "byoc.frame_skipper": "FrameSkipConfig AdaptiveFrameSkipper FrameProcessingResult",
    "byoc.frame_overlay": "OverlayConfig OverlayMode OverlayController build_frame_overlay",
    "byoc.utils.register": "RegisterCapability",
    "byoc.api": """StreamParamsUpdateRequest StreamStartRequest Version HardwareInformation HardwareStats
        StreamResponse StreamStatusResponse HealthCheckResponse ServiceInfoResponse HealthStatus""",
    "byoc.state": "StreamState PipelineState",
    "byoc.server": "StreamServer RouteConfig",
    "byoc.base": "TrickleComponent ComponentState ErrorCallback",
    "byoc.registry": "HandlerRegistry HandlerInfo",
    "byoc.utils.hardware": "HardwareInfo GPUComputeInfo GPUUtilizationInfo",
    "byoc.fps_meter": "FPSMeter",
    "byoc.client": "TrickleClient",
    "byoc.protocol": "TrickleProtocol",
    "byoc.publisher": "TricklePublisher",
    "byoc.subscriber": "TrickleSubscriber",
}


@pytest.mark.parametrize("module", NAMES)
def test_every_name_is_there(module):
    found = importlib.import_module(module)
    assert not [name for name in NAMES[module].split() if not hasattr(found, name)]


def test_all_that_the_package_offers_can_be_had():
    assert all(getattr(byoc, name) is not None for name in byoc.__all__)
    assert byoc.RouteConfig is byoc.server.RouteConfig
    with pytest.raises(AttributeError, match="nothing"):
        _ = byoc.nothing


@pytest.mark.parametrize(
    "statement",
    [
        "from byoc import BaseStreamManager",
        "from byoc import TrickleStreamHandler",
        "from byoc.manager import TrickleStreamManager",
        "import byoc.stream_handler",
    ],
)
def test_what_is_not_there_says_what_is_instead(statement):
    with pytest.raises(ImportError, match=r"StreamServer\(MyProcessor, capacity=4\)"):
        exec(statement)


@pytest.mark.parametrize("statement", ["from byoc.frames import VideoFrame", "from byoc import StreamServer"])
def test_a_file_that_hides_the_package_is_named_whichever_module_is_imported(tmp_path, statement):
    (tmp_path / "stream.py").write_text("x = 1")
    done = subprocess.run(
        [sys.executable, "-c", statement],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == 1
    assert f"{tmp_path / 'stream.py'} hides Headrace's package 'stream'" in done.stderr.splitlines()[-1]


def test_importing_the_package_loads_neither_torch_nor_the_server():
    code = "import byoc, sys; print('torch' in sys.modules, 'aiohttp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
