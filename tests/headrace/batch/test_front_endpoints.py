"""The nine endpoints over HTTP: fields, answers, headers."""

import asyncio
import base64
import json

import pytest
from batch_stand_in import PNG, StandInEngine, batch_server, unlike, until

from headrace.batch import schemas_answers
from headrace.batch.endpoints import ENDPOINTS

FILES = {
    "image-to-image",
    "image-to-video",
    "image-to-text",
    "upscale",
    "segment-anything-2",
    "audio-to-text",
}
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


async def ask(server, pipeline, fields, slash="", **headers):
    send = server.form if pipeline in FILES else server.json
    return await send(f"/{pipeline}{slash}", fields, **headers)


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("pipeline", MINIMAL)
async def test_each_endpoint_answers_with_what_its_schema_says(pipeline, slash):
    async with batch_server(StandInEngine()) as server:
        status, body, headers = await ask(server, pipeline, MINIMAL[pipeline], slash)
        assert status == 200, body
        ENDPOINTS[pipeline].answers.model_validate(body)
        assert headers["x-headrace-weights"].split(":")[0] in ("substitute", "random")
        assert headers["x-headrace-model"].startswith("demo:")
        assert None not in body.values()


async def test_an_engine_runs_only_once_it_is_needed():
    async with batch_server(StandInEngine()) as server:
        assert server.engine.started == 0
        await server.json("/text-to-image", {"prompt": "x"})
        await server.json("/text-to-image", {"prompt": "x"})
        assert server.engine.started == 1
    assert server.engine.stopped == 1


async def test_seeds_are_echoed_zero_among_them():
    async with batch_server(StandInEngine()) as server:
        _, body, _ = await server.json(
            "/text-to-image", {"prompt": "x", "seed": 0, "num_images_per_prompt": 3}
        )
        assert [image["seed"] for image in body["images"]] == [0, 1, 2]
        _, body, _ = await server.form("/upscale", {"prompt": "x", "image": PNG, "seed": 0})
        assert body["images"][0]["seed"] == 0
        drawn = {
            (await server.json("/text-to-image", {"prompt": "x"}))[1]["images"][0]["seed"] for _ in range(4)
        }
        assert len(drawn) > 1
        assert all(0 <= seed < 2**32 for seed in drawn)


async def test_pictures_come_as_data_urls_or_as_files_under_names_that_expire():
    async with batch_server(StandInEngine(), media_seconds=1000) as server:
        _, body, _ = await server.json("/text-to-image", {"prompt": "x"})
        head, _, data = body["images"][0]["url"].partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
        for field in ("output", "response_format"):
            _, body, _ = await server.json("/text-to-image", {"prompt": "x", field: "url"})
            url = body["images"][0]["url"]
            assert url.startswith(f"{server.url}/media/")
            async with server.client.get(url) as response:
                assert (response.status, response.content_type) == (200, "image/png")
                assert (await response.read()).startswith(b"\x89PNG")
    async with batch_server(StandInEngine(), media_seconds=0.001) as server:
        _, body, _ = await server.json("/text-to-image", {"prompt": "x", "output": "url"})
        await asyncio.sleep(0.01)
        async with server.client.get(body["images"][0]["url"]) as response:
            assert response.status == 404


async def test_a_distilled_model_has_its_steps_clamped_and_the_answer_says_so():
    async with batch_server(StandInEngine()) as server:
        sent = {
            "prompt": "x",
            "model_id": "stabilityai/sd-turbo",
            "num_inference_steps": 50,
            "guidance_scale": 7.5,
        }
        _, body, headers = await server.json("/text-to-image", sent)
        assert server.engine.calls[-1][2]["num_inference_steps"] == 4
        assert server.engine.calls[-1][2]["guidance_scale"] == 0
        assert headers["x-headrace-adjusted"] == "num_inference_steps=50->4, guidance_scale=7.5->0"
        assert [item["field"] for item in body["adjusted"]] == ["num_inference_steps", "guidance_scale"]
        _, body, headers = await server.json(
            "/text-to-image", {"prompt": "x", "model_id": "acme/x_Lightning"}
        )
        assert server.engine.calls[-1][2]["num_inference_steps"] == 5
        assert "x-headrace-adjusted" not in headers
        assert "adjusted" not in body
        await server.json(
            "/text-to-image", {"prompt": "x", "model_id": "acme/painter", "num_inference_steps": 77}
        )
        assert server.engine.calls[-1][2]["num_inference_steps"] == 77


