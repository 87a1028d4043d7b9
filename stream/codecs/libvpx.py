"""libvpx by ctypes: what FFmpeg's wrapper does not offer is a bitrate that changes while the encoder runs.

The library is the one that FFmpeg itself has loaded, or the system's. Of its structures only the beginnings
are known here (vpx/vpx_encoder.h); before anything is encoded the documented defaults must be found in their
places, so that a library laid out otherwise is refused.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import logging
from pathlib import Path

from stream.errors import CodecError, NotInstalled

log = logging.getLogger(__name__)

_OK, _ABI_MISMATCH = 0, 3
_ABI_VERSIONS = range(5, 100)
"""`vpx_codec_enc_init_ver` takes exactly one, which depends on the library's version."""
_I420 = 0x102
_CBR = 1
_KEY_DISABLED = 0
_FORCE_KEY = 1
_REALTIME = 1
_IS_KEY = 1
_FRAME_PACKET = 0
_ROOM = 4096
"""Bytes that are given to a structure, several times what any version needs."""
# Control ids of vp8cx.h.
_CPU_USED, _NOISE_SENSITIVITY, _STATIC_THRESHOLD, _MAX_INTRA_PERCENT = 13, 15, 17, 26


class _Config(ctypes.Structure):
    """The beginning of vpx_codec_enc_cfg_t."""

    _fields_ = (
        ("usage", ctypes.c_uint),
        ("threads", ctypes.c_uint),
        ("profile", ctypes.c_uint),
        ("width", ctypes.c_uint),
        ("height", ctypes.c_uint),
        ("bit_depth", ctypes.c_uint),
        ("input_bit_depth", ctypes.c_uint),
        ("timebase_num", ctypes.c_int),
        ("timebase_den", ctypes.c_int),
        ("error_resilient", ctypes.c_uint),
        ("encoding_pass", ctypes.c_uint),
        ("lag_in_frames", ctypes.c_uint),
        ("dropframe_threshold", ctypes.c_uint),
        ("resize_allowed", ctypes.c_uint),
        ("scaled_width", ctypes.c_uint),
        ("scaled_height", ctypes.c_uint),
        ("resize_up_threshold", ctypes.c_uint),
        ("resize_down_threshold", ctypes.c_uint),
        ("end_usage", ctypes.c_uint),
        ("two_pass_stats", ctypes.c_void_p),
        ("two_pass_stats_size", ctypes.c_size_t),
        ("first_pass_stats", ctypes.c_void_p),
        ("first_pass_stats_size", ctypes.c_size_t),
        ("target_bitrate", ctypes.c_uint),
        ("min_quantizer", ctypes.c_uint),
        ("max_quantizer", ctypes.c_uint),
        ("undershoot_percent", ctypes.c_uint),
        ("overshoot_percent", ctypes.c_uint),
        ("buffer_size", ctypes.c_uint),
        ("buffer_initial_size", ctypes.c_uint),
        ("buffer_optimal_size", ctypes.c_uint),
        ("vbr_bias_percent", ctypes.c_uint),
        ("vbr_min_section_percent", ctypes.c_uint),
        ("vbr_max_section_percent", ctypes.c_uint),
        ("vbr_corpus_complexity", ctypes.c_uint),
        ("key_mode", ctypes.c_uint),
        ("key_min_distance", ctypes.c_uint),
        ("key_max_distance", ctypes.c_uint),
    )


