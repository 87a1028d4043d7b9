"""Fields, bounds and errors of every endpoint, from the declared bounds themselves."""

import json

import pytest
from batch_stand_in import PNG
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch.answers import error_body
from headrace.batch.endpoints import ENDPOINTS
from headrace.batch.fields import MAX_LORAS
from headrace.batch.openapi import document
from headrace.batch.validation import parse_request
from stream.errors import HeadraceError, InvalidInput

MINIMAL = {
    "text-to-image": {"prompt": "a cat"},
    "image-to-image": {"prompt": "", "image": PNG},
    "image-to-video": {"image": PNG},
    "image-to-text": {"image": PNG},
    "audio-to-text": {"audio": b"RIFF"},
    "text-to-speech": {"text": "hello"},
    "upscale": {"prompt": "a cat", "image": PNG},
    "segment-anything-2": {"image": PNG},
    "llm": {"messages": [{"role": "user", "content": "hi"}]},
}
SCHEMAS = document()["components"]["schemas"]
NUMBERS = [
    (pipeline, name, field)
    for pipeline, endpoint in ENDPOINTS.items()
    for name, field in SCHEMAS[endpoint.takes.__name__]["properties"].items()
    for field in [
        next((f for f in field.get("anyOf", [field]) if f.get("type") in ("integer", "number")), None)
    ]
    if field is not None
]
YES = ["true", "1", "on", "yes", "t", "y"]
NO = ["false", "0", "off", "no", "f", "n"]


def parse(pipeline, **fields):
    return parse_request(ENDPOINTS[pipeline].takes, {**MINIMAL[pipeline], **fields})


def refused(pipeline, **fields):
    with pytest.raises(HeadraceError) as caught:
        parse(pipeline, **fields)
    return caught.value


@pytest.mark.parametrize("pipeline", ENDPOINTS)
@pytest.mark.parametrize("absent", [None, ""])
def test_null_and_empty_mean_the_default(pipeline, absent):
    optional = {
        field.alias or (name if name != "delivery" else "output"): absent
        for name, field in ENDPOINTS[pipeline].takes.model_fields.items()
        if not field.is_required() and name not in MINIMAL[pipeline]
    }
    assert optional
    assert parse(pipeline, **optional).inputs() == parse(pipeline).inputs()
    assert parse(pipeline, nobody_knows_this="x").inputs() == parse(pipeline).inputs()


def test_there_are_numbers_with_bounds_in_every_schema():
    assert {pipeline for pipeline, _, _ in NUMBERS} >= set(ENDPOINTS) - {"segment-anything-2"}
    assert all("minimum" in field and "maximum" in field for _, _, field in NUMBERS)


@pytest.mark.parametrize(
    ("pipeline", "name", "field"), NUMBERS, ids=lambda value: value if isinstance(value, str) else ""
)
@given(data=st.data())
def test_numbers_are_taken_within_their_bounds_and_nowhere_else(pipeline, name, field, data):
    whole = field["type"] == "integer"
    low, high = field["minimum"], field["maximum"]
    step = field.get("multipleOf", 1)
    inside = (
        st.integers(low // step, high // step).map(lambda n: n * step).filter(lambda n: n >= low)
        if whole
        else st.floats(low, high, allow_subnormal=False)
    )
    value = data.draw(inside)
    for sent in (value, str(value)):
        assert parse(pipeline, **{name: sent})
    outside = data.draw(
        st.one_of(
            st.integers(int(high) + 1, 2**62) if whole else st.floats(high + 1, 1e300),
            st.integers(-(2**62), int(low) - 1) if whole else st.floats(-1e300, low - 1),
        )
    )
    error = refused(pipeline, **{name: outside})
    assert error.status == 400
    assert error.field == name
    assert name in error.message
    assert f"{high:g}" in error.message or f"{low:g}" in error.message or str(high) in error.message
    if whole:
        assert refused(pipeline, **{name: str(low + 0.5)}).status == 422


@given(value=st.sampled_from(YES + NO), data=st.data())
def test_booleans_of_forms_are_those_that_clients_send(value, data):
    spelt = data.draw(st.sampled_from([value, value.upper(), value.title()]))
    assert parse("text-to-image", safety_check=spelt).safety_check is (value in YES)


@given(value=st.text(min_size=1).filter(lambda text: text.strip().lower() not in YES + NO))
def test_other_words_are_no_booleans(value):
    assert refused("text-to-image", safety_check=value).status == 422


@pytest.mark.parametrize("pipeline", [p for p, e in ENDPOINTS.items() if e.file])
@pytest.mark.parametrize("sent", ["", "a text", 5, None, ["x"]])
def test_a_file_must_be_a_file(pipeline, sent):
    error = refused(pipeline, **{ENDPOINTS[pipeline].file: sent})
    assert error.status == 422
    body = error_body(error)
    assert body["detail"][0]["loc"] == ["body", ENDPOINTS[pipeline].file]
    assert {"type", "loc", "msg"} <= body["detail"][0].keys()
    assert body["error"]["message"]


def test_a_file_may_come_as_a_data_url():
    assert parse("image-to-text", image="data:image/png;base64,AAEC").image == b"\0\1\2"
    assert refused("image-to-text", image="data:image/png;base64,A*").status == 400
    assert refused("image-to-text", image="data:image/png,abc").status == 400
    assert "URLs are not fetched" in refused("image-to-text", image="http://a/b.png").message


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ("{", "Unable to parse '{' as JSON."),
        ("[1]", "Unable to parse '[1]' as JSON."),
        ('{"a": -1}', "All strengths must be numbers greater than or equal to 0.0."),
        ('{"a": "1"}', "All strengths must be numbers greater than or equal to 0.0."),
        ({"a": True}, "All strengths must be numbers greater than or equal to 0.0."),
        (json.dumps(dict.fromkeys("abcde", 1)), "Too many LoRas provided. Maximum is 4."),
    ],
)
def test_loras_are_refused_in_known_words(loras, message):
    error = refused("text-to-image", loras=loras)
    assert (error.status, error.message, error.field) == (400, message, "loras")


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.floats(0, 10), max_size=MAX_LORAS))
def test_loras_come_as_objects_or_as_their_text(loras):
    for sent in (loras, json.dumps(loras)):
        assert parse("text-to-image", loras=sent).inputs()["loras"] == loras


