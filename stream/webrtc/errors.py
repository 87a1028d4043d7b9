"""Refusals that WHIP (RFC 9725) and HTTP (RFC 9110) have a status of their own for."""

from __future__ import annotations

from stream.errors import HeadraceError


class UnsupportedType(HeadraceError):
    """The body is of a type that is not taken."""

    code = "unsupported_type"
    status = 415


class NotAcceptable(HeadraceError):
    """The client takes no answer of the type that there is."""

    code = "not_acceptable"
    status = 406


class Unprocessable(HeadraceError):
    """Well formed, and more than this worker does (RFC 9725, 4.3 and 4.4)."""

    code = "unprocessable"
    status = 422


class PreconditionFailed(HeadraceError):
    """The entity tag is not the current one."""

    code = "precondition_failed"
    status = 412


class PreconditionRequired(HeadraceError):
    """The request must name an entity tag."""

    code = "precondition_required"
    status = 428
