"""What offers, fragments and queries are refused for, before anything is built for them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offers import DATA_ONLY, FINGERPRINT, PUBLISHING, SESSION, VIEWING, bundle_only, offer

from stream.errors import HeadraceError, InvalidInput, TooLarge
from stream.webrtc.errors import Unprocessable
from stream.webrtc.sdp import MAX_SDP, check_offer, format_fragment, parse_fragment, parse_offer
from stream.webrtc.selection import HEADER, parse_selection


def test_offers_are_read_with_their_directions():
    found = check_offer(PUBLISHING, "publish")
    assert [(m.kind, m.sends, m.receives) for m in found.media] == [
        ("audio", True, False),
        ("video", True, False),
    ]
    assert [m.ufrag for m in found.media] == ["abcd", "abcd"]
    assert check_offer(VIEWING.replace("\r\n", "\n"), "view").bundle == ("0", "1")


def test_one_medium_in_the_right_direction_is_enough():
    check_offer(offer(("video", "sendonly")), "publish")
    check_offer(offer(("audio", "inactive"), ("video", "sendrecv"), ("application", "")), "publish")
    check_offer(offer(("audio", "recvonly")), "view")


def test_security_may_stand_at_the_session_level():
    text = PUBLISHING
    for line in ("a=ice-ufrag:abcd", "a=ice-pwd:0123456789abcdefghijkl", "a=setup:actpass"):
        text = text.replace(f"{line}\r\n", "").replace("t=0 0\r\n", f"t=0 0\r\n{line}\r\n", 1)
    check_offer(text, "publish")


def test_only_the_first_section_of_a_bundle_must_describe_the_transport():
    found = check_offer(bundle_only(PUBLISHING), "publish")
    assert [(m.ufrag, m.setup, m.rtcp_mux) for m in found.media] == [("abcd", "actpass", True)] * 2
    with pytest.raises(InvalidInput, match="ice-ufrag"):
        check_offer(bundle_only(PUBLISHING).replace("BUNDLE 0 1", "BUNDLE 1"), "publish")


@pytest.mark.parametrize(
    ("text", "purpose", "words"),
    [
        ("", "publish", "v=0"),
        ("hello", "publish", "v=0"),
        ("{}", "publish", "v=0"),
        (SESSION, "publish", "no media"),
        (SESSION + "nonsense\r\n", "publish", "line 5"),
        (SESSION + "m=video\r\n", "publish", "line 5"),
        (DATA_ONLY, "publish", "no audio and no video"),
        (DATA_ONLY, "view", "no audio and no video"),
        (VIEWING, "publish", "sendonly"),
        (PUBLISHING, "view", "recvonly"),
        (offer(("video", "inactive")), "publish", "inactive"),
        (PUBLISHING.replace("a=ice-ufrag:abcd\r\n", ""), "publish", "ice-ufrag"),
        (PUBLISHING.replace("a=ice-pwd:0123456789abcdefghijkl", "a=ice-pwd:short"), "publish", "ice-pwd"),
        (PUBLISHING.replace(f"a=fingerprint:sha-256 {FINGERPRINT}\r\n", ""), "publish", "DTLS"),
        (PUBLISHING.replace("a=setup:actpass\r\n", ""), "publish", "setup"),
        (PUBLISHING.replace("a=rtcp-mux\r\n", ""), "publish", "rtcp-mux"),
        (bundle_only(PUBLISHING).replace("a=rtcp-mux\r\n", ""), "publish", "rtcp-mux"),
        (PUBLISHING.replace("a=group:BUNDLE 0 1\r\n", ""), "publish", "BUNDLE"),
        (PUBLISHING + "a=x:" + "y" * 5000, "publish", "characters"),
        (PUBLISHING.replace("s=-", "s=\0"), "publish", "not text"),
        (offer(*[("application", "")] * 9), "publish", "media"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(text, purpose, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        check_offer(text, purpose)
    assert caught.value.field == "sdp"
    assert len(caught.value.message) < 300


def test_a_disabled_section_is_neither_taken_nor_asked_for_anything():
    check_offer(PUBLISHING + "m=video 0 UDP/TLS/RTP/SAVPF 96\r\n", "publish")
    with pytest.raises(InvalidInput):
        check_offer(SESSION + "m=video 0 UDP/TLS/RTP/SAVPF 96\r\na=sendonly\r\n", "publish")


def test_several_tracks_of_a_kind_are_more_than_is_done():
    with pytest.raises(Unprocessable, match="video"):
        check_offer(offer(("video", "sendonly"), ("video", "sendonly")), "publish")


def test_large_offers_are_refused():
    with pytest.raises(TooLarge, match=str(MAX_SDP)):
        check_offer(PUBLISHING + "a=x\r\n" * 30_000, "publish")


@given(st.text(max_size=400))
def test_garbage_is_refused_and_nothing_else_happens(text):
    for start in ("", SESSION, PUBLISHING):
        try:
            parse_offer(start + text)
            check_offer(start + text, "publish")
        except HeadraceError:
            pass


lines_of_an_offer = PUBLISHING.splitlines(keepends=True)


@given(st.lists(st.sampled_from(lines_of_an_offer), max_size=30), st.data())
def test_shuffled_offers_are_refused_or_sound(lines, data):
    try:
        found = check_offer("v=0\r\n" + "".join(lines), "publish")
    except HeadraceError:
        return
    assert any(m.kind in ("audio", "video") and m.sends for m in found.media)
    assert all(m.ufrag and m.password and m.fingerprint for m in found.media if not m.disabled)


def test_fragments_carry_candidates_and_credentials():
    line = "candidate:1 1 udp 1 192.0.2.1 5000 typ host"
    text = f"a=ice-ufrag:abcd\r\na=ice-pwd:{'p' * 22}\r\nm=audio 9 X 0\r\na=mid:0\r\n"
    text += f"a={line}\r\na=end-of-candidates\r\n"
    found = parse_fragment(text)
    assert (found.ufrag, found.password, found.candidates, found.ended) == ("abcd", "p" * 22, (line,), True)
    assert parse_fragment("") == parse_fragment("\r\n")


def test_what_we_answer_can_be_read():
    lines = ["candidate:1 1 udp 1 192.0.2.1 5000 typ host"]
    found = parse_fragment(format_fragment("abcd", "p" * 22, lines))
    assert (found.ufrag, found.password, list(found.candidates), found.ended) == (
        "abcd",
        "p" * 22,
        lines,
        True,
    )


@pytest.mark.parametrize(
    "text", ["a=ice-ufrag:abcd", "a=ice-ufrag:a\r\na=ice-pwd:b", "what?", "a=x:" + "y" * 5000]
)
def test_other_fragments_are_refused(text):
    with pytest.raises(InvalidInput) as caught:
        parse_fragment(text)
    assert caught.value.field == "sdpfrag"


@given(st.text(max_size=300))
def test_garbage_fragments_are_refused_and_nothing_else_happens(text):
    try:
        parse_fragment("a=ice-ufrag:" + text)
        parse_fragment(text)
    except HeadraceError:
        pass


def test_a_url_selects_everything():
    query = [
        ("workflow", "edges"),
        ("width", "640"),
        ("height", "480"),
        ("param.canny.low_threshold", "0.2"),
        ("param.text", "a cat"),
        ("publish_url", "http://127.0.0.1:2939/out"),
        ("token", "s3cret"),
    ]
    found = parse_selection(query, json.dumps({"workflow": "cartoon", "strength": 1}))
    assert found.params == {
        "workflow": "edges",
        "width": "640",
        "height": "480",
        "canny.low_threshold": 0.2,
        "text": "a cat",
        "strength": 1,
    }
    assert found.url("publish") == "http://127.0.0.1:2939/out"
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    ("query", "header", "field"),
    [
        ([("worflow", "edges")], None, "worflow"),
        ([("subscribe_url", "http://x/y")], None, "subscribe_url"),
        ([("workflow", "a"), ("workflow", "b")], None, "workflow"),
        ([("publish_url", "ftp://x")], None, "publish_url"),
        ([], "[1]", HEADER),
        ([], "{", HEADER),
        ([], '{"a": NaN}', HEADER),
        ([], '{"a": 1e999}', HEADER),
        ([], json.dumps({"a": "x" * 9000}), HEADER),
    ],
)
def test_what_is_wrong_with_a_url_is_named(query, header, field):
    with pytest.raises(InvalidInput) as caught:
        parse_selection(query, header)
    assert caught.value.field == field


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=4), st.text(max_size=40))
def test_any_query_is_read_or_refused(query, header):
    try:
        parse_selection(query, header)
    except InvalidInput as error:
        assert error.field
