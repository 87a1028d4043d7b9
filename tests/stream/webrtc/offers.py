"""Offers for tests, as text."""

from __future__ import annotations

SESSION = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
FINGERPRINT = ":".join(["AB"] * 32)
SECURITY = (
    "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdefghijkl\r\n"
    f"a=fingerprint:sha-256 {FINGERPRINT}\r\na=setup:actpass\r\n"
)
CODECS = {
    "video": ("96", "a=rtpmap:96 VP8/90000\r\n"),
    "audio": ("111", "a=rtpmap:111 opus/48000/2\r\n"),
}


def section(kind: str, direction: str, mid: str = "0") -> str:
    """One ``m=`` section with all that WebRTC needs."""
    if kind == "application":
        data = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"
        return f"{data}a=mid:{mid}\r\na=sctp-port:5000\r\n{SECURITY}"
    number, codec = CODECS[kind]
    return (
        f"m={kind} 9 UDP/TLS/RTP/SAVPF {number}\r\nc=IN IP4 0.0.0.0\r\na=mid:{mid}\r\n"
        f"a={direction}\r\na=rtcp-mux\r\n{codec}{SECURITY}"
    )


def offer(*media: tuple[str, str]) -> str:
    """An offer with these kinds and directions, in one bundle."""
    mids = [str(i) for i in range(len(media))]
    sections = [section(kind, direction, mid) for mid, (kind, direction) in zip(mids, media, strict=True)]
    return f"{SESSION}a=group:BUNDLE {' '.join(mids)}\r\n" + "".join(sections)


PUBLISHING = offer(("audio", "sendonly"), ("video", "sendonly"))
VIEWING = offer(("audio", "recvonly"), ("video", "recvonly"))
DATA_ONLY = offer(("application", ""))


def bundle_only(text: str) -> str:
    """The offer as of max-bundle (RFC 9429, 5.2.1): transport attributes in the first section alone."""
    head, first, *others = text.split("m=")
    shared = ("a=ice-ufrag", "a=ice-pwd", "a=fingerprint", "a=setup", "a=rtcp-mux", "a=rtcp:")
    parts = [head, first]
    for other in others:
        lines = [line for line in other.splitlines(keepends=True) if not line.startswith(shared)]
        kind, _, rest = lines[0].split(" ", 2)
        parts.append("".join([f"{kind} 0 {rest}", *lines[1:], "a=bundle-only\r\n"]))
    return "m=".join(parts)
