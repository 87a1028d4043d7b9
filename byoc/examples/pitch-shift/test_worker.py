import numpy as np
import pytest
from worker import Shifter

RATE = 48_000


@pytest.mark.parametrize("semitones", [-7, 0, 7])
def test_a_tone_moves_by_semitones(semitones):
    moments = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 440 * moments).astype(np.float32)[None]
    shifter, ratio = Shifter(1), 2 ** (semitones / 12)
    heard = np.concatenate([shifter.shift(part, ratio) for part in np.split(tone, 50, axis=1)], axis=1)[0]
    spectrum = np.abs(np.fft.rfft(heard[RATE // 5 :]))
    loudest = np.argmax(spectrum) * RATE / (RATE - RATE // 5)
    assert loudest == pytest.approx(440 * ratio, rel=0.06)