async def test_what_the_engine_clamps_is_told_with_what_the_front_has_clamped():
    async with batch_server(StandInEngine()) as server:
        run = server.engine.run

        async def run_and_clamp(*args, **rest):
            result = await run(*args, **rest)
            result.body["adjusted"] = [
                {"field": "num_inference_steps", "asked": 4, "used": 5, "reason": "the text counts"},
                {"field": "strength", "asked": 0.1, "used": 0.25, "reason": "the text counts"},
            ]
            return result

        server.engine.run = run_and_clamp
        sent = {"prompt": "x", "model_id": "stabilityai/sd-turbo", "num_inference_steps": 50}
        _, body, headers = await server.json("/text-to-image", sent)
        assert headers["x-headrace-adjusted"] == "num_inference_steps=50->5, strength=0.1->0.25"
        told = {item["field"]: item for item in body["adjusted"]}
        assert told["num_inference_steps"]["reason"].endswith("; the text counts")
        _, body, headers = await server.json("/text-to-image", {"prompt": "x", "model_id": "acme/painter"})
        assert headers["x-headrace-adjusted"] == "num_inference_steps=4->5, strength=0.1->0.25"
        assert len(body["adjusted"]) == 2


async def test_a_distilled_model_takes_two_steps_by_default_where_a_picture_is_worked_on():
    async with batch_server(StandInEngine()) as server:
        model = {"prompt": "x", "model_id": "stabilityai/sd-turbo"}
        await server.json("/text-to-image", model)
        assert server.engine.calls[-1][2]["num_inference_steps"] == 1
        _, body, _ = await server.form("/image-to-image", {**model, "image": PNG})
        assert server.engine.calls[-1][2]["num_inference_steps"] == 2
        assert "adjusted" not in body
        await server.form("/image-to-image", {**model, "image": PNG, "num_inference_steps": "1"})
        assert server.engine.calls[-1][2]["num_inference_steps"] == 1


async def test_schedulers_and_withholding_reach_the_engine():
    async with batch_server(StandInEngine()) as server:
        sent = {"prompt": "x", "model_id": "acme/painter", "scheduler": "dpm++-karras", "withhold": True}
        assert (await server.json("/text-to-image", sent))[0] == 200
        inputs = server.engine.calls[-1][2]
        assert (inputs["scheduler"], inputs["withhold"]) == ("dpm++-karras", True)
        status, body, _ = await server.json("/text-to-image", {**sent, "scheduler": "plms"})
        assert (status, body["error"]["param"]) == (400, "scheduler")
        assert "is plms;" in body["detail"]["msg"]
        assert "euler-ancestral" in body["detail"]["msg"]


async def test_videos_have_one_file_and_every_frame_on_request():
    async with batch_server(StandInEngine()) as server:
        _, body, _ = await server.form("/image-to-video", {"image": PNG, "safety_check": "off"})
        assert [image["url"][:15] for image in body["images"]] == ["data:video/mp4;"]
        assert "frames" not in body
        _, body, _ = await server.form("/image-to-video", {"image": PNG, "frames": "1", "seed": 5})
        assert [len(video) for video in body["frames"]] == [2]
        assert body["frames"][0][0]["seed"] == 5


