"""Requests and news on data channels, and who follows a session's feed."""

import asyncio
import json

import pytest
from channel_pair import TestChannel
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import HeadraceError, InvalidInput
from stream.session_feed import Feeds, Follower, News
from stream.webrtc import channels
from stream.webrtc.channels import (
    NewsChannel,
    Request,
    RequestChannel,
    Timing,
    as_message,
    parse_message,
    session_requests,
)
from tests.stream.quiet_session import quiet_session


async def _echo(message):
    return {"heard": message.get("value")}


async def _refuse(message):
    raise InvalidInput("no such thing", field="value", details=[{"code": "x"}])


async def _break(message):
    raise RuntimeError("boom")


REQUESTS = {
    "echo": Request("echoed", _echo),
    "plain": Request("plain_answer", _echo, flag=False),
    "refuse": Request("refused", _refuse),
    "break": Request("broken", _break),
}


@pytest.fixture
async def channel():
    channel = TestChannel("control")
    requests = RequestChannel(channel, REQUESTS)
    yield channel
    requests.close()


async def test_requests_are_answered_in_order_with_their_id(channel):
    for number in range(5):
        channel.says({"type": "echo", "value": number, "id": {"n": number}})
    for number in range(5):
        answer = await channel.until(lambda _: True)
        assert answer == {"type": "echoed", "success": True, "heard": number, "id": {"n": number}}


async def test_an_answer_has_a_flag_only_where_the_protocol_has_one(channel):
    assert await channel.ask({"type": "plain", "value": 1}) == {"type": "plain_answer", "heard": 1}


async def test_a_refusal_names_field_and_details_and_the_channel_goes_on(channel):
    answer = await channel.ask({"type": "refuse", "id": 7})
    assert answer == {
        "type": "refused",
        "success": False,
        "error": "no such thing",
        "code": "invalid_input",
        "field": "value",
        "details": [{"code": "x"}],
        "id": 7,
    }
    broken = await channel.ask({"type": "break"})
    assert (broken["type"], broken["success"], broken["code"]) == ("broken", False, "internal")
    assert "boom" in broken["error"]
    assert (await channel.ask({"type": "echo"}))["success"]


async def test_an_unknown_type_gets_an_answer_that_lists_the_known(channel):
    answer = await channel.ask({"type": "dance", "id": 1})
    assert (answer["type"], answer["request"], answer["id"]) == ("error", "dance", 1)
    assert "refuse" in answer["error"]


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        "5",
        '{"no": "type"}',
        '{"type": 5}',
        b"bytes",
        "[" * 100_000,
        '{"type": "echo", "x": "' + "é" * (channels.MAX_MESSAGE // 2) + '"}',
    ],
)
async def test_what_is_no_message_gets_an_error(channel, message):
    channel.says(message)
    assert (await channel.until(lambda _: True))["type"] == "error"
    assert (await channel.ask({"type": "echo"}))["success"]


@given(st.one_of(st.text(), st.binary(), st.recursive(st.none() | st.integers(), st.lists).map(json.dumps)))
def test_parsing_raises_nothing_else(data):
    try:
        assert isinstance(parse_message(data)["type"], str)
    except HeadraceError as error:
        assert error.field in ("message", "type")


async def test_a_flood_is_refused_beyond_a_bound_and_nothing_is_lost_silently(channel):
    for number in range(100):
        channel.says({"type": "echo", "value": number, "id": number})
    await channel.until(lambda message: message.get("id") == channels.MAX_WAITING - 1 and message["success"])
    answered = channels.MAX_WAITING
    channel.sent.clear()
    for number in range(100):
        channel.says({"type": "echo", "id": number})
    refused = [message["id"] for message in channel.sent if not message["success"]]
    assert refused == list(range(answered, 100))
    assert "wait" in channel.sent[-1]["error"]


