"""Offers and answers (RFC 8829, RFC 9429): what we take of an offer, and the answer that says so.

aiortc answers with formats of its own list alone (no High profile, one fixed level), fails over a section
that it cannot use instead of rejecting it, and raises whatever its parser trips over. So it is handed a
reduced offer that it can take, the formats chosen here are put into its transceivers, and its answer is
completed with what was left out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aiortc import sdp
from aiortc.rtcrtpparameters import (
    ParametersDict,
    RTCRtcpFeedback,
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
)

from stream.errors import InvalidInput
from stream.units import Rendition
from stream.webrtc.bundling import carry_transport, fill_from_tagged, mids_of_bundle
from stream.webrtc.codecs import OfferedAudio, OfferedVideo, choose_video, read_profile
from stream.webrtc.errors import Unprocessable

MAX_OFFER = 256 << 10
"""Characters of an offer; browsers send about 10,000."""
MAX_SECTIONS = 32
EXTENSIONS = {
    "audio": ("urn:ietf:params:rtp-hdrext:sdes:mid",),
    "video": (
        "urn:ietf:params:rtp-hdrext:sdes:mid",
        "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
    ),
}
_FEEDBACK = ("nack", "nack pli", "ccm fir", "goog-remb")
_STOCK_H264: ParametersDict = {
    "level-asymmetry-allowed": "1",
    "packetization-mode": "1",
    "profile-level-id": "42e01f",
}

Direction = Literal["sendonly", "recvonly", "sendrecv"]


@dataclass(slots=True)
class Section:
    """One accepted media section, seen from our side."""

    mid: str
    kind: Literal["audio", "video", "application"]
    direction: Direction | None = None
    video: OfferedVideo | None = None
    audio: OfferedAudio | None = None
    extensions: list[RTCRtpHeaderExtensionParameters] = field(default_factory=list)

    @property
    def receives(self) -> bool:
        return self.direction in ("recvonly", "sendrecv")

    @property
    def sends(self) -> bool:
        return self.direction in ("sendonly", "sendrecv")

    def codecs(self, start_bitrate: int) -> list[RTCRtpCodecParameters]:
        """What aiortc is to write into the answer for it. Where we receive pictures, Chromium begins with
        ``start_bitrate`` (bits a second) instead of 300,000."""
        if self.audio is not None:
            return [
                RTCRtpCodecParameters(
                    mimeType="audio/opus",
                    clockRate=48_000,
                    channels=2,
                    payloadType=self.audio.payload_type,
                    parameters=dict(OfferedAudio.parameters()),
                )
            ]
        if self.video is None:
            return []
        parameters: ParametersDict = dict(self.video.parameters())
        if self.receives:
            parameters["x-google-start-bitrate"] = str(start_bitrate // 1000)
        codecs = [
            RTCRtpCodecParameters(
                mimeType="video/H264" if self.video.codec == "h264" else "video/VP8",
                clockRate=90_000,
                payloadType=self.video.payload_type,
                rtcpFeedback=[_feedback(text) for text in _FEEDBACK if text in self.video.feedback],
                parameters=parameters,
            )
        ]
        if self.video.rtx is not None:
            codecs.append(
                RTCRtpCodecParameters(
                    mimeType="video/rtx",
                    clockRate=90_000,
                    payloadType=self.video.rtx,
                    parameters={"apt": self.video.payload_type},
                )
            )
        return codecs


def _feedback(text: str) -> RTCRtcpFeedback:
    kind, _, parameter = text.partition(" ")
    return RTCRtcpFeedback(type=kind, parameter=parameter or None)


@dataclass(slots=True)
class Negotiated:
    """``offer`` is what aiortc is to be given, ``order`` the offer's sections: ours by mid, others as the
    line that rejects them."""

    offer: str
    sections: list[Section]
    order: list[str | tuple[str, str]]

    def sending(self, kind: str) -> Section | None:
        return next((s for s in self.sections if s.kind == kind and s.sends), None)

    def receiving(self, kind: str) -> Section | None:
        return next((s for s in self.sections if s.kind == kind and s.receives), None)


# -- the offer -----------------------------------------------------------------------------------------


def negotiate(
    offer: str, *, receive: bool, send: bool, channels: bool, running: Sequence[Rendition] = ()
) -> Negotiated:
    """Decide about each section of an offer.

    Raises `InvalidInput` for what is no offer, and `Unprocessable` when nothing of it can be used: with
    ``receive`` alone it must send us something, with ``send`` alone it must take something.
    """
    description = _parsed(offer)
    sections: list[Section] = []
    kept: list[sdp.MediaDescription] = []
    order: list[str | tuple[str, str]] = []
    bundled = mids_of_bundle(description)
    fill_from_tagged(description)
    rejected = _rejected_by_port(offer)
    for index, media in enumerate(description.media):
        section = None
        if index not in rejected:
            section = _section(
                media, sections, receive=receive, send=send, channels=channels, running=running
            )
        if section is None:
            order.append((_rejection(media), media.rtp.muxId))
            continue
        sections.append(section)
        order.append(section.mid)
        kept.append(_reduced(media, section))
    _check(sections, description, receive=receive, send=send)
    carry_transport(description, kept, bundled)
    reduced = copy.copy(description)
    reduced.media, reduced.host = kept, None
    mids: list[int | str] = [section.mid for section in sections if section.mid in bundled]
    reduced.group = [sdp.GroupDescription("BUNDLE", mids)] if mids else []
    return Negotiated(str(reduced), sections, order)


def _parsed(offer: str) -> sdp.SessionDescription:
    if len(offer) > MAX_OFFER:
        raise InvalidInput(f"an offer has at most {MAX_OFFER} characters, not {len(offer)}", field="sdp")
    if not offer.startswith("v=0"):
        raise InvalidInput("an offer begins with v=0 (SDP, RFC 8866)", field="sdp")
    try:
        description = sdp.SessionDescription.parse(_without_foreign_candidates(offer))
    except Exception as error:  # the edge to a parser that raises whatever it trips over
        raise InvalidInput(
            f"the offer cannot be read: {type(error).__name__}: {error}", field="sdp"
        ) from error
    if not 1 <= len(description.media) <= MAX_SECTIONS:
        found = len(description.media)
        raise InvalidInput(f"an offer has 1 to {MAX_SECTIONS} media sections, not {found}", field="sdp")
    return description


def _without_foreign_candidates(offer: str) -> str:
    """Lines that aiortc's parser stops at although they do no harm: TCP candidates without a port's
    meaning, and attributes of the session that it does not know are kept out of its way."""
    lines = [line for line in offer.splitlines() if not re.match(r"a=candidate:\S+ \d+ (?i:tcp) ", line)]
    return "\r\n".join(lines) + "\r\n"


def _rejected_by_port(offer: str) -> set[int]:
    """Sections that the offer itself switches off: port 0 without ``bundle-only`` (RFC 8843, 6)."""
    found = set()
    for index, text in enumerate(re.split(r"(?m)^m=", offer)[1:]):
        first = text.split("\n", 1)[0].split()
        if len(first) > 1 and first[1] == "0" and not re.search(r"(?m)^a=bundle-only\s*$", text):
            found.add(index)
    return found


def _section(
    media: sdp.MediaDescription,
    before: Sequence[Section],
    *,
    receive: bool,
    send: bool,
    channels: bool,
    running: Sequence[Rendition],
) -> Section | None:
    """What we take of a section, None for nothing. One of each kind is received, and one sent."""
    mid = media.rtp.muxId
    if media.kind == "application":
        usable = channels and all(section.kind != "application" for section in before)
        return Section(mid, "application") if usable and "webrtc-datachannel" in media.fmt else None
    if media.kind not in ("audio", "video"):
        return None
    same = [section for section in before if section.kind == media.kind]
    offered = media.direction or "sendrecv"
    takes = receive and offered in ("sendonly", "sendrecv") and not any(s.receives for s in same)
    gives = send and offered in ("recvonly", "sendrecv") and not any(s.sends for s in same)
    if not takes and not gives:
        return None
    direction: Direction = "sendrecv" if takes and gives else "recvonly" if takes else "sendonly"
    extensions = [e for e in media.rtp.headerExtensions if e.uri in EXTENSIONS[media.kind]]
    if media.kind == "audio":
        audio = offered_audio(media.rtp.codecs)
        return Section(mid, "audio", direction, audio=audio, extensions=extensions) if audio else None
    video = choose_video(offered_video(media.rtp.codecs), receive=takes, send=gives, running=running)
    return Section(mid, "video", direction, video=video, extensions=extensions) if video else None


def offered_video(codecs: Sequence[RTCRtpCodecParameters]) -> list[OfferedVideo]:
    """The formats of an offered section that we can handle, in its order."""
    found = []
    rtx = {c.parameters.get("apt"): c.payloadType for c in codecs if c.name.lower() == "rtx"}
    for codec in codecs:
        name = codec.name.lower()
        if name not in ("h264", "vp8") or codec.clockRate != 90_000 or codec.payloadType is None:
            continue
        feedback = frozenset(f"{f.type} {f.parameter}" if f.parameter else f.type for f in codec.rtcpFeedback)
        again = rtx.get(codec.payloadType)
        if name == "vp8":
            found.append(OfferedVideo("vp8", codec.payloadType, rtx=again, feedback=feedback))
            continue
        parameters = {key.lower(): str(value) for key, value in codec.parameters.items()}
        profile = read_profile(parameters.get("profile-level-id"))
        mode = parameters.get("packetization-mode", "0")
        if profile is None or mode not in ("0", "1"):
            continue
        found.append(
            OfferedVideo(
                "h264",
                codec.payloadType,
                profile,
                int(mode),
                parameters.get("level-asymmetry-allowed") == "1",
                again,
                feedback,
                parameters.get("sprop-parameter-sets", ""),
            )
        )
    return found


def offered_audio(codecs: Sequence[RTCRtpCodecParameters]) -> OfferedAudio | None:
    for codec in codecs:
        is_opus = codec.name.lower() == "opus" and codec.clockRate == 48_000 and codec.channels == 2
        if is_opus and codec.payloadType is not None:
            return OfferedAudio(codec.payloadType)
    return None


def _check(
    sections: Sequence[Section], description: sdp.SessionDescription, *, receive: bool, send: bool
) -> None:
    if any(not media.rtp.muxId for media in description.media):
        raise InvalidInput("every section of an offer needs a=mid", field="sdp")
    if len({media.rtp.muxId for media in description.media}) != len(description.media):
        raise InvalidInput("two sections of the offer have the same a=mid", field="sdp")
    media = [section for section in sections if section.kind != "application"]
    if (receive or send) and not media:
        offered = "; ".join(
            f"{m.kind} {m.direction or 'sendrecv'} of {', '.join(c.name for c in m.rtp.codecs) or 'nothing'}"
            for m in description.media
        )
        wanted = "sends" if receive and not send else "takes" if send and not receive else "sends or takes"
        raise Unprocessable(
            f"the offer has nothing that can be used. It must have a section that {wanted} H.264 "
            f"(packetization-mode=1), VP8 or Opus; it has: {offered[:500]}",
            field="sdp",
        )
    if not sections:
        raise Unprocessable("the offer has neither media nor data channels that can be used", field="sdp")


def _reduced(media: sdp.MediaDescription, section: Section) -> sdp.MediaDescription:
    """The section with the chosen format alone, in the words that aiortc's own list has for it."""
    reduced = copy.copy(media)
    # Addresses stand in candidates; those beside them may be names, which aiortc cannot write.
    reduced.port, reduced.host, reduced.rtcp_host = media.port or 9, None, None
    if section.kind == "application":
        return reduced
    chosen = section.codecs(0)
    for codec in chosen:
        if codec.name == "H264":
            codec.parameters = dict(_STOCK_H264)
    reduced.rtp = copy.copy(media.rtp)
    reduced.rtp.codecs = chosen
    reduced.rtp.headerExtensions = section.extensions
    reduced.fmt = [codec.payloadType for codec in chosen]
    reduced.direction = media.direction or "sendrecv"
    reduced.ssrc = [s for s in media.ssrc if s.cname or s.msid]
    return reduced


