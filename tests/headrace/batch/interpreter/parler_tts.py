"""A stand-in for the package parler-tts, which does not install beside the transformers of the tests.

Its model speaks one sample for each byte it was given, so that a test sees what reached it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


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
        assert not more["stopping_criteria"][0](input_ids, None).any()
        return torch.cat([prompt_input_ids[0] / 1000, input_ids[0] / 1000, noise])[None]
