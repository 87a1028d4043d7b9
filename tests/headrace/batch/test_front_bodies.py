"""Bodies over HTTP: forms in any order, what is too large, what is broken, what never comes."""

import asyncio
import gzip
import json

import aiohttp
import pytest
from batch_stand_in import PNG, StandInEngine, batch_server, unlike, until
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batch import bodies
from headrace.batch.bodies import UploadBudget
from headrace.batch.errors import QueueFull

FIELDS = {"prompt": "a cät", "model_id": "", "strength": "0.5", "safety_check": "False", "seed": "7"}


def part(name, data, filename=None, kind=None):
    head = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    lines = [head, *([f"Content-Type: {kind}"] if kind else [])]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def body(parts, boundary=b"xYzZY"):
    return b"".join(b"--" + boundary + b"\r\n" + p + b"\r\n" for p in parts) + b"--" + boundary + b"--\r\n"


async def send(server, data, kind="multipart/form-data; boundary=xYzZY", path="/image-to-image", **headers):
    headers = {"Content-Type": kind, **headers} if kind else {**headers}
    async with server.client.post(
        path, data=data, headers=headers, skip_auto_headers=["Content-Type"]
    ) as answer:
        return answer.status, await answer.json()


@settings(max_examples=20)
@given(
    order=st.permutations([*FIELDS, "image"]),
    kind=st.sampled_from([None, "text/html", "application/octet-stream"]),
)
def test_parts_may_come_in_any_order_with_any_type(order, kind):
    async def check():
        async with batch_server(StandInEngine()) as server:
            parts = [
                part(name, PNG, "blob", kind) if name == "image" else part(name, FIELDS[name].encode())
                for name in order
            ]
            status, answer = await send(server, body(parts))
            assert status == 200, answer
            _, _, inputs, blobs = server.engine.calls[-1]
            assert (inputs["prompt"], inputs["strength"], inputs["seed"]) == ("a cät", 0.5, 7)
            assert inputs["safety_check"] is False
            assert blobs == {"image": PNG}

    asyncio.run(check())


async def test_a_part_with_a_type_and_no_name_of_a_file_is_a_file():
    async with batch_server(StandInEngine()) as server:
        parts = [part("prompt", b""), part("image", PNG, None, "application/octet-stream")]
        assert (await send(server, body(parts)))[0] == 200
        status, answer = await send(server, body([part("prompt", b""), part("image", b"text")]))
        assert (status, answer["detail"][0]["loc"]) == (422, ["body", "image"])


async def test_what_is_no_form_is_answered_with_what_is_wrong():
    async with batch_server(StandInEngine()) as server:
        good = body([part("prompt", b""), part("image", PNG, "a.png")])
        assert (await send(server, good, "multipart/form-data"))[0] == 400
        assert (await send(server, good[:-20]))[0] in (200, 400)
        assert (await send(server, b"", "multipart/form-data; boundary=x"))[0] in (400, 422)
        assert (await send(server, body([part("prompt", b"\xff\xfe")])))[0] == 422
        nested = b"Content-Type: multipart/mixed; boundary=q\r\n\r\n--q--\r\n"
        assert (await send(server, body([nested])))[0] == 400
        many = body([part(f"f{n}", b"x") for n in range(bodies.MAX_PARTS + 1)])
        assert (await send(server, many))[0] == 413
        assert (await send(server, good, "text/plain"))[0] == 422
        assert (await send(server, gzip.compress(good), **{"Content-Encoding": "gzip"}))[0] == 400
        assert server.front.budget.held == 0
        assert (await send(server, good))[0] == 200


@pytest.mark.filterwarnings("ignore::aiohttp.multipart.BadContentDispositionHeader")
@pytest.mark.filterwarnings("ignore::aiohttp.multipart.BadContentDispositionParam")
@settings(max_examples=30)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_no_form_however_broken_stops_the_server(noise, cut):
    async def check():
        async with batch_server(StandInEngine()) as server:
            good = body([part("prompt", b"x"), part("image", PNG, "a.png")])
            for data in (noise, good[:cut] + noise, good[:cut] + noise + good[cut:], good[: -cut or None]):
                status, answer = await send(server, data)
                assert status in (200, 400, 413, 422)
                assert status == 200 or answer["error"]["message"]
            assert server.front.budget.held == 0
            assert (await send(server, good))[0] == 200

    asyncio.run(check())