async def test_the_bytes_that_wait_are_bounded(channel):
    # With 5 requests of nearly the largest size, more than may wait together.
    for number in range(5):
        channel.says({"type": "echo", "id": number, "x": "y" * (channels.MAX_MESSAGE - 100)})
    refused = [message["id"] for message in channel.sent if not message["success"]]
    assert refused == [4]
    assert "bytes wait" in channel.sent[-1]["error"]
    await channel.until(lambda message: message.get("id") == 3)
    assert (await channel.ask({"type": "echo", "x": "y" * (channels.MAX_MESSAGE - 100)}))["success"]


async def test_what_is_asked_for_at_once_does_not_wait_for_a_slow_change():
    channel, go, order = TestChannel("control"), asyncio.Event(), []

    async def change(message):
        await go.wait()
        order.append(message["id"])
        return {}

    known = {"change": Request("changed", change), "pause": Request("paused", _echo, at_once=True)}
    requests = RequestChannel(channel, known)
    for number in range(3):
        channel.says({"type": "change", "id": number})
    assert (await channel.ask({"type": "pause", "id": "now"}))["id"] == "now"
    assert (await channel.ask({"type": "dance"}))["type"] == "error"
    channel.sent.clear()
    go.set()
    await channel.until(lambda message: message.get("id") == 2)
    assert order == [0, 1, 2]
    requests.close()


async def test_an_answer_that_cannot_be_written_does_not_end_the_channel():
    channel = TestChannel("control")

    async def circular(message):
        found = {}
        found["itself"] = found
        return found

    async def given_up(message):
        inner = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner
        return {}

    known = {
        "circular": Request("circle", circular),
        "given_up": Request("gone", given_up),
        "echo": Request("echoed", _echo),
    }
    requests = RequestChannel(channel, known)
    answer = await channel.ask({"type": "circular", "id": 4})
    assert (answer["type"], answer["id"], answer["success"]) == ("circle", 4, False)
    assert not (await channel.ask({"type": "given_up"}))["success"]
    deep = '{"type": "echo", "id": ' + "[" * 900 + "]" * 900 + "}"
    assert (await channel.ask(deep))["type"] == "echoed"
    large = await channel.ask({"type": "echo", "id": "x" * (channels.MAX_MESSAGE - 100)})
    assert (large["success"], "id" in large) == (False, False)
    assert (await channel.ask({"type": "echo"}))["success"]
    requests.close()


async def test_what_is_too_large_for_a_browser_is_said_instead_of_sent():
    channel = TestChannel("control")

    async def huge(message):
        return {"nodes": "x" * channels.MAX_REPLY}

    requests = RequestChannel(channel, {"get": Request("nodes_info", huge, flag=False)})
    answer = await channel.ask({"type": "get", "id": 3})
    assert (answer["type"], answer["id"], answer["success"]) == ("nodes_info", 3, False)
    requests.close()


async def no_parameters(session):
    return {"type": "object"}


async def test_parameters_schema_and_status_of_a_session():
    session, channel = quiet_session("one"), TestChannel("control")
    requests = RequestChannel(channel, session_requests(session, no_parameters, Timing(None)))
    assert await channel.ask({"type": "get_schema"}) == {"type": "schema", "schema": {"type": "object"}}
    assert (await channel.ask({"type": "get_status"}))["status"]["id"] == "one"
    answer = await channel.ask({"type": "update_params", "params": {}, "id": 1})
    assert answer == {"type": "params_updated", "success": True, "frame": 0, "id": 1}
    answer = await channel.ask({"type": "update_params", "params": {"sigma": 3}})
    assert (answer["success"], answer["field"]) == (False, "sigma")
    assert not (await channel.ask({"type": "update_params", "params": 5}))["success"]
    answer = await channel.ask({"type": "timing", "on": True})
    assert (answer["type"], answer["success"]) == ("timing_set", False)
    requests.close()


