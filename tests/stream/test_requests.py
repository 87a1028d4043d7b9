import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InvalidInput
from stream.requests import parse_start, take_media_params

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
NAMES = [
    "subscribe_url",
    "publish_url",
    "control_url",
    "events_url",
    "data_url",
    "gateway_request_id",
    "params",
]


def test_the_body_of_go_livepeer_is_understood():
    start = parse_start(
        {
            "gateway_request_id": "abc",
            "control_url": "https://10.0.0.1:8935/ai/trickle/abc-control",
            "events_url": "https://10.0.0.1:8935/ai/trickle/abc-events",
            "subscribe_url": "https://10.0.0.1:8935/ai/trickle/abc/",
            "publish_url": "",
            "params": None,
            "something": "new",
        }
    )
    assert start.url("subscribe") == "https://10.0.0.1:8935/ai/trickle/abc"
    assert start.url("publish") is None
    assert start.params is None


def test_every_problem_is_named_with_its_field_and_value():
    with pytest.raises(InvalidInput) as caught:
        parse_start({"subscribe_url": "ftp://host/x", "params": [1], "gateway_request_id": 5})
    assert {d["field"] for d in caught.value.details} == {"subscribe_url", "params", "gateway_request_id"}
    assert "ftp://host/x" in caught.value.message


@given(st.dictionaries(st.sampled_from(NAMES), json_values) | json_values)
def test_any_json_is_taken_or_refused_in_words(body):
    try:
        start = parse_start(body)
    except InvalidInput as error:
        assert error.field
    else:
        assert start.params is None or isinstance(start.params, dict)


@given(st.dictionaries(st.sampled_from(["width", "height", "max_framerate", "x"]), json_values))
def test_media_parameters_are_coerced_or_refused_and_the_others_left_alone(params):
    try:
        media, rest = take_media_params(params)
    except InvalidInput as error:
        assert error.field in ("width", "height", "max_framerate")
    else:
        assert rest == {"x": params["x"]} if "x" in params else rest == {}
        assert media.width is None or 16 <= media.width <= 4096
        assert media.max_framerate is None or 1 <= media.max_framerate <= 240


def test_numbers_as_text_are_taken():
    media, rest = take_media_params({"width": "320", "height": 240, "max_framerate": "24", "prompt": "p"})
    assert (media.width, media.height, media.max_framerate, rest) == (320, 240, 24.0, {"prompt": "p"})


@pytest.mark.parametrize(
    "params", [{"width": 320}, {"width": True, "height": 4}, {"width": 1e9, "height": 2}]
)
def test_a_refusal_names_the_field(params):
    with pytest.raises(InvalidInput, match=r"width|height"):
        take_media_params(params)