class _Packet(ctypes.Structure):
    """The beginning of vpx_codec_cx_pkt_t where it holds a picture."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("pts", ctypes.c_int64),
        ("duration", ctypes.c_ulong),
        ("flags", ctypes.c_uint32),
    )


# The defaults by which the layout is recognised: 320x240 at 1/30 s, 256 kbit/s, quantizers 4 to 63.
_DEFAULTS = {
    "width": 320,
    "height": 240,
    "timebase_num": 1,
    "timebase_den": 30,
    "target_bitrate": 256,
    "min_quantizer": 4,
    "max_quantizer": 63,
    "buffer_size": 6000,
    "buffer_initial_size": 4000,
    "buffer_optimal_size": 5000,
    "key_mode": 1,
    "key_max_distance": 128,
}


class Library:
    """The functions of a libvpx whose structures were recognised."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self._handle = handle
        for name in ("vpx_codec_vp8_cx", "vpx_codec_get_cx_data", "vpx_img_wrap", "vpx_codec_version_str"):
            getattr(handle, name).restype = ctypes.c_void_p
        handle.vpx_codec_get_cx_data.restype = ctypes.POINTER(_Packet)
        handle.vpx_codec_version_str.restype = ctypes.c_char_p
        handle.vpx_codec_error_detail.restype = ctypes.c_char_p
        handle.vpx_codec_err_to_string.restype = ctypes.c_char_p
        self._interface = ctypes.c_void_p(handle.vpx_codec_vp8_cx())
        self.version = (handle.vpx_codec_version_str() or b"?").decode("ascii", "replace")
        self.default_config()
        self._abi: int | None = None

    def default_config(self) -> ctypes.Array[ctypes.c_char]:
        """A configuration as libvpx proposes it; `CodecError` where it is not laid out as expected."""
        memory = ctypes.create_string_buffer(_ROOM)
        failed = self._handle.vpx_codec_enc_config_default(self._interface, memory, ctypes.c_uint(0))
        found = _Config.from_buffer(memory)
        wrong = {
            name: getattr(found, name) for name, value in _DEFAULTS.items() if getattr(found, name) != value
        }
        if failed or wrong:
            raise CodecError(f"libvpx {self.version} is not one that can be used here: {failed} {wrong}")
        return memory

    def open(self, context: ctypes.Array[ctypes.c_char], config: ctypes.Array[ctypes.c_char]) -> None:
        """Open an encoder; raises `CodecError`."""
        versions = _ABI_VERSIONS if self._abi is None else (self._abi,)
        for version in versions:
            ctypes.memset(context, 0, len(context))
            error = self._handle.vpx_codec_enc_init_ver(
                context, self._interface, config, ctypes.c_long(0), ctypes.c_int(version)
            )
            if error != _ABI_MISMATCH:
                self._abi = version
                self.check(error, context, "cannot be opened")
                return
        raise CodecError(f"libvpx {self.version} has an unknown ABI")

    def call(self, function: str, context: ctypes.Array[ctypes.c_char], *arguments: object) -> None:
        """Call one of its functions; raises `CodecError` with its own words."""
        self.check(getattr(self._handle, function)(context, *arguments), context, f"failed in {function}")

    def check(self, error: int, context: ctypes.Array[ctypes.c_char], what: str) -> None:
        if error != _OK:
            words = self._handle.vpx_codec_err_to_string(error) or b""
            detail = self._handle.vpx_codec_error_detail(context) or b""
            text = b" ".join(filter(None, (words, detail))).decode("utf-8", "replace")
            raise CodecError(f"libvpx {what}: {text}")

    def packets(self, context: ctypes.Array[ctypes.c_char]) -> list[tuple[bytes, bool]]:
        """The pictures that are ready, and whether each is a key picture."""
        position = ctypes.c_void_p()
        found = []
        while packet := self._handle.vpx_codec_get_cx_data(context, ctypes.byref(position)):
            if packet.contents.kind == _FRAME_PACKET:
                data = ctypes.string_at(packet.contents.data, packet.contents.size)
                found.append((data, bool(packet.contents.flags & _IS_KEY)))
        return found

    def wrap(
        self, width: int, height: int, pixels: ctypes.Array[ctypes.c_char]
    ) -> ctypes.Array[ctypes.c_char]:
        """An image over planes of YUV 4:2:0 one after another, without gaps."""
        image = ctypes.create_string_buffer(_ROOM)
        size = (ctypes.c_uint(width), ctypes.c_uint(height))
        if not self._handle.vpx_img_wrap(image, ctypes.c_int(_I420), *size, ctypes.c_uint(1), pixels):
            raise CodecError(f"libvpx takes no pictures of {width}x{height}")
        return image


