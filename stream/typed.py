"""Live parameters from a class that describes them: a pydantic model or a dataclass.

Imports pydantic when called, not when imported, because foreign interpreters load this.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from stream.errors import InvalidInput

MEDIA = frozenset({"width", "height", "max_framerate", "detect_out_resolution", "show_loading"})
"""Parameters of the stream itself, which a model need not know."""


class TypedParameters:
    """Checks values against a model and makes objects of it; `InvalidInput` for a class that is none."""

    def __init__(self, model: type) -> None:
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError

        try:
            self._adapter: Any = TypeAdapter(model)
            schema = self._adapter.json_schema()
        except PydanticUserError as error:
            raise InvalidInput(
                f"{model!r} does not describe parameters: {error.message}", field="parameters"
            ) from None
        if "properties" not in schema:
            raise InvalidInput(
                f"parameters must be a pydantic model or a dataclass, not {model!r}", field="parameters"
            )
        self.schema: dict[str, Any] = {"additionalProperties": False, **schema}

    def make(self, values: Mapping[str, Any]) -> Any:
        """An object of the model; `InvalidInput` lists all values that it refuses, and unknown names."""
        from pydantic import ValidationError

        known = self.schema["properties"]
        open_ended = self.schema["additionalProperties"] is not False
        wanted = {name: value for name, value in values.items() if name in known or name not in MEDIA}
        problems = [
            {"field": name, "message": f"is no parameter; there are {', '.join(known) or 'none'}"}
            for name in wanted
            if name not in known and not open_ended
        ]
        try:
            made = self._adapter.validate_python(wanted)
        except ValidationError as error:
            problems += [
                {"field": ".".join(map(str, p["loc"])) or "params", "message": _words(p["msg"], p["input"])}
                for p in error.errors()
                if p["type"] not in ("unexpected_keyword_argument", "extra_forbidden")
            ]
        if problems:
            text = "; ".join(f"{problem['field']}: {problem['message']}" for problem in problems)
            raise InvalidInput(text, field=problems[0]["field"], details=problems)
        return made

    def defaults(self) -> Any:
        """An object of the model before anybody gave values; `InvalidInput` names what has no default."""
        if lacking := self.schema.get("required"):
            raise InvalidInput(
                f"every parameter needs a default, and {', '.join(lacking)} has none", field="parameters"
            )
        return self.make({})

    def values(self, made: Any) -> dict[str, Any]:
        """The values of an object, as `make` takes them."""
        return {name: getattr(made, name) for name in self.schema["properties"]}


def _words(message: str, value: object) -> str:
    return f"{message} (got {repr(value)[:100]})"


@cache
def typed(model: type) -> TypedParameters:
    """Those of a class, made once."""
    return TypedParameters(model)
