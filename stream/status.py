"""What a session says of itself: ai-runner's status event, PyTrickle's status, and our own figures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from typing import Any

from stream.session import Session
from stream.states import Health


def status_event(session: Session) -> dict[str, Any]:
    """The ``status`` event that go-livepeer stores and serves, in ai-runner's form (moments in epoch ms)."""
    figures = session.pipeline.figures
    now = time.monotonic_ns()
    state = session.state
    error, restart_count = figures.last_error or session.fatal, session.restarts
    input_status = {
        "last_input_time": _epoch_ms(figures.input_rate.last),
        "fps": round(figures.input_rate.rate(now), 2),
    }
    inference = {
        "last_output_time": _epoch_ms(figures.result_rate.last),
        "fps": round(figures.result_rate.rate(now), 2),
        "last_params_update_time": _ms(session.params_updated_at),
        "last_params": session.params or None,
        "last_params_hash": _params_hash(session.params),
        "last_error_time": _epoch_ms(figures.last_error_at),
        "last_error": error.message if error else None,
        "last_restart_time": _ms(session.restarted_at),
        "last_restart_logs": session.restart_logs,
        "restart_count": restart_count,
    }
    return {
        "type": "status",
        "pipeline": session.pipeline_name,
        "start_time": _ms(session.started_at),
        "state": str(state),
        "last_state_update_time": _ms(session.state_changed_at),
        "timestamp": _ms(time.time()),
        "input_status": input_status,
        "inference_status": inference,
    }


def session_report(session: Session) -> dict[str, Any]:
    """Our own figures: state and reason, counts, rates and latency per stage."""
    figures = session.pipeline.figures
    now = time.monotonic_ns()
    error = session.fatal or figures.last_error
    info = session.processor.info()
    return {
        "id": session.id,
        "state": str(session.state),
        "reason": session.ending.reason if session.ending else None,
        "error": error.as_dict() if error else None,
        "fps": {
            "input": round(figures.input_rate.rate(now), 2),
            "processed": round(figures.result_rate.rate(now), 2),
            "output": round(figures.output_rate.rate(now), 2),
        },
        "counts": {**dataclasses.asdict(figures.counts), "audio_dropped": session.pipeline.audio_dropped},
        "decoder": {
            "name": session.decoding.decoder_name,
            "errors": session.decoding.errors,
            "dropped": session.decoding.dropped,
            "problem": session.problem,
            "fallback": session.decoding.fallback_reason,
        },
        "encoder": {
            "name": session.pipeline.encoding.encoder_name,
            "fallback": session.pipeline.encoding.fallback_reason,
            "renditions": session.pipeline.encoding.report(),
        },
        "publisher": session.publisher,
        "processor": session.processor_says,
        "works_on": [kind for kind, wanted in (("video", info.video), ("audio", info.audio)) if wanted],
        "sinks": [type(sink).__name__ for sink in session.sinks],
        "latency": figures.latency.summary(),
        "params": session.params,
        "uptime_s": round(time.monotonic() - session.started, 1),
    }


def pytrickle_state(health: Health, streams: int, *, ready: bool, error: str | None) -> dict[str, Any]:
    """The state object in PyTrickle's answers."""
    return {
        "status": str(health),
        "state": str(health),
        "error_message": error,
        "pipeline_ready": ready,
        "active_streams": streams,
        "startup_complete": ready,
        "pipeline_state": str(Health.ERROR if error else Health.IDLE if ready else Health.LOADING),
        "additional_info": {},
    }


def pytrickle_fps(session: Session) -> dict[str, float]:
    """PyTrickle's four rates."""
    figures, now = session.pipeline.figures, time.monotonic_ns()
    return {
        "ingress_video_fps": round(figures.input_rate.rate(now), 2),
        "ingress_audio_fps": round(figures.audio_in_rate.rate(now), 2),
        "egress_video_fps": round(figures.output_rate.rate(now), 2),
        "egress_audio_fps": round(figures.audio_out_rate.rate(now), 2),
    }


def _params_hash(params: dict[str, Any]) -> str | None:
    if not params:
        return None
    text = json.dumps(params, sort_keys=True, default=str)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _ms(epoch_seconds: float | None) -> int | None:
    return None if epoch_seconds is None else int(epoch_seconds * 1000)


def _epoch_ms(monotonic_ns: int | None) -> int | None:
    if monotonic_ns is None:
        return None
    return int(time.time() * 1000) - (time.monotonic_ns() - monotonic_ns) // 1_000_000
