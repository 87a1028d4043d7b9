"""The samplers and schedulers that are offered: those that agree with ComfyUI's (see docs/nodes.md)."""

from __future__ import annotations

import importlib.util

_PLAIN = ("euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral",
          "dpmpp_2m", "ddpm", "lcm", "ipndm", "ddim")  # fmt: skip
_BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
"""Their noise comes of one path for all steps, by torchsde."""
_SCHEDULES = ("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "normal",
              "linear_quadratic", "kl_optimal")  # fmt: skip


def sampler_names() -> list[str]:
    """Without those whose package is missing."""
    return [*_PLAIN, *(_BROWNIAN if importlib.util.find_spec("torchsde") else ())]


def scheduler_names() -> list[str]:
    """Without those whose package is missing."""
    return [*_SCHEDULES, *(("beta",) if importlib.util.find_spec("scipy") else ())]
