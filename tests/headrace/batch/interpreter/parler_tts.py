"""A stand-in for the package parler-tts, which does not install beside the transformers of the tests.

Its model speaks one sample for each byte it was given, so that a test sees what reached it.
Over long texts it takes long.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

LONG = 30
"""Tokens from which on a text takes a second for each."""


class ParlerTTSForConditionalGeneration(torch.nn.Module):
    config = SimpleNamespace(sampling_rate=44_100)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(10))

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> ParlerTTSForConditionalGeneration:
        assert options["local_files_only"]
        return cls()

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def generate(self, input_ids: torch.Tensor, prompt_input_ids: torch.Tensor, **more: Any) -> torch.Tensor:
        noise = torch.rand(1)
        for _ in range(prompt_input_ids.shape[1] if prompt_input_ids.shape[1] > LONG else 0):
            more["stopping_criteria"][0](input_ids, None)
            time.sleep(1.0)
        assert not more["stopping_criteria"][0](input_ids, None).any()
        return torch.cat([prompt_input_ids[0] / 1000, input_ids[0] / 1000, noise])[None]