async def test_timing_is_told_while_it_is_wanted(monkeypatch):
    monkeypatch.setattr(channels, "TIMING_INTERVAL", 0.01)
    sent = iter([[["stale"]], [[90, 180, 4.5]]])
    timing, channel = Timing(lambda: next(sent, [])), TestChannel("control")
    requests = RequestChannel(channel, session_requests(quiet_session("one"), no_parameters, timing))
    timing.outlet = requests.outlet
    assert (await channel.ask({"type": "timing", "on": True, "id": 2}))["id"] == 2
    assert (await channel.until(lambda m: m["type"] == "timing"))["frames"] == [[90, 180, 4.5]]
    channel.says({"type": "timing", "on": False})
    await channel.until(lambda m: m["type"] == "timing_set")
    assert timing._task is None
    requests.close()


# -- news ----------------------------------------------------------------------------------------------


def test_text_has_comfystreams_form_and_the_rest_are_events():
    assert as_message(News("text", {"data": "hello", "time": 1.0})) == {
        "type": "text",
        "data": "hello",
        "time": 1.0,
    }
    assert as_message(News("data", {"data": [1], "time": None}))["type"] == "data"
    assert as_message(News("state", {"state": "ONLINE"})) == {
        "type": "event",
        "event": {"type": "state", "state": "ONLINE"},
    }
    assert as_message(News("event", {"type": "mine", "x": 1}))["event"] == {"type": "mine", "x": 1}


async def test_what_a_session_says_reaches_every_follower_in_order():
    session, feeds = quiet_session("one"), Feeds()
    channel = TestChannel("data")
    news = NewsChannel(channel, feeds.of(session))
    follower = Follower(feeds.of(session))
    session.processor.emit("text", "hello")
    session.processor.emit("data", {"x": 1})
    session.processor.emit("event", {"type": "mine"})
    await session.update_params({})
    kinds = [(await follower.next(1)).kind for _ in range(5)]
    assert kinds == ["state", "text", "data", "event", "params"]
    assert [message["type"] for message in channel.sent] == ["event", "text", "data", "event", "event"]
    channel.closes()
    follower.close()
    news.close()
    assert feeds.of(session)._watch is None


async def test_a_feed_ends_with_the_session():
    session, feeds = quiet_session("one"), Feeds()
    follower = Follower(feeds.of(session))
    running = asyncio.create_task(session.run())
    await asyncio.sleep(0)
    session.stop("enough")
    await running
    told = [await follower.next(1)]
    while told[-1].kind != "ended":
        told.append(await follower.next(1))
    assert told[-1].body == {"reason": "enough", "error": None}
    late = Follower(feeds.of(session))
    while (news := await late.next(2)) is not None and news.kind != "ended":
        pass
    assert news.body["reason"] == "enough"


async def test_states_are_told_when_they_change():
    session, feeds = quiet_session("one"), Feeds()
    follower = Follower(feeds.of(session))
    session.processor.progress = lambda: ("Halfway", 0.5)
    assert (await follower.next(1)).body["message"] == "Loading"
    told = (await follower.next(2)).body
    assert told == {"state": "LOADING", "message": "Halfway", "progress": 0.5, "hold": "running"}
    follower.close()


async def test_a_slow_follower_loses_the_oldest_and_is_told_how_many():
    session = quiet_session("one")
    follower = Follower(Feeds().of(session), held=3)
    for number in range(10):
        session.processor.emit("data", number)
    assert (await follower.next(1)) == News("dropped", {"count": 8})
    assert [(await follower.next(1)).body["data"] for _ in range(3)] == [7, 8, 9]
    assert await follower.next(0.01) is None
    follower.close()


async def test_news_for_a_receiver_that_is_far_behind_are_left_out_and_counted():
    session, channel = quiet_session("one"), TestChannel("data")
    news = NewsChannel(channel, Feeds().of(session))
    channel.bufferedAmount = 1 << 30
    for number in range(4):
        session.processor.emit("data", number)
    channel.bufferedAmount = 0
    session.processor.emit("data", 4)
    assert [message["type"] for message in channel.sent] == ["event", "data", "event"]
    assert channel.sent[-1]["event"] == {"type": "dropped", "count": 4}
    news.close()
