"""The worker's WebRTC: its ICE settings, the peer table, and the routes that need nothing but these.

aiortc is loaded when the first peer comes.
"""

from __future__ import annotations

from aiohttp import web

from headrace.settings import Settings
from stream.answers import answering
from stream.errors import InvalidInput
from stream.renditions import BitrateRange
from stream.routes import Host
from stream.webrtc.bitrate import ReceiveSettings
from stream.webrtc.ice import IceServer, IceSettings, parse_port_range, parse_uri
from stream.webrtc.peers import PeerTable
from stream.webrtc.publications import Publications
from stream.webrtc.whep import WhepRoutes
from stream.webrtc.whip import WhipRoutes


class WebRtc:
    """Peers, publications and signalling over a `Host`."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self._host = host
        self.viewer_bitrates = viewer_bitrates(settings)
        receiving = ReceiveSettings(highest=settings.publisher_bitrate_max)
        self.peers = PeerTable(
            ice_settings(settings),
            max_viewers=settings.max_viewers,
            # One that takes over is there beside the one that it replaces.
            max_publishers=2 * settings.capacity,
            receiving=receiving,
        )
        self.publications = Publications(host, self.peers, grace=settings.publisher_grace)
        host.table.on_ended.append(self.peers.session_ended)

    def register(self, app: web.Application) -> None:
        WhipRoutes(self._host, self.peers, self.publications).register(app)
        WhepRoutes(self._host, self.peers).register(app)
        app.router.add_get("/ice", answering(self.ice))
        app.router.add_get("/peers", answering(self.report))

    async def ice(self, request: web.Request) -> web.Response:
        """The servers for a page's ``RTCPeerConnection``, with credentials for a while."""
        body = {"iceServers": self.peers.ice.for_browser()}
        return web.json_response(body, headers={"Cache-Control": "no-store"})

    async def report(self, request: web.Request) -> web.Response:
        """Live peers with their figures, and why the last ones failed."""
        return web.json_response(self.peers.report())

    async def close(self) -> None:
        await self.peers.close("the worker is shutting down")


def viewer_bitrates(settings: Settings) -> BitrateRange:
    """Between what the encoding for WebRTC viewers moves; raises `InvalidInput` naming the setting."""
    lowest, highest = settings.viewer_bitrate_min, settings.viewer_bitrate_max
    if lowest > highest:
        raise InvalidInput(
            f"viewer_bitrate_min must be at most viewer_bitrate_max ({highest}), not {lowest}",
            field="viewer_bitrate_min",
        )
    return BitrateRange(min(max(settings.bitrate, lowest), highest), lowest, highest)


def ice_settings(settings: Settings) -> IceSettings:
    """What the worker's settings say of ICE; raises `InvalidInput` naming the setting."""
    servers = []
    for name, urls in (("stun_servers", settings.stun_servers), ("turn_servers", settings.turn_servers)):
        for url in urls:
            if parse_uri(url, name).relays != (name == "turn_servers"):
                raise InvalidInput(f"{url!r} does not belong here", field=name)
    if settings.stun_servers:
        servers.append(IceServer(settings.stun_servers))
    if settings.turn_servers:
        credential, secret = settings.turn_credential, settings.turn_secret
        servers.append(
            IceServer(
                settings.turn_servers,
                settings.turn_username,
                credential.get_secret_value() if credential is not None else None,
                secret.get_secret_value() if secret is not None else None,
                settings.turn_ttl,
            )
        )
    return IceSettings(
        servers=tuple(servers),
        port_range=parse_port_range(settings.media_ports) if settings.media_ports else None,
        public_addresses=settings.public_address,
        host_candidates=settings.host_candidates,
        exclude=settings.ice_exclude,
        gather_timeout=settings.gather_timeout,
    )
