"""Media through WHIP and WHEP: stock peers and FFmpeg's muxer over a real server, with real sessions."""

import asyncio
import datetime
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from stock_peers import Publisher, Viewer, until
from whip_program import FRAGMENT, whip_program

from stream.webrtc.adapter.ice import parse_candidate
from stream.webrtc.sdp import parse_fragment

RED, BLUE = (220, 30, 30), (30, 30, 220)


def is_red(viewer):
    return len(viewer.colour) == 3 and viewer.colour[0] > 150 > 100 > viewer.colour[2]


def is_blue(viewer):
    return len(viewer.colour) == 3 and viewer.colour[2] > 150 > 100 > viewer.colour[0]


@asynccontextmanager
async def closing(*peers):
    try:
        yield peers
    finally:
        await asyncio.gather(*(peer.close() for peer in peers))


async def test_what_is_published_is_seen_by_every_viewer_and_by_the_next_publisher_too():
    async with whip_program(real=True) as program:
        client = program.client
        first, second = Publisher(client, RED), Publisher(client, BLUE)
        one, two = Viewer(client), Viewer(client)
        async with closing(first, second, one, two):
            assert await first.post("/whip/live") == 201
            assert await one.post("/whep/live") == 201
            await until(lambda: is_red(one))
            assert await two.post("/whep/live") == 201
            await until(lambda: is_red(two))
            session = program.host.table.find("live")
            assert await first.delete() == 200
            assert await second.post("/whip/live") == 201
            await until(lambda: is_blue(one) and is_blue(two))
            assert program.host.table.find("live") is session
            assert await one.delete() == await two.delete() == 200
            await until(lambda: len(program.peers) == 1)
            assert session.ending is None


async def test_the_token_in_the_url_is_enough_for_the_whole_life():
    async with whip_program(real=True, token="s3cret") as program:
        publisher, viewer = Publisher(program.client, RED), Viewer(program.client)
        async with closing(publisher, viewer):
            assert await publisher.post("/whip/live?token=wrong") == 401
            assert await publisher.post("/whip/live?token=s3cret") == 201
            assert await viewer.post("/key/s3cret/whep/live") == 201
            await until(lambda: is_red(viewer))
            assert await publisher.delete() == 200


async def test_a_restart_by_patch_keeps_the_picture():
    async with whip_program(real=True) as program:
        publisher, viewer = Publisher(program.client, RED), Viewer(program.client)
        async with closing(publisher, viewer):
            assert await publisher.post("/whip/live") == 201
            assert await viewer.post("/whep/live") == 201
            await until(lambda: is_red(viewer))
            await restart(program.client, publisher)
            before = viewer.pictures
            await until(lambda: viewer.pictures > before + 10)


async def restart(client, peer):
    """What a client that can restart ICE does; stock aiortc's DTLS gets another connection by hand."""
    from aioice import Connection

    transport = peer.pc.getTransceivers()[0].receiver.transport.transport
    old, new = transport._connection, Connection(ice_controlling=True)
    await new.gather_candidates()
    lines = [
        f"a=ice-ufrag:{new.local_username}",
        f"a=ice-pwd:{new.local_password}",
        "m=video 9 X 0",
        "a=mid:0",
    ]
    lines += [f"a=candidate:{candidate.to_sdp()}" for candidate in new.local_candidates]
    answer = await client.patch(
        peer.resource, data="\r\n".join([*lines, ""]), headers={**FRAGMENT, "If-Match": "*"}
    )
    assert answer.status == 200
    assert answer.headers["ETag"] != peer.tag
    theirs = parse_fragment(await answer.text())
    new.remote_username, new.remote_password = theirs.ufrag, theirs.password
    for line in theirs.candidates:
        await new.add_remote_candidate(parse_candidate(line))
    await new.add_remote_candidate(None)
    await asyncio.wait_for(new.connect(), 20)
    transport._send = new.send
    new.data_received = lambda data, component: old._queue.put_nowait((data, component))
    await asyncio.sleep(1.0)  # the old path is closed on the other side
    close = old.close

    async def close_both():
        await new.close()
        await close()

    old.close = close_both


@pytest.mark.descriptors
async def test_fifty_peers_that_come_and_go_leave_nothing():
    async with whip_program(real=True) as program:
        for _ in range(25):
            publisher, viewer = Publisher(program.client, RED), Viewer(program.client)
            async with closing(publisher, viewer):
                assert await publisher.post("/whip/live") == 201
                assert await viewer.post("/whep/live") == 201
                assert await viewer.delete() == await publisher.delete() == 200
        assert len(program.peers) == 0


async def test_a_failure_names_the_candidates_that_were_tried():
    async with whip_program(real=True, connect_timeout=0.5) as program:
        publisher = Publisher(program.client, RED)
        async with closing(publisher):
            await publisher.pc.setLocalDescription(await publisher.pc.createOffer())
            offer = publisher.pc.localDescription.sdp
            answer = await program.post("/whip/live", offer)
            assert answer.status == 201
            await until(lambda: program.peers.failures)
            reason = program.peers.failures[0]["reason"]
            assert "host " in reason
            assert "media_ports" in reason
        await until(lambda: len(program.peers) == 0)


def certificate(folder: Path) -> dict[str, str]:
    """A certificate that OpenSSL takes, as FFmpeg's options."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "whip")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=9))
    pem, private = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    kinds = (serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL)
    private.write_bytes(key.private_bytes(*kinds, serialization.NoEncryption()))
    return {"cert_file": str(pem), "key_file": str(private)}


@asynccontextmanager
async def ffmpeg(url, seconds, options):
    script = Path(__file__).with_name("ffmpeg_publisher.py")
    arguments = [str(script), str(url), str(seconds), *(f"{k}={v}" for k, v in options.items())]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_ffmpegs_muxer_publishes_picture_and_sound(tmp_path):
    async with whip_program(real=True, token="s3cret") as program:
        viewer = Viewer(program.client, audio=True)
        options = {**certificate(tmp_path), "authorization": "s3cret"}
        async with closing(viewer), ffmpeg(program.client.make_url("/whip/live"), 60, options) as process:
            assert await viewer.post("/whep/live?wait=20&token=s3cret") == 201
            await until(lambda: is_red(viewer) and viewer.sounds > 5)
            assert process.returncode is None


async def test_ffmpegs_own_certificate_is_refused_in_words_that_help(tmp_path):
    async with whip_program(real=True) as program:
        async with ffmpeg(
            program.client.make_url("/whip/live"), 60, {"handshake_timeout": "1500"}
        ) as process:
            output = (await asyncio.wait_for(process.communicate(), 30))[0]
        if b"publishing" in output:
            pytest.skip("this FFmpeg's certificate is taken")
        await until(lambda: program.peers.failures)
        assert "cert_file" in program.peers.failures[0]["reason"]
