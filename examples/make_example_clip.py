"""Makes the example clip that comes with the package: eight seconds of a small, invented scene.

A voice babbles over plucked chords, a drum and a shaker, in a room. All of it is computed from one
seed with NumPy, so the clip has no author but this file and no licence but the project's.

    python examples/make_example_clip.py [OUT.flac]
"""

import sys
from pathlib import Path

import numpy as np
import soundfile

from tokenizer.saving import writing

RATE = 44_100
SECONDS = 8.0
BEAT = 0.5  # seconds, 120 a minute
LEVEL_DB = -20.0  # root mean square, relative to full scale
OUT = Path(__file__).parents[1] / "tokenizer" / "assets" / "example.flac"

# One bar each of A minor, F, C and G, as MIDI notes from the bass up.
CHORDS = ((45, 57, 60, 64, 69), (41, 53, 60, 65, 69), (48, 55, 60, 64, 72), (43, 55, 59, 62, 71))
PICKING = (1, 2, 3, 4, 3, 2, 4, 3)  # which string of the chord each half beat plucks

# Formant frequencies in Hz.
VOWELS = {
    "a": (730, 1090, 2440, 3400, 4500),
    "e": (530, 1840, 2480, 3500, 4500),
    "i": (290, 2290, 3010, 3600, 4600),
    "o": (500, 880, 2410, 3300, 4400),
    "u": (320, 870, 2240, 3300, 4400),
}
FORMANT_WIDTHS = (70, 90, 130, 200, 280)  # Hz
FORMANT_LEVELS = (1.0, 0.6, 0.35, 0.2, 0.1)
HISSES = {"s": (5500, 9500), "f": (2000, 14000), "h": (2200, 5200)}  # Hz; h stands for sh


def tone(note: float) -> float:
    """Frequency in Hz of a MIDI note."""
    return 440.0 * 2.0 ** ((note - 69.0) / 12.0)


def seconds(count: int) -> np.ndarray:
    """The times of ``count`` samples."""
    return np.arange(count) / RATE


def noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """White noise in [-1, 1)."""
    return 2.0 * rng.random(count) - 1.0


def band(signal: np.ndarray, low: float, high: float) -> np.ndarray:
    """Keeps a band of frequencies (Hz), with edges a third of an octave wide."""
    spectrum = np.fft.rfft(signal)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(signal), 1 / RATE), 1.0))
    rise = np.clip(3 * (octaves - np.log2(low)) + 0.5, 0, 1)
    fall = np.clip(3 * (np.log2(high) - octaves) + 0.5, 0, 1)
    return np.fft.irfft(spectrum * rise * fall, len(signal))


