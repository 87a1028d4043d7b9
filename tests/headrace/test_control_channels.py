"""Which data channels a connection may have, and what each of them may ask for."""

import asyncio

import pytest

from headrace.server.control_channel import Channels
from headrace.server.definitions import WorkerDefinitions
from headrace.server.specs import Specs
from stream.session_feed import Feeds
from tests.stream.quiet_session import quiet_session
from tests.stream.webrtc.channel_pair import TestChannel

CHANGES = [
    {"type": "update_params", "params": {}},
    {"type": "update_prompts", "prompts": [{"1": {}}]},
    {"type": "update_resolution", "width": 64, "height": 64},
    {"type": "switch_workflow", "workflow": "passthrough"},
    {"type": "pause_prompts"},
    {"type": "resume_prompts"},
    {"type": "stop_prompts"},
]


@pytest.fixture
def make():
    made = []

    def channels(**more):
        made.append(Channels(quiet_session("one"), Specs(WorkerDefinitions()), Feeds(), **more))
        return made[-1]

    yield channels
    for each in made:
        each.close()


async def test_one_channel_of_each_label_and_no_other(make):
    before = len(asyncio.all_tasks())
    channels, opened = make(), {}
    for label in ["control", "data", *["control", "data", "chat"] * 700]:
        channel = TestChannel(label)
        channels.opened(label, channel)
        opened.setdefault(channel.readyState, []).append(label)
    assert opened["open"] == ["control", "data"]
    assert len(asyncio.all_tasks()) - before < 10


async def test_a_closed_channel_leaves_nothing_and_can_be_opened_again(make):
    channels, before = make(), len(asyncio.all_tasks())
    for _ in range(5):
        control, data = TestChannel("control"), TestChannel("data")
        channels.opened("control", control)
        channels.opened("data", data)
        assert (await control.ask({"type": "get_status"}))["type"] == "status"
        control.closes()
        # Its end is still being agreed on when the next one comes.
        data.readyState = "closing"
    await asyncio.sleep(0)
    after = TestChannel("data")
    channels.opened("data", after)
    data.closes()
    assert after.sent
    assert channels._open.keys() == {"data"}
    assert len(asyncio.all_tasks()) - before < 3


async def test_who_only_watches_may_ask_and_change_nothing(make):
    channels, control = make(steers=False, timings=list), TestChannel("control")
    channels.opened("control", control)
    for message in CHANGES:
        answer = await control.ask({**message, "id": 1})
        assert (answer["success"], answer["code"], answer["id"]) == (False, "forbidden", 1), message
        assert "only watches" in answer["error"]
    assert channels._session.params == {}
    assert (await control.ask({"type": "get_status"}))["status"]["id"] == "one"
    assert (await control.ask({"type": "get_schema"}))["type"] == "schema"
    assert (await control.ask({"type": "timing", "on": False}))["success"]


async def test_who_publishes_may_change(make):
    channels, control = make(), TestChannel("control")
    channels.opened("control", control)
    assert (await control.ask({"type": "update_params", "params": {}}))["success"]