# -- the answer ----------------------------------------------------------------------------------------


def _rejection(media: sdp.MediaDescription) -> str:
    formats = " ".join(str(f) for f in media.fmt)
    return f"m={media.kind} 0 {media.profile} {formats}"


def complete_answer(answer: str, negotiated: Negotiated) -> str:
    """aiortc's answer with a section for each of the offer's, the refused ones with port 0 (RFC 3264, 6)."""
    head, *texts = re.split(r"(?m)^(?=m=)", answer)
    ours: dict[str, str] = {}
    for text in texts:
        found = re.search(r"(?m)^a=mid:(\S+)", text)
        ours[found[1] if found else ""] = text
    parts = [head.rstrip("\r\n") + "\r\na=ice-options:trickle\r\n"]
    for entry in negotiated.order:
        if isinstance(entry, str):
            parts.append(ours[entry].rstrip("\r\n") + "\r\n")
        else:
            line, mid = entry
            parts.append(f"{line}\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\na=mid:{mid}\r\n")
    return "".join(parts)


def read_credentials(description: str) -> tuple[str, str]:
    """ice-ufrag and ice-pwd of the first section that has them, empty where there are none."""

    def first(name: str) -> Any:
        found = re.search(rf"(?m)^a={name}:(\S+)", description)
        return found[1] if found else ""

    return first("ice-ufrag"), first("ice-pwd")
