"""Offers of browsers, OBS and FFmpeg, and what we take of them. The descriptions are written here, in the
shapes that those programs have."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import HeadraceError, InvalidInput
from stream.units import Rendition
from stream.webrtc.codecs import read_profile
from stream.webrtc.errors import Unprocessable
from stream.webrtc.ice import IceSettings
from stream.webrtc.negotiation import Negotiated, negotiate
from stream.webrtc.peer import Peer
from tests.stream.webrtc.media_peers import sections, stage, until
from tests.stream.webrtc.offers import bundle_only
from tests.stream.webrtc.test_media_end_to_end import picture_track, sound_track

FINGERPRINT = ":".join(["AB"] * 32)
FEEDBACK = ("nack", "nack pli", "ccm fir", "goog-remb", "transport-cc")
OPUS = ((111, "opus/48000/2", "minptime=10;useinbandfec=1", ()),)


def h264(payload_type: int, profile: str | None, mode: str = "1") -> tuple[int, str, str, tuple[str, ...]]:
    parameters = f"level-asymmetry-allowed=1;packetization-mode={mode}"
    if profile is not None:
        parameters += f";profile-level-id={profile}"
    return payload_type, "H264/90000", parameters, FEEDBACK


def section(
    kind: str,
    mid: str,
    direction: str,
    formats: tuple[tuple[int, str, str, tuple[str, ...]], ...],
    *more: str,
) -> str:
    lines = [f"m={kind} 9 UDP/TLS/RTP/SAVPF {' '.join(str(f[0]) for f in formats)}", "c=IN IP4 0.0.0.0"]
    lines += [
        "a=ice-ufrag:abcd",
        "a=ice-pwd:abcdefghijklmnopqrstuvwx",
        f"a=fingerprint:sha-256 {FINGERPRINT}",
        "a=setup:actpass",
        f"a=mid:{mid}",
        "a=extmap:3 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
        "a=extmap:4 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
        "a=extmap:9 urn:ietf:params:rtp-hdrext:sdes:mid",
        f"a={direction}",
        "a=rtcp-mux",
        "a=rtcp-rsize",
    ]
    for payload_type, name, parameters, feedback in formats:
        lines.append(f"a=rtpmap:{payload_type} {name}")
        lines += [f"a=rtcp-fb:{payload_type} {text}" for text in feedback]
        if parameters:
            lines.append(f"a=fmtp:{payload_type} {parameters}")
    return "\r\n".join([*lines, *more]) + "\r\n"


def offer(*texts: str, bundle: str | None = None) -> str:
    mids = bundle if bundle is not None else " ".join(re.findall(r"a=mid:(\S+)", "".join(texts)))
    head = ["v=0", "o=- 1 2 IN IP4 127.0.0.1", "s=-", "t=0 0", f"a=group:BUNDLE {mids}"]
    return "\r\n".join([*head, "a=extmap-allow-mixed", "a=msid-semantic: WMS"]) + "\r\n" + "".join(texts)


VP8 = (96, "VP8/90000", "", FEEDBACK)
RTX = (97, "rtx/90000", "apt=96", ())
CHROME = (
    VP8,
    RTX,
    h264(102, "42001f"),
    (103, "rtx/90000", "apt=102", ()),
    h264(104, "42001f", "0"),
    h264(106, "42e01f"),
    h264(112, "4d001f"),
    h264(127, "64001f"),
    (120, "AV1/90000", "", FEEDBACK),
    (98, "VP9/90000", "profile-id=0", FEEDBACK),
    (125, "red/90000", "", ()),
)


def taken(text: str, **how: bool) -> Negotiated:
    return negotiate(text, **{"receive": False, "send": False, "channels": False, **how})


def test_a_viewer_gets_the_best_profile_that_it_takes() -> None:
    found = taken(offer(section("video", "0", "recvonly", CHROME)), send=True)
    video = found.sections[0].video
    assert video is not None
    assert video.payload_type == 127
    assert video.rendition == Rendition("h264", "high", "viewers")


def test_a_viewer_shares_what_is_encoded_already() -> None:
    text = offer(section("video", "0", "recvonly", CHROME))
    running = [Rendition("h264", "constrained_baseline", "viewers")]
    found = negotiate(text, receive=False, send=True, channels=False, running=running)
    video = found.sections[0].video
    assert video is not None
    assert video.rendition == running[0]


@pytest.mark.parametrize("direction", ["sendonly", "sendrecv"])
def test_a_publisher_keeps_its_own_order_and_its_retransmissions(direction: str) -> None:
    found = taken(offer(section("video", "0", direction, CHROME)), receive=True, send=True)
    video = found.sections[0].video
    assert video is not None
    assert (video.payload_type, video.rtx) == (102, 103)
    main, again = found.sections[0].codecs(2_000_000)
    assert main.parameters["profile-level-id"] == "420034"
    assert main.parameters["x-google-start-bitrate"] == "2000"
    assert again.parameters == {"apt": 102}
    assert {f"{f.type} {f.parameter or ''}".strip() for f in main.rtcpFeedback} == set(FEEDBACK[:4])


def test_vp8_where_there_is_no_h264() -> None:
    found = taken(offer(section("video", "0", "recvonly", (VP8, RTX))), send=True)
    assert found.sections[0].video is not None
    assert found.sections[0].video.rendition.codec == "vp8"


def test_vp8_where_h264_is_offered_without_fragments() -> None:
    formats = (h264(104, "42e01f", "0"), VP8)
    assert (
        taken(offer(section("video", "0", "recvonly", formats)), send=True).sections[0].video.codec == "vp8"
    )  # type: ignore[union-attr]
    found = taken(offer(section("video", "0", "sendonly", formats)), receive=True).sections[0]
    assert found.codecs(0)[0].parameters["packetization-mode"] == "0"


@pytest.mark.parametrize(
    ("text", "name", "answer"),
    [
        ("42e01f", "constrained_baseline", "42e034"),
        ("42001f", "baseline", "420034"),
        ("4d0028", "main", "4d0034"),
        ("4D8028", "constrained_baseline", "4d8034"),
        ("640c1f", "high", "640c34"),
        ("640032", "high", "640034"),
        (None, "constrained_baseline", "42e034"),
    ],
)
def test_profiles_keep_their_name_and_get_our_level(text: str | None, name: str, answer: str) -> None:
    profile = read_profile(text)
    assert profile is not None
    assert (profile.name, profile.answered(asymmetric=True)) == (name, answer)
    assert profile.answered(asymmetric=False)[4:] == (text or "42e01f")[4:]


@pytest.mark.parametrize(
    "text", ["", "zzzzzz", "42e0", "42e01f00", "f4001f", "640020" + "0", "-2e01f", "64101f"]
)
def test_profiles_that_cannot_be_met_are_left_out(text: str) -> None:
    assert read_profile(text) is None


def test_only_a_level_below_what_browsers_always_say_is_a_limit() -> None:
    for text, size in (("42e01f", None), ("42e028", None), ("42e01e", (720, 576)), ("42e00d", (352, 288))):
        profile = read_profile(text)
        assert profile is not None
        assert profile.max_size == size


def test_of_each_kind_one_is_received_and_one_is_sent() -> None:
    text = offer(
        section("video", "a", "sendonly", CHROME),
        section("video", "b", "recvonly", CHROME),
        section("video", "c", "sendrecv", CHROME),
        section("audio", "d", "sendrecv", OPUS),
    )
    found = taken(text, receive=True, send=True)
    assert [(s.mid, s.direction) for s in found.sections] == [
        ("a", "recvonly"),
        ("b", "sendonly"),
        ("d", "sendrecv"),
    ]
    assert found.order[2] == ("m=video 0 UDP/TLS/RTP/SAVPF " + " ".join(str(f[0]) for f in CHROME), "c")


def test_candidates_of_a_section_that_is_left_out_are_kept_for_its_bundle() -> None:
    text = offer(
        section(
            "audio",
            "0",
            "sendonly",
            ((0, "PCMU/8000", "", ()),),
            "a=candidate:1 1 udp 99 10.0.0.1 5000 typ host",
        ),
        section("video", "1", "sendonly", CHROME),
    )
    found = taken(text, receive=True)
    assert "10.0.0.1 5000 typ host" in found.offer
    assert "a=group:BUNDLE 1\r\n" in found.offer


def test_a_section_with_port_zero_is_left_out_unless_it_is_bundled() -> None:
    video = section("video", "0", "sendonly", CHROME).replace("m=video 9", "m=video 0")
    audio = section("audio", "1", "sendonly", OPUS)
    assert [s.mid for s in taken(offer(video, audio), receive=True).sections] == ["1"]
    bundled = video + "a=bundle-only\r\n"
    assert [s.mid for s in taken(offer(bundled, audio), receive=True).sections] == ["0", "1"]


async def test_max_bundle_offers_describe_the_transport_once_and_connect() -> None:
    async with stage() as built:
        connection, peer = await built.publish(picture_track(), sound_track(), edit=bundle_only)
        await until(lambda: built.ingest.publisher is not None, "media")
        assert peer.state == "connected"
        assert connection.connectionState == "connected"
    lacking = bundle_only(
        offer(section("audio", "0", "sendonly", OPUS), section("video", "1", "sendonly", CHROME))
    )
    assert len(taken(lacking, receive=True).sections) == 2
    with pytest.raises(InvalidInput, match="ice-ufrag"):
        taken(lacking.replace("BUNDLE 0 1", "BUNDLE 1"), receive=True)


def test_nothing_that_can_be_used_is_said_with_what_was_offered() -> None:
    text = offer(section("video", "0", "sendonly", ((120, "AV1/90000", "", ()),)))
    with pytest.raises(Unprocessable, match="AV1"):
        taken(text, receive=True)
    with pytest.raises(Unprocessable, match=r"takes H\.264"):
        taken(offer(section("video", "0", "sendonly", CHROME)), send=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a=ice-ufrag:abcd\r\n", ""),
        (f"a=fingerprint:sha-256 {FINGERPRINT}\r\n", ""),
        ("a=fingerprint:sha-256", "a=fingerprint:sha-1"),
        ("a=rtcp-mux\r\n", ""),
        ("a=setup:actpass", "a=setup:nonsense"),
        ("a=mid:0\r\n", ""),
        ("m=video 9", "m=video nine"),
        ("v=0", "v=one"),
        ("a=rtpmap:96", "a=rtpmap:ninety"),
        ("a=fmtp:102", "a=fmtp:55"),
    ],
)
def test_what_an_offer_lacks_is_named(old: str, new: str) -> None:
    text = offer(section("video", "0", "sendonly", CHROME), bundle="0")
    assert old in text
    with pytest.raises(InvalidInput):
        taken(text.replace(old, new), receive=True)


@given(
    st.text(max_size=300)
    | st.just("v=0\r\n")
    | st.binary(max_size=200).map(lambda b: "v=0\r\n" + b.decode("latin-1"))
)
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(HeadraceError):
        taken(text, receive=True, send=True, channels=True)


_WHOLE = offer(section("video", "0", "sendrecv", CHROME), section("audio", "1", "sendrecv", OPUS))


@given(st.integers(0, len(_WHOLE)), st.integers(0, 40), st.text(max_size=10))
def test_a_damaged_offer_is_read_or_refused(at: int, length: int, instead: str) -> None:
    try:
        taken(_WHOLE[:at] + instead + _WHOLE[at + length :], receive=True, send=True)
    except HeadraceError:
        pass


async def test_the_answer_has_a_section_for_each_of_the_offer() -> None:
    text = offer(
        section("audio", "0", "sendonly", ((0, "PCMU/8000", "", ()),)),
        section("video", "1", "sendonly", CHROME),
        section("text", "2", "sendonly", ((100, "t140/1000", "", ()),)),
        section("audio", "3", "sendonly", OPUS),
    )
    async with stage() as built:
        peer = built.peer()
        answer = await peer.answer(text, receive=built.ingest)
        found = list(sections(answer))
        assert [text.split()[0] for text in found] == ["m=audio", "m=video", "m=text", "m=audio"]
        assert [text.split()[1] == "0" for text in found] == [True, False, True, False]
        assert "a=group:BUNDLE 1 3" in answer
        assert "a=ice-options:trickle" in answer
        assert "a=recvonly" in found[1]
        assert "profile-level-id=420034" in found[1]
        assert "a=fmtp:111 minptime=10;useinbandfec=1;stereo=1;sprop-stereo=1" in found[3]
        assert "transport-cc" not in answer
        assert peer.remote_ufrag == "abcd"
        assert f"a=ice-ufrag:{peer.ice_ufrag}" in answer


async def test_a_refused_offer_leaves_nothing_behind() -> None:
    closed: list[Peer] = []
    peer = Peer(IceSettings(), on_closed=closed.append)
    with pytest.raises(Unprocessable):
        await peer.answer(
            offer(section("video", "0", "sendonly", CHROME)), channels=lambda label, channel: None
        )
    await peer.close("refused")
    assert closed == [peer]