async def test_files_over_the_limit_are_refused_with_the_limit(monkeypatch):
    monkeypatch.setattr(bodies, "MAX_UPLOAD", 1000)
    async with batch_server(StandInEngine()) as server:
        status, answer, _ = await server.form("/image-to-text", {"image": bytes(1001)})
        assert status == 413
        assert answer["detail"]["msg"] == "File size exceeds limit: image has over 1000 bytes."
        assert (await server.form("/image-to-text", {"image": bytes(1000)}))[0] == 200
        monkeypatch.setattr(bodies, "MAX_TEXT", 50)
        status, answer, _ = await server.form("/image-to-text", {"prompt": "x" * 51, "image": PNG})
        assert (status, answer["error"]["param"]) == (413, "prompt")
        monkeypatch.setattr(bodies, "MAX_JSON", 100)
        for data in (json.dumps({"prompt": "x" * 100}), chunks(b" " * 101)):
            assert (await send(server, data, "application/json", "/text-to-image"))[0] == 413
        assert server.front.budget.held == 0


async def begin(server):
    """A request whose body is announced and never comes; the answer to it."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /text-to-image HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n{{"
    writer.write(head.encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    length = int(answer.lower().partition(b"content-length:")[2].split()[0])
    found = await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1]), json.loads(found)


async def chunks(data):
    for index in range(0, len(data), 10):
        yield data[index : index + 10]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 422), (b"{", 422), (b"[]", 422), (b"null", 422), (b'{"prompt": NaN}', 422),
        (b"\xff", 422), (b"[" * 100_000, 400), (b'{"prompt": "x"}', 200), (b'{"prompt": "\xc3\xa4"}', 200),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 422),
    ],
)  # fmt: skip
async def test_json_is_read_strictly_and_needs_no_type(data, status):
    async with batch_server(StandInEngine()) as server:
        for kind in ("application/json", "application/json; charset=utf-8", None):
            found, answer = await send(server, data, kind, "/text-to-image")
            assert found == status, answer
            assert status == 200 or answer["error"]["message"]


async def test_a_body_that_stalls_is_given_up(monkeypatch):
    monkeypatch.setattr(bodies, "STALL", 0.1)
    async with batch_server(StandInEngine()) as server:
        status, answer = await begin(server)
        assert (status, answer["error"]["param"]) == (400, "body")


async def test_a_client_that_leaves_in_its_upload_holds_nothing():
    async with batch_server(StandInEngine()) as server:
        begun = asyncio.Event()

        async def forever():
            yield b"--xYzZY\r\n" + part("image", b"", "a.png") + bytes(100_000)
            begun.set()
            await asyncio.sleep(60)

        sending = asyncio.ensure_future(send(server, forever()))
        await begun.wait()
        await until(lambda: server.front.budget.held > 0)
        sending.cancel()
        await asyncio.wait({sending})
        await until(lambda: server.front.budget.held == 0)


def test_uploads_share_a_budget():
    budget = UploadBudget(100)
    one, two = budget.open(), budget.open()
    one.take(60)
    with pytest.raises(QueueFull):
        two.take(50)
    two.take(40)
    three = one.hand_over()
    one.close()
    assert budget.held == 100
    three.close()
    three.close()
    two.close()
    assert budget.held == 0


async def test_nothing_is_read_for_which_there_is_no_place():
    async with batch_server(StandInEngine(), batch_queue=1) as server:
        server.engine.gate.clear()
        waiting = [
            asyncio.ensure_future(server.json("/text-to-image", unlike(number))) for number in range(3)
        ]
        await until(lambda: server.front.service.queue.waiting == 1)

        status, answer = await begin(server)
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        server.engine.gate.set()
        assert [status for status, _, _ in await asyncio.gather(*waiting)] == [200] * 3


async def test_large_answers_do_not_hold_up_the_server():
    async with batch_server(StandInEngine()) as server:
        form = aiohttp.FormData({"prompt": "x"})
        form.add_field("image", bytes(3 << 20), filename="x")
        async with server.client.post("/upscale", data=form) as response:
            assert response.status == 200
        assert len(server.engine.calls[-1][3]["image"]) == 3 << 20
