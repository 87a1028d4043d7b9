"""From a request's messages to the tokens that a model continues, by the model's own chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stream.errors import InvalidInput

_REASON = 300


def prompt_tokens(tokenizer: Any, inputs: Mapping[str, Any], context: int) -> list[int]:
    """The tokens of ``messages`` (or of a plain ``prompt``) in ``inputs``.

    ``context``: tokens that the model can have before it. Raises `InvalidInput` for messages that its
    template refuses, for tools that it does not know, and for more tokens than leave room for an answer.
    """
    if inputs.get("prompt") is not None:
        ids = tokenizer(str(inputs["prompt"]), add_special_tokens=True)["input_ids"]
        field = "prompt"
    else:
        ids = _from_messages(tokenizer, inputs)
        field = "messages"
    tokens = [int(token) for token in ids]
    if not tokens:
        raise InvalidInput(f"{field} is empty; there is nothing to continue", field=field)
    if len(tokens) >= context:
        raise InvalidInput(
            f"{field} has {len(tokens)} tokens; the model's context is {context} tokens, of which at "
            "least one must be left for the answer",
            field=field,
        )
    return tokens


def _from_messages(tokenizer: Any, inputs: Mapping[str, Any]) -> Sequence[int]:
    from jinja2 import TemplateError

    template = tokenizer.chat_template
    if not template:
        raise InvalidInput(
            "the model has no chat template: it continues texts (field prompt) and holds no conversations",
            field="messages",
        )
    messages = [_plain(message) for message in inputs.get("messages") or ()]
    if not messages:
        raise InvalidInput("messages is empty; there must be at least one", field="messages")
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    if tools := _tools(inputs, template):
        options["tools"] = tools
    try:
        encoded = tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        # A template is a program that has not been written for every message that is JSON.
        reason = str(error)[:_REASON] or type(error).__name__
        raise InvalidInput(
            f"the model's chat template refuses these messages: {reason}", field="messages"
        ) from None
    ids: Sequence[int] = encoded["input_ids"]
    return ids


def _tools(inputs: Mapping[str, Any], template: Any) -> list[Any]:
    tools, choice = inputs.get("tools") or [], inputs.get("tool_choice")
    if not tools or choice == "none":
        return []
    if choice not in (None, "auto"):
        raise InvalidInput(
            f"tool_choice is {json.dumps(choice)[:80]}; the model decides by itself: auto or none",
            field="tool_choice",
        )
    if "tools" not in (template if isinstance(template, str) else json.dumps(template)):
        raise InvalidInput("the model's chat template knows no tools; leave them out", field="tools")
    return list(tools)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates know it: text in one piece, arguments of tools as objects."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_of(part) for part in content)
    role = message.get("role")
    if not isinstance(role, str):
        raise InvalidInput(f"a message has the role {role!r}; it must be a name", field="messages")
    role = "system" if role == "developer" else role
    plain = {**message, "role": role, "content": "" if content is None else content}
    if isinstance(calls := message.get("tool_calls"), list):
        plain["tool_calls"] = [_call(call) for call in calls]
    return plain


def _text_of(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InvalidInput(f"a part of a message is {kind!r}; this model takes text alone", field="messages")


def _call(call: Any) -> Any:
    """OpenAI has a tool's arguments as JSON in a string; templates write them out as an object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}