class Vp8Context:
    """One encoder of constant bitrate without delay; for one thread at a time. Raises `CodecError`."""

    def __init__(self, width: int, height: int, bitrate: int, *, buffer: float, threads: int) -> None:
        self._library = library()
        self._memory = self._library.default_config()
        self._config = _Config.from_buffer(self._memory)
        config = self._config
        config.width, config.height, config.threads = width, height, threads
        config.timebase_num, config.timebase_den = 1, 90_000
        config.lag_in_frames = 0
        config.error_resilient = 0
        config.end_usage = _CBR
        config.min_quantizer, config.max_quantizer = 2, 56
        config.undershoot_percent, config.overshoot_percent = 100, 15
        config.dropframe_threshold = 0
        # In milliseconds of the bitrate.
        config.buffer_size = round(buffer * 1000)
        config.buffer_initial_size = round(buffer * 500)
        config.buffer_optimal_size = round(buffer * 600)
        config.key_mode = _KEY_DISABLED
        config.target_bitrate = max(1, bitrate // 1000)
        self._context = ctypes.create_string_buffer(_ROOM)
        self._pixels = ctypes.create_string_buffer(width * height * 3 // 2)
        self.pixels = memoryview(self._pixels).cast("B")
        """Y, U and V of the next picture, one after another without gaps; to be written to."""
        self._image = self._library.wrap(width, height, self._pixels)
        self._library.open(self._context, self._memory)
        self._open = True
        # A key picture may take half of what the buffer is to hold, in percent of a picture of 30 a second.
        percent = max(300, round(buffer * 0.6 * 0.5 * 30 * 100))
        for control, value in (
            (_CPU_USED, -6),
            (_NOISE_SENSITIVITY, 0),
            (_STATIC_THRESHOLD, 1),
            (_MAX_INTRA_PERCENT, percent),
        ):
            self._control(control, value)

    def set_bitrate(self, bitrate: int) -> None:
        self._config.target_bitrate = max(1, bitrate // 1000)
        self._library.call("vpx_codec_enc_config_set", self._context, self._memory)

    def encode(self, pts: int, duration: int, *, key: bool) -> list[tuple[bytes, bool]]:
        """Encode what `pixels` holds; times count 1/90000 s."""
        self._library.call(
            "vpx_codec_encode",
            self._context,
            self._image,
            ctypes.c_int64(pts),
            ctypes.c_ulong(duration),
            ctypes.c_long(_FORCE_KEY if key else 0),
            ctypes.c_ulong(_REALTIME),
        )
        return self._library.packets(self._context)

    def close(self) -> None:
        """Free it; safe to call twice."""
        if self._open:
            self._open = False
            self._library.call("vpx_codec_destroy", self._context)

    def _control(self, control: int, value: int) -> None:
        self._library.call("vpx_codec_control_", self._context, ctypes.c_int(control), ctypes.c_int(value))


@functools.cache
def library() -> Library:
    """The libvpx to use. Raises `NotInstalled` where there is none, `CodecError` where it is unknown."""
    path = _loaded() or ctypes.util.find_library("vpx")
    if path is None:
        raise NotInstalled("VP8 cannot be encoded: neither FFmpeg nor the system has libvpx")
    try:
        found = Library(ctypes.CDLL(path))
    except (OSError, AttributeError) as error:
        raise NotInstalled(f"VP8 cannot be encoded: {path} cannot be used: {error}") from error
    log.info("VP8 is encoded by libvpx %s", found.version)
    return found


def _loaded() -> str | None:
    """The libvpx that this process has mapped, which is FFmpeg's."""
    import av  # noqa: F401 (brings it)

    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[1] + line.partition("/")[2]
        if Path(path).name.startswith("libvpx"):
            return path
    return None