@pytest.mark.parametrize("form", ["json", "rle", "png"])
@pytest.mark.parametrize("logits", ["true", "false"])
async def test_masks_are_strings_of_valid_json(form, logits):
    async with batch_server(StandInEngine()) as server:
        fields = {"image": PNG, "mask_format": form, "return_logits": logits, "point_coords": "[[1, 2]]"}
        status, body, _ = await server.form("/segment-anything-2", {**fields, "point_labels": "[1]"})
        assert status == 200
        masks = json.loads(body["masks"])
        assert len(masks) == len(json.loads(body["scores"])) == 3
        if form == "json":
            assert masks[0][0][0] is True if logits == "false" else masks[0][0][0] == 1.5
            assert json.loads(body["logits"]) == [[[0.5]]]
        elif form == "png":
            assert masks[0].startswith("data:image/png;base64,")
        else:
            assert masks[0] == {"size": [2, 2], "counts": "04"}


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [("TRUE", "segment"), ("sentence", "segment"), ("word", "word"), ("0", "none"), ("", "segment")],
)
async def test_timestamps_are_those_asked_for(asked, wanted):
    async with batch_server(StandInEngine()) as server:
        fields = {"audio": b"RIFF", "return_timestamps": asked, "metadata": "not json"}
        status, body, _ = await server.form("/audio-to-text", fields)
        assert status == 200
        assert server.engine.calls[-1][2]["timestamps"] == wanted
        assert len(body["chunks"]) == {"segment": 1, "word": 2, "none": 0}[wanted]


async def test_the_model_of_a_request_that_names_none():
    async with batch_server(StandInEngine()) as server:
        _, _, headers = await server.json("/llm", {**MINIMAL["llm"], "model": ""})
        assert (headers["x-headrace-model"], headers["x-headrace-weights"]) == (
            "demo:smollm2",
            "substitute:smollm2",
        )
        _, _, headers = await server.json("/llm", {**MINIMAL["llm"], "model": "demo:smollm2"})
        assert headers["x-headrace-weights"] == "real"
        _, _, headers = await server.json("/llm", {**MINIMAL["llm"], "model": "acme/talker"})
        assert (headers["x-headrace-model"], headers["x-headrace-weights"]) == ("acme/talker", "real")
        _, _, headers = await server.json("/llm", {**MINIMAL["llm"], "model": None})
        assert headers["x-headrace-model"] == "acme/talker"  # it is warm
    async with batch_server(StandInEngine(), batch_models=("llm=acme/talker",)) as server:
        _, _, headers = await server.json("/llm", MINIMAL["llm"])
        assert headers["x-headrace-model"] == "acme/talker"
    async with batch_server(StandInEngine(), demo_weights=False) as server:
        for model in ("", "demo:smollm2", "acme/nothing"):
            status, body, _ = await server.json("/llm", {**MINIMAL["llm"], "model": model})
            assert (status, body["error"]["code"]) == (404, "model_not_found"), body
        assert "headrace models pull" in body["detail"]["msg"]
        assert server.engine.calls == []


async def test_a_model_that_was_made_warm_answers_for_what_it_is_for():
    async with batch_server(StandInEngine()) as server:
        server.engine.warm = ["acme/painter", "demo:tiny-llama"]
        await server.json("/llm", MINIMAL["llm"])
        for pipeline in ("text-to-image", "image-to-image"):
            _, _, headers = await ask(server, pipeline, MINIMAL[pipeline])
            assert headers["x-headrace-model"] == "acme/painter"
        _, _, headers = await server.json("/llm", MINIMAL["llm"])
        assert headers["x-headrace-model"] == "demo:smollm2"


async def test_a_worker_that_stops_starts_no_engine():
    async with batch_server(StandInEngine()) as server:
        await server.front.stop()
        status, body, _ = await server.json("/text-to-image", {"prompt": "x"})
        assert (status, body["error"]["code"]) == (503, "engine_unavailable")
        assert server.engine.started == 0