def pluck(rng: np.random.Generator, note: float, ring: float = 2.0) -> np.ndarray:
    """A Karplus-Strong string: a burst of noise that runs round a loop and loses its highs.

    The loop is evaluated on the unit circle instead of in time; there its length, one period of
    the note, need not be a whole number of samples.
    """
    count = 1 << 17
    period = RATE / tone(note)
    burst = np.zeros(count)
    burst[: int(period)] = band(noise(rng, int(period)), 40, 9000)
    angle = np.linspace(0.0, np.pi, count // 2 + 1)
    loss = 10.0 ** (-3.0 * period / RATE / ring) * (0.8 + 0.2 * np.cos(angle))
    string = np.fft.irfft(np.fft.rfft(burst) / (1.0 - loss * np.exp(-1j * angle * period)), count)
    string *= np.minimum(1.0, np.linspace(4.0, 0.0, count))  # nothing wraps round to the start
    return string / np.sqrt(np.mean(string[: RATE // 4] ** 2))


def add(track: np.ndarray, sound: np.ndarray, start: float) -> None:
    """Adds a sound to a track from ``start`` seconds on, cut off at the track's end."""
    first = round(start * RATE)
    sound = sound[: max(0, len(track) - first)]
    track[first : first + len(sound)] += sound


def play_strings(rng: np.random.Generator, track: np.ndarray) -> None:
    """A bass note and a strum on every bar, and picked half beats."""
    for bar, chord in enumerate(CHORDS):
        for string, note in enumerate(chord):
            add(track, 0.5 * pluck(rng, note), 4 * BEAT * bar + 0.012 * string)
        add(track, 0.6 * pluck(rng, chord[0]), BEAT * (4 * bar + 2))
        for half, string in enumerate(PICKING[1:], 1):
            add(track, 0.4 * pluck(rng, chord[string], 1.2), BEAT * (4 * bar + half / 2))


def play_drums(rng: np.random.Generator, track: np.ndarray) -> None:
    """A low drum on beats one and three, a snare on two and four, a shaker on every quarter."""
    t = seconds(int(0.35 * RATE))
    drum = np.sin(2 * np.pi * (50 * t + 3.0 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.09)
    for beat in range(16):
        if beat % 2 == 0:
            add(track, 1.1 * drum, BEAT * beat)
        else:
            rattle = band(noise(rng, len(t)), 900, 12000) * np.exp(-t / 0.05)
            ring = np.sin(2 * np.pi * 190 * t) * np.exp(-t / 0.04)
            add(track, 0.45 * rattle + 0.35 * ring, BEAT * beat)
        for quarter in range(4):
            length = int(0.11 * RATE)
            shape = np.minimum(1, seconds(length) / 0.012) * np.exp(-seconds(length) / 0.022)
            grain = band(noise(rng, length), 6000, 18000) * shape
            accent = (0.42, 0.2, 0.3, 0.2)[quarter] * (0.85 + 0.3 * rng.random())
            add(track, accent * grain, BEAT * (beat + quarter / 4) + 0.004 * rng.random())


def say(
    rng: np.random.Generator, track: np.ndarray, start: float, vowels: str, hisses: str
) -> float:
    """Babbles one phrase from ``start`` on, a vowel and a hiss (or " ", none) a syllable.

    Each opening of the glottis excites the five formants, which ring as decaying sines.

    Returns:
        When the phrase ends.
    """
    ring = seconds(int(0.025 * RATE))
    # A soft start: the longer, the duller the voice.
    attack = 0.5 - 0.5 * np.cos(np.pi * np.minimum(1.0, ring / 0.001))
    edges, moment = [], start
    for hiss in hisses:
        voiced = moment + (0.0 if hiss == " " else 0.07)
        if hiss != " ":
            count = int(0.1 * RATE)
            low, high = HISSES[hiss]
            add(track, 0.5 * band(noise(rng, count), low, high) * np.hanning(count), moment)
        moment = voiced + 0.11 + 0.1 * rng.random()
        edges.append((voiced, moment))
    # The formants glide: each vowel is reached in the middle of its syllable.
    middles = [(a + b) / 2 for a, b in edges]
    targets = np.array([VOWELS[v] for v in vowels], dtype=float)
    at = start
    while at < moment:
        loudness = sum(np.sin(np.pi * (at - a) / (b - a)) for a, b in edges if a < at < b)
        if loudness > 0:
            pulse = np.zeros(len(ring))
            for k, (width, level) in enumerate(zip(FORMANT_WIDTHS, FORMANT_LEVELS, strict=True)):
                formant = np.interp(at, middles, targets[:, k])
                decay = np.exp(-np.pi * width * ring)
                pulse += level * decay * np.sin(2 * np.pi * formant * ring)
            breath = 0.1 * band(noise(rng, len(ring)), 1500, 7000) * np.exp(-ring / 0.004)
            add(track, 1.6 * np.sqrt(loudness) * attack * (pulse + breath), at)
        # The pitch falls over the phrase and swings with stress; no glottis keeps perfect time.
        said = at - start
        pitch = 175 - 60 * said / (moment - start) + 14 * np.sin(2 * np.pi * 2.6 * said)
        at += 1.0 / (pitch + 3.0 * (rng.random() - 0.5))
    return moment


def room(rng: np.random.Generator, dry: np.ndarray) -> np.ndarray:
    """The sound of a room: the signal convolved with noise that dies away, its highs first."""
    t = seconds(int(0.9 * RATE))
    tail = np.zeros(len(t))
    for low, high, decay in ((80, 800, 0.16), (800, 4000, 0.13), (4000, 12000, 0.07)):
        tail += band(noise(rng, len(t)), low, high) * np.exp(-t / decay)
    tail *= np.minimum(1.0, t / 0.008)
    size = len(dry) + len(tail)
    wet = np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(tail, size), size)[: len(dry)]
    return wet * np.sqrt(np.mean(dry**2) / np.mean(wet**2))


def make_clip(seed: int = 2) -> np.ndarray:
    """Synthesizes the scene.

    Returns:
        int16 ``[N]`` at 44.1 kHz.
    """
    rng = np.random.default_rng(seed)
    strings, drums, voice = (np.zeros(round(SECONDS * RATE)) for _ in range(3))
    play_strings(rng, strings)
    play_drums(rng, drums)
    end = say(rng, voice, 0.75, "aeiouaeoiau", "s hf  sh s ")
    say(rng, voice, end + 0.6, "oiaeuaoieao", " sf hs  fsh")
    dry = 0.28 * strings + 0.8 * drums + 0.75 * voice
    mix = dry + 0.22 * room(rng, 0.28 * strings + 0.25 * drums + 0.75 * voice)
    mix = band(mix, 30, 19500)
    fade = np.minimum(1.0, np.arange(len(mix))[::-1] / (0.25 * RATE))
    mix *= fade * 10 ** (LEVEL_DB / 20) / np.sqrt(np.mean((mix * fade) ** 2))
    if np.abs(mix).max() >= 1.0:
        raise RuntimeError(f"The mix clips at {np.abs(mix).max():.2f} times full scale.")
    return np.round(mix * 32767).astype(np.int16)


def main() -> None:
    """Writes the clip."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out) as partial:
        soundfile.write(partial, make_clip(), RATE, format="FLAC", subtype="PCM_16")
    print(f"{out}: {SECONDS:.0f} s, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