@pytest.mark.parametrize(
    ("pipeline", "fields"),
    [
        ("text-to-image", {"prompt": "x", "height": 4096, "width": 4096, "num_images_per_prompt": 9}),
        ("image-to-video", {"image": b"x", "height": 4096, "width": 4096}),
        ("image-to-video", {"image": b"x", "height": 2048, "width": 2048, "num_frames": 33}),
    ],
)
def test_all_pictures_of_a_request_together_are_bounded(pipeline, fields):
    with pytest.raises(InvalidInput, match=f"a request may make {1 << 27} at most"):
        ENDPOINTS[pipeline].parse(fields)
    ENDPOINTS[pipeline].parse({**fields, "height": 1024, "width": 1024})


@pytest.mark.parametrize("name", ["point_coords", "point_labels", "box", "mask_input"])
def test_null_in_a_string_of_json_means_absence(name):
    assert getattr(parse("segment-anything-2", **{name: "null"}), name) is None


@pytest.mark.parametrize(
    ("pipeline", "fields", "field", "words"),
    [
        ("segment-anything-2", {"box": "[1, 2, 3]"}, "box", "box has 3 items; at least 4"),
        ("segment-anything-2", {"point_coords": "[[1, 2]]"}, "point_labels", "0 items for the 1"),
        ("text-to-image", {"width": 63}, "width", "divisible by 8"),
        ("text-to-speech", {"text": " "}, "text", "must be provided"),
        ("image-to-video", {"height": 4096, "width": 4096}, "num_frames", "4096, 4096 and 25"),
        # One picture: diffusers guides by the largest scale of all frames, which is then none.
        ("image-to-video", {"num_frames": 1}, "num_frames", "num_frames is 1; it must be at least 2"),
        ("llm", {"stop": ["x"] * 9}, "stop", "stop has 9 items; at most 8"),
        ("llm", {"stop": "x" * 501}, "stop.0", "501 characters; at most 500"),
    ],
)
def test_an_error_names_field_limit_and_value(pipeline, fields, field, words):
    error = refused(pipeline, **fields)
    assert (error.status, error.field) == (400, field)
    assert words in error.message


def test_what_cannot_be_is_refused_in_known_words():
    assert refused("text-to-image", prompt="").message == "Prompt must be provided."
    assert refused("text-to-speech", text=" ").message == "Text input must be provided."
    wrong = refused("image-to-video", height=17, width=16)
    assert wrong.message == "`height` and `width` have to be divisible by 8 but are 17 and 16."
    assert refused("segment-anything-2", box="[1,").message.startswith("Error parsing JSON for box:")
    assert refused("segment-anything-2", point_coords="[[1, 2]]").status == 400
    assert refused("segment-anything-2", mask_input=json.dumps([[[0.0] * 4] * 4])).status == 400
    assert refused("llm", messages=[]).status == 400
    assert refused("llm", temperature=2.5).status == 400
    assert refused("llm", n=2).status == 400
    assert refused("audio-to-text", return_timestamps="always").status == 400
    assert refused("text-to-image", guidance_scale=float("nan")).status == 400


@given(
    fields=st.dictionaries(
        st.sampled_from(sorted({name for e in ENDPOINTS.values() for name in e.takes.model_fields})),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=20)
            | st.binary(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=6,
    ),
    pipeline=st.sampled_from(sorted(ENDPOINTS)),
)
def test_whatever_comes_is_taken_or_refused_with_an_answer_in_json(fields, pipeline):
    try:
        json.dumps(parse(pipeline, **fields).inputs(), allow_nan=False)
    except InvalidInput as error:
        assert error.status in (400, 422)
        body = json.dumps(error_body(error), allow_nan=False)
        assert len(body) < 20_000