async def test_an_engine_that_dies_is_answered_503_and_the_next_request_works():
    async with batch_server(StandInEngine()) as server:
        server.engine.dies = True
        status, body, headers = await server.json("/text-to-image", {"prompt": "x"})
        assert (status, headers["Retry-After"]) == (503, "3")
        assert body["error"]["type"] == "server_error"
        server.engine.dies = False
        assert (await server.json("/text-to-image", {"prompt": "x"}))[0] == 200


async def test_a_fault_of_ours_is_answered_in_json_on_a_connection_that_goes_on(caplog):
    async with batch_server(StandInEngine()) as server:
        server.engine.raises = RuntimeError("what nobody thought of")
        for _ in range(2):
            status, body, _ = await server.json("/text-to-image", {"prompt": "x"})
            assert (status, body["error"]["code"]) == (500, "internal")
            assert "nobody" not in json.dumps(body)


async def test_a_client_that_leaves_takes_its_request_with_it():
    async with batch_server(StandInEngine()) as server:
        server.engine.gate.clear()
        tasks = [asyncio.ensure_future(server.json("/text-to-image", unlike(number))) for number in range(5)]
        await until(lambda: server.engine.running == 2 and server.front.service.queue.waiting == 3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(lambda: server.engine.cancelled >= 2)
        queue = server.front.service.queue
        await until(lambda: (queue.waiting, queue.running, server.front.budget.held) == (0, 0, 0))


async def test_a_request_ends_after_its_time():
    async with batch_server(StandInEngine()) as server:
        server.engine.gate.clear()
        status, body, _ = await server.json("/text-to-image", {"prompt": "x"}, **{"X-Request-Timeout": "0.2"})
        assert (status, body["error"]["code"]) == (504, "timed_out")
        assert server.engine.cancelled == 1
        for wrong in ("0", "-1", "nan", "soon"):
            status, body, _ = await server.json(
                "/text-to-image", {"prompt": "x"}, **{"X-Request-Timeout": wrong}
            )
            assert (status, body["error"]["param"]) == (400, "X-Request-Timeout")


async def test_two_hundred_at_once_over_a_queue_of_twenty():
    async with batch_server(StandInEngine(pause=0.02), batch_queue=20) as server:
        asked = (server.json("/text-to-image", unlike(number)) for number in range(200))
        answers = await asyncio.gather(*asked)
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) == server.engine.finished >= 22
        assert server.engine.most == 2
        for status, body, headers in answers:
            if status == 429:
                assert 1 <= int(headers["Retry-After"]) <= 600
                assert body["error"]["type"] == "rate_limit_error"
        assert (await server.json("/text-to-image", {"prompt": "x"}))[0] == 200
        assert server.front.service.queue.running == server.front.budget.held == 0


async def test_other_methods_are_refused_in_json():
    async with batch_server(StandInEngine()) as server, server.client.get("/text-to-image/") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert (await response.json())["detail"] == "Method Not Allowed"


async def test_a_token_is_asked_for_before_anything_is_checked():
    async with batch_server(StandInEngine(), token="s3cret") as server:
        status, body, headers = await server.json("/text-to-image", {})
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert body["detail"]["msg"] == body["error"]["message"]
        allowed = {"Authorization": "Bearer s3cret"}
        assert (await server.json("/text-to-image", {}, **allowed))[0] == 422
        for path in ("/capabilities", "/openapi.json", "/v1/models", "/jobs/x"):
            async with server.client.get(path) as response:
                assert response.status == 401, path
        _, body, _ = await server.json("/text-to-image", {"prompt": "x", "output": "url"}, **allowed)
        async with server.client.get(body["images"][0]["url"]) as response:
            assert response.status == 200, "whoever was told the name may have the file"
    async with batch_server(StandInEngine()) as server:
        assert (await server.json("/text-to-image", {}, Authorization="Bearer any"))[0] == 422


def test_every_answer_has_a_schema_that_needs_what_clients_need():
    assert {"url", "seed", "nsfw"} == set(schemas_answers.Media.model_json_schema()["required"])
    assert "images" in schemas_answers.Videos.model_json_schema()["required"]
