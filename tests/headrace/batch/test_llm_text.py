"""Detokenising, stop sequences, calls of tools and the choice of tokens, by property."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from headrace.batch.pipelines.llm_sampling import Sampler, Sampling, own_sampling, wished
from headrace.batch.pipelines.llm_text import Detokenizer, StopScanner
from headrace.batch.pipelines.llm_tools import split_calls

CPU = torch.device("cpu")


def by_bytes(tokens: object) -> str:
    """A tokenizer whose tokens are the bytes of UTF-8."""
    return bytes(tokens).decode(errors="replace")  # type: ignore[call-overload, no-any-return]


@given(st.text(max_size=60))
def test_the_pieces_of_a_text_are_the_text_and_none_has_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(by_bytes)
    pieces = [detokenizer.push(token) for token in text.encode(errors="replace")]
    assert "".join(pieces) + detokenizer.finish() == text.encode(errors="replace").decode()
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_not_waited_for_without_end() -> None:
    detokenizer = Detokenizer(by_bytes)
    given_ = "".join(detokenizer.push(0xFF) for _ in range(40))
    assert len(given_ + detokenizer.finish()) == 40
    assert len(given_) > 20


pieces_and_stops = st.tuples(
    st.lists(st.text("ab<>|", max_size=4), max_size=30),
    st.lists(st.text("ab<>|", min_size=1, max_size=4), max_size=3),
)


@given(pieces_and_stops)
def test_text_ends_before_the_first_stop_sequence_however_it_is_cut(
    case: tuple[list[str], list[str]],
) -> None:
    pieces, stops = case
    scanner, given_ = StopScanner(stops), ""
    for piece in pieces:
        given_ += scanner.push(piece)
        # Nothing is taken back: what was given so far surely comes before a stop sequence.
        assert not any(stop in given_ for stop in stops)
        if scanner.stopped:
            break
    whole = "".join(pieces)
    if scanner.stopped:
        assert any(whole.startswith(given_ + stop) for stop in stops)
    else:
        assert given_ + scanner.finish() == whole
        assert not any(stop in whole for stop in stops)


@given(st.integers(0, 2**32), st.floats(0.1, 2), st.floats(0.05, 1), st.integers(-1, 20))
def test_a_chosen_token_is_within_top_k_and_top_p(seed: int, temperature: float, p: float, k: int) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
    token = Sampler(Sampling(temperature, p, k, seed=seed), CPU).choose(logits)
    order = logits.argsort(descending=True).tolist()
    allowed = order[:k] if k > 0 else order
    shares = (logits[torch.tensor(allowed)] / temperature).softmax(-1)
    place = allowed.index(token)
    assert float(shares[:place].sum()) < p + 1e-4


@given(st.integers(0, 2**63 - 1))
def test_equal_seeds_choose_equally(seed: int) -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(1))
    first, second = (Sampler(Sampling(1.0, seed=seed), CPU) for _ in range(2))
    assert [first.choose(row) for row in logits] == [second.choose(row) for row in logits]


def test_a_large_vocabulary_is_sampled_in_the_right_shares() -> None:
    logits = torch.zeros(2000)
    logits[7] = 9.0
    share = float(logits.softmax(-1)[7])
    sampler = Sampler(Sampling(1.0, top_p=0.999, seed=3), CPU)
    hits = sum(sampler.choose(logits) == 7 for _ in range(400))
    assert hits / 400 == pytest.approx(share, abs=0.08)


def test_what_a_request_leaves_open_is_as_the_models_authors_advise_else_as_openai_does() -> None:
    own = own_sampling(GenerationConfig(temperature=0.2, top_k=20, do_sample=True))
    assert own == {"temperature": 0.2, "top_k": 20}
    asked = {"temperature": None, "top_k": 5, "presence_penalty": 0.5}
    assert wished(asked, own, 3) == Sampling(0.2, 1.0, 5, presence_penalty=0.5, seed=3)
    assert wished({"temperature": 0}, own, 3).temperature == 0
    assert wished({}, own_sampling(GenerationConfig()), 3) == Sampling(1.0, 1.0, -1, seed=3)


def test_temperature_zero_takes_the_most_likely_and_penalties_count_what_was_said() -> None:
    logits = torch.tensor([1.0, 1.5, 1.2])
    assert [Sampler(Sampling(0), CPU).choose(logits) for _ in range(3)] == [1, 1, 1]
    sampler = Sampler(Sampling(0, presence_penalty=0.4), CPU)
    assert [sampler.choose(logits) for _ in range(4)] == [1, 2, 1, 1]
    sampler = Sampler(Sampling(0, frequency_penalty=0.4), CPU)
    assert [sampler.choose(logits) for _ in range(3)] == [1, 2, 1]


def test_calls_of_tools_are_split_from_the_text() -> None:
    text = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    before, calls = split_calls(text)
    assert before == "Let me see."
    assert calls[0]["function"]["name"] == "weather"
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Oslo"}
    assert split_calls("<tool_call>no JSON</tool_call>") == ("<tool_call>no JSON</tool_call>", [])
    assert split_calls("nothing") == ("nothing", [])
