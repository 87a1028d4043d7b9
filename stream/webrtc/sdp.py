"""Checks of what clients send: offers (RFC 8866, RFC 9725 4.2 to 4.4) and fragments for PATCH (RFC 8840).

Pure, and without aiortc, so that garbage costs nothing. What is checked here is what the protocols ask for;
codecs are negotiated later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from stream.errors import InvalidInput, TooLarge
from stream.webrtc.errors import Unprocessable

MAX_SDP = 128 << 10
"""Bytes of an offer; browsers send about ten thousand."""
MAX_FRAGMENT = 32 << 10
MAX_LINE = 4096
MAX_MEDIA = 8

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]
Purpose = Literal["publish", "view"]

_LINE = re.compile(r"[a-z]=.*")
_MEDIA = re.compile(r"(audio|video|application|[a-z0-9-]+) \d{1,5}(?:/\d+)? \S+(?: \S+)+")
_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,256}")
_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,256}")
_DIRECTIONS: dict[str, Direction] = {
    "sendrecv": "sendrecv",
    "sendonly": "sendonly",
    "recvonly": "recvonly",
    "inactive": "inactive",
}


@dataclass(slots=True)
class Media:
    """One ``m=`` section. What the session level or its bundle's first section gives is filled in."""

    kind: str
    port: int
    mid: str | None = None
    direction: Direction = "sendrecv"
    ufrag: str | None = None
    password: str | None = None
    fingerprint: bool = False
    setup: str | None = None
    rtcp_mux: bool = False
    bundle_only: bool = False

    @property
    def disabled(self) -> bool:
        """Offered for the form's sake only (RFC 3264, 5.1)."""
        return self.port == 0 and not self.bundle_only

    @property
    def sends(self) -> bool:
        return self.direction in ("sendrecv", "sendonly")

    @property
    def receives(self) -> bool:
        return self.direction in ("sendrecv", "recvonly")


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer as far as signalling cares. ``bundle`` holds the mids of its group."""

    media: tuple[Media, ...]
    bundle: tuple[str, ...]


def check_offer(text: str, purpose: Purpose) -> Offer:
    """Read an offer and refuse what cannot be answered.

    Raises `TooLarge`; `InvalidInput` for what is no SDP, has no media, lacks what WebRTC needs, or has no
    medium in the direction of ``purpose``; `Unprocessable` for several media of one kind.
    """
    offer = parse_offer(text)
    enabled = [m for m in offer.media if not m.disabled]
    live = [m for m in enabled if m.kind in ("audio", "video")]
    if not live:
        raise InvalidInput("the offer has no audio and no video", field="sdp")
    for kind in ("audio", "video"):
        if sum(m.kind == kind for m in live) > 1:
            raise Unprocessable(f"the offer has several {kind} tracks; one is taken", field="sdp")
    fits = [m for m in live if (m.sends if purpose == "publish" else m.receives)]
    if not fits:
        wanted = "sendonly, to publish" if purpose == "publish" else "recvonly, to view"
        given = ", ".join(f"{m.kind} {m.direction}" for m in live)
        raise InvalidInput(f"the offer's media must be {wanted}; they are {given}", field="sdp")
    for media in enabled:
        _check_transport(media)
    names = [m.mid for m in enabled]
    if len(names) > 1 and (None in names or not set(names) <= set(offer.bundle)):
        raise InvalidInput("all media of an offer must be in one BUNDLE group (RFC 9725, 4.4.1)", field="sdp")
    return offer


def parse_offer(text: str) -> Offer:
    """The media of a session description; raises `InvalidInput` or `TooLarge`."""
    lines = _lines(text, MAX_SDP, "sdp")
    if not lines or lines[0] != "v=0":
        raise InvalidInput("the body is not a session description: its first line must be v=0", field="sdp")
    session, media, bundle = Media("session", 9), list[Media](), tuple[str, ...]()
    current = session
    for number, line in enumerate(lines, 1):
        if not _LINE.fullmatch(line):
            raise InvalidInput(f"line {number} of the offer is not SDP: {line[:80]!r}", field="sdp")
        if line.startswith("m="):
            current = _media(line, number, session)
            media.append(current)
            if len(media) > MAX_MEDIA:
                raise InvalidInput(f"the offer has over {MAX_MEDIA} media", field="sdp")
        elif line.startswith("a=group:BUNDLE"):
            bundle = tuple(line.split()[1:])
        elif line.startswith("a="):
            _attribute(current, line[2:])
    if not media:
        raise InvalidInput("the offer has no media", field="sdp")
    _fill_from_tagged(media, bundle)
    return Offer(tuple(media), bundle)


def _fill_from_tagged(media: list[Media], bundle: tuple[str, ...]) -> None:
    """Only the first section of a BUNDLE group must say what all of them use: ``bundle-only`` ones leave it
    out (RFC 9429, 5.2.1; RFC 8843, 7.1.3)."""
    group = [one for one in media if one.mid in bundle and not one.disabled]
    tagged = next((one for mid in bundle for one in group if one.mid == mid), None)
    if tagged is None:
        return
    for one in group:
        if one.ufrag is None and one.password is None:
            one.ufrag, one.password = tagged.ufrag, tagged.password
        one.fingerprint = one.fingerprint or tagged.fingerprint
        one.setup = tagged.setup if one.setup is None else one.setup
        one.rtcp_mux = one.rtcp_mux or tagged.rtcp_mux


def _lines(text: str, limit: int, field: str) -> list[str]:
    size = len(text.encode(errors="surrogatepass"))
    if size > limit:
        raise TooLarge(f"the description has {size} bytes; at most {limit} are taken", field=field)
    if "\0" in text:
        raise InvalidInput("the description is not text", field=field)
    lines = [line.rstrip("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise InvalidInput(f"line {number} has over {MAX_LINE} characters", field=field)
    return lines


def _media(line: str, number: int, session: Media) -> Media:
    if not _MEDIA.fullmatch(line[2:]):
        raise InvalidInput(f"line {number} of the offer is not SDP: {line[:80]!r}", field="sdp")
    kind, port = line[2:].split()[:2]
    return Media(
        kind,
        int(port.split("/")[0]),
        direction=session.direction,
        ufrag=session.ufrag,
        password=session.password,
        fingerprint=session.fingerprint,
        setup=session.setup,
    )


def _attribute(media: Media, text: str) -> None:
    name, _, value = text.partition(":")
    if name in _DIRECTIONS and not value:
        media.direction = _DIRECTIONS[name]
    elif name == "mid":
        media.mid = value
    elif name == "ice-ufrag":
        media.ufrag = value
    elif name == "ice-pwd":
        media.password = value
    elif name == "fingerprint":
        media.fingerprint = len(value.split()) == 2
    elif name == "setup":
        media.setup = value
    elif name == "rtcp-mux":
        media.rtcp_mux = True
    elif name == "bundle-only":
        media.bundle_only = True


def _check_transport(media: Media) -> None:
    what = f"the offer's {media.kind}"
    if not _UFRAG.fullmatch(media.ufrag or "") or not _PASSWORD.fullmatch(media.password or ""):
        raise InvalidInput(f"{what} lacks a valid ice-ufrag and ice-pwd (RFC 8839)", field="sdp")
    if not media.fingerprint:
        raise InvalidInput(f"{what} lacks a fingerprint: only DTLS is taken", field="sdp")
    if media.setup not in ("actpass", "active", "passive"):
        raise InvalidInput(f"{what} has setup {media.setup!r}; an offer's is actpass", field="sdp")
    if media.kind in ("audio", "video") and not media.rtcp_mux:
        raise InvalidInput(f"{what} lacks rtcp-mux", field="sdp")


@dataclass(frozen=True, slots=True)
class Fragment:
    """The body of a PATCH: candidates (lines without ``a=``), and the credentials that they belong to."""

    ufrag: str | None
    password: str | None
    candidates: tuple[str, ...]
    ended: bool


def parse_fragment(text: str) -> Fragment:
    """Read an ``application/trickle-ice-sdpfrag``; raises `InvalidInput` or `TooLarge`."""
    ufrag: str | None = None
    password: str | None = None
    candidates: list[str] = []
    ended = False
    for number, line in enumerate(_lines(text, MAX_FRAGMENT, "sdpfrag"), 1):
        if not _LINE.fullmatch(line):
            raise InvalidInput(f"line {number} of the fragment is not SDP: {line[:80]!r}", field="sdpfrag")
        name, _, value = line[2:].partition(":")
        if line.startswith("a=candidate:"):
            candidates.append(line[2:])
        elif line.strip() == "a=end-of-candidates":
            ended = True
        elif name == "ice-ufrag":
            ufrag = ufrag or value
        elif name == "ice-pwd":
            password = password or value
    if (ufrag is None) != (password is None):
        raise InvalidInput("ice-ufrag and ice-pwd come together or not at all", field="sdpfrag")
    if ufrag is not None and not (_UFRAG.fullmatch(ufrag) and _PASSWORD.fullmatch(password or "")):
        raise InvalidInput("ice-ufrag or ice-pwd is not valid (RFC 8839, 5.4)", field="sdpfrag")
    return Fragment(ufrag, password, tuple(candidates), ended)


def format_fragment(ufrag: str, password: str, candidates: list[str]) -> str:
    """Our side of a restart as a fragment (RFC 8840, 9). ``candidates`` are lines without ``a=``."""
    lines = ["a=ice-ufrag:" + ufrag, "a=ice-pwd:" + password, "m=audio 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0"]
    lines += [f"a={candidate}" for candidate in candidates]
    return "\r\n".join([*lines, "a=end-of-candidates", ""])
