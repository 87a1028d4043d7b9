"""What the sections of a BUNDLE group share: one transport, which its first section describes (RFC 8843)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from aiortc import sdp

from stream.errors import InvalidInput


def mids_of_bundle(description: sdp.SessionDescription) -> set[str]:
    return {str(item) for group in description.group if group.semantic == "BUNDLE" for item in group.items}


def fill_from_tagged(description: sdp.SessionDescription) -> None:
    """Give the sections of a bundle what only its first says; ``bundle-only`` ones leave it out (RFC 9429,
    5.2.1)."""
    order = [str(mid) for group in description.group if group.semantic == "BUNDLE" for mid in group.items]
    by_mid = {media.rtp.muxId: media for media in description.media}
    tagged = next((by_mid[mid] for mid in order if mid in by_mid and _has_credentials(by_mid[mid])), None)
    if tagged is None:
        return
    for mid in order:
        media = by_mid.get(mid)
        if media is None or media is tagged:
            continue
        if not _has_credentials(media):
            media.ice = copy.copy(tagged.ice)
        if media.dtls is None or not media.dtls.fingerprints:
            media.dtls = copy.copy(tagged.dtls)
        media.rtcp_mux = media.rtcp_mux or tagged.rtcp_mux


def _has_credentials(media: sdp.MediaDescription) -> bool:
    """Whether there is anything of them: half of a pair is a fault that no other section mends."""
    return media.ice is not None and bool(media.ice.usernameFragment or media.ice.password)


def carry_transport(
    description: sdp.SessionDescription, kept: Sequence[sdp.MediaDescription], bundled: set[str]
) -> None:
    """A bundle's candidates stand in its first section; when that is left out, the next one takes them.

    Raises `InvalidInput` for a section that lacks what WebRTC needs.
    """
    group = [media for media in description.media if media.rtp.muxId in bundled]
    ours = [media for media in kept if media.rtp.muxId in bundled]
    if ours and group:
        ours[0].ice_candidates = [candidate for media in group for candidate in media.ice_candidates]
        ours[0].ice_candidates_complete = any(media.ice_candidates_complete for media in group)
    for media in kept:
        _check_transport(media)
        if media.rtcp_port is None:
            # aiortc writes rtcp-mux only beside an a=rtcp line, which FFmpeg's offers do not have.
            media.rtcp_port, media.rtcp_host = 9, "0.0.0.0"


def _check_transport(media: sdp.MediaDescription) -> None:
    if media.ice is None or not media.ice.usernameFragment or not media.ice.password:
        raise InvalidInput(f"section {media.rtp.muxId} has no a=ice-ufrag and a=ice-pwd", field="sdp")
    if media.dtls is None or not media.dtls.fingerprints:
        raise InvalidInput(f"section {media.rtp.muxId} has no a=fingerprint and a=setup", field="sdp")
    if not any(f.algorithm.lower() in ("sha-256", "sha-384", "sha-512") for f in media.dtls.fingerprints):
        raise InvalidInput(f"section {media.rtp.muxId} has no fingerprint of SHA-256 or better", field="sdp")
    if media.kind != "application" and not media.rtcp_mux:
        raise InvalidInput(f"section {media.rtp.muxId} has no a=rtcp-mux", field="sdp")
