"""Sound at another rate, and at another pitch: windowed sines, and a phase vocoder.

Written from: Smith and Gossett 1984 (interpolation by a windowed sinc at any ratio); Flanagan and Golden
1966, Laroche and Dolson 1999 (the phase vocoder). Torch alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CROSSINGS = 24
"""Of the sinc with zero, on each side."""
_PHASES = 256
"""Places between two samples for which weights are computed; between them they are interpolated."""
_ROLL_OFF = 0.97
_ROWS = 1 << 16
"""Samples that are computed at a time."""
_WINDOW, _HOP = 2048, 512


def resampled(waveform: torch.Tensor, length: int, ratio: float) -> torch.Tensor:
    """``waveform`` [..., N] read ``length`` times, every ``ratio`` samples; it is zero beyond its ends."""
    import torch

    table = _weights(waveform, ratio)
    taps = table.shape[-1]
    rows = torch.nn.functional.pad(waveform, (taps // 2 - 1, taps // 2 + 1)).unfold(-1, taps, 1)
    parts = []
    for begin in range(0, length, _ROWS):
        numbers = torch.arange(begin, min(begin + _ROWS, length), dtype=torch.float64, device=waveform.device)
        places = numbers * ratio
        whole = places.floor()
        phase = (places - whole) * _PHASES
        lower = phase.floor()
        between = (phase - lower)[:, None].to(waveform.dtype)
        weights = torch.lerp(table[lower.long()], table[lower.long() + 1], between)
        parts.append((rows[..., whole.long().clamp(max=rows.shape[-2] - 1), :] * weights).sum(-1))
    return torch.cat(parts, -1) if parts else waveform[..., :0]


def _weights(like: torch.Tensor, ratio: float) -> torch.Tensor:
    """Of the samples around a place, a row for each place between two of them (`_PHASES` and the last)."""
    import torch

    cutoff = 1.0 if ratio == 1 else min(1.0, 1 / ratio) * _ROLL_OFF
    reach = math.ceil(_CROSSINGS / cutoff)
    steps = torch.arange(-reach + 1, reach + 1, dtype=torch.float64)
    away = steps - torch.arange(_PHASES + 1, dtype=torch.float64)[:, None] / _PHASES
    window = torch.cos(away * (math.pi / 2 / reach)).clamp(min=0) ** 2
    return (cutoff * torch.sinc(away * cutoff) * window).to(like)


def at_rate(waveform: torch.Tensor, rate: int, wanted: int) -> torch.Tensor:
    """``waveform`` [..., N] of ``rate`` Hz as one of ``wanted`` Hz."""
    if rate == wanted:
        return waveform
    return resampled(waveform, math.ceil(waveform.shape[-1] * wanted / rate), rate / wanted)


def shifted(waveform: torch.Tensor, semitones: float) -> torch.Tensor:
    """``waveform`` [..., N] at another pitch and as long as before: stretched in time, then read faster."""
    faster = 2 ** (semitones / 12)
    if faster == 1 or not waveform.shape[-1]:
        return waveform
    return resampled(_stretched(waveform, faster), waveform.shape[-1], faster)


def _stretched(waveform: torch.Tensor, factor: float) -> torch.Tensor:
    """As many times as long, at the same pitch."""
    import torch

    length = waveform.shape[-1]
    window = torch.hann_window(_WINDOW, device=waveform.device, dtype=waveform.dtype)
    rows = waveform.reshape(-1, length)
    spectra = torch.stft(
        rows, _WINDOW, _HOP, window=window, center=True, pad_mode="constant", return_complex=True
    )
    places = torch.arange(0, spectra.shape[-1], 1 / factor, dtype=torch.float64, device=waveform.device)
    whole = places.floor().long()
    part = (places - whole).to(waveform.dtype)
    spectra = torch.nn.functional.pad(spectra, (0, 2))
    here, next_ = spectra[..., whole], spectra[..., whole + 1]
    sizes = torch.lerp(here.abs(), next_.abs(), part)
    bins = torch.arange(spectra.shape[-2], device=waveform.device, dtype=torch.float64)[:, None]
    expected = bins * (2 * math.pi * _HOP / _WINDOW)
    turned = next_.angle().double() - here.angle().double() - expected
    turned = turned - 2 * math.pi * torch.round(turned / (2 * math.pi))
    advances = torch.cumsum(turned + expected, -1)
    phases = here[..., :1].angle().double() + torch.nn.functional.pad(advances[..., :-1], (1, 0))
    made = torch.polar(sizes, phases.remainder(2 * math.pi).to(sizes.dtype))
    made_rows = torch.istft(made, _WINDOW, _HOP, window=window, center=True, length=round(length * factor))
    return made_rows.reshape(*waveform.shape[:-1], -1)
