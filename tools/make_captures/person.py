"""Who is captured: every choice about one person and one clip, drawn from a seed."""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Colour = tuple[float, float, float]
SKIN_TONES = ((0.94, 0.78, 0.69), (0.89, 0.71, 0.60), (0.80, 0.60, 0.47), (0.68, 0.47, 0.34), (0.52, 0.34, 0.24),
              (0.38, 0.24, 0.17))  # fmt: skip
HAIR_COLOURS = ((0.14, 0.11, 0.09), (0.19, 0.12, 0.08), (0.32, 0.20, 0.12), (0.50, 0.33, 0.18), (0.74, 0.57, 0.34),
                (0.55, 0.24, 0.11))  # fmt: skip
IRIS_COLOURS = ((0.24, 0.14, 0.07), (0.36, 0.23, 0.10), (0.30, 0.38, 0.22), (0.28, 0.42, 0.55), (0.40, 0.46, 0.48))
CLOTH_COLOURS = ((0.85, 0.84, 0.80), (0.16, 0.18, 0.24), (0.55, 0.15, 0.16), (0.20, 0.36, 0.55), (0.24, 0.40, 0.28),
                 (0.80, 0.62, 0.22), (0.42, 0.28, 0.45), (0.62, 0.60, 0.58), (0.76, 0.45, 0.36), (0.10, 0.10, 0.11),
                 (0.36, 0.58, 0.60), (0.88, 0.72, 0.74))  # fmt: skip


class HairKind(str, enum.Enum):
    """Cuts of hair; each has its own range of length, volume and curl."""

    BUZZ = "buzz"
    SHORT = "short"
    AFRO = "afro"
    BOB = "bob"
    LONG = "long"
    TAIL = "tail"


class Pattern(str, enum.Enum):
    """Textures of cloth."""

    PLAIN = "plain"
    STRIPES = "stripes"
    PLAID = "plaid"
    DOTS = "dots"
    BLOTCHES = "blotches"
    PRINT = "print"
    RAGLAN = "raglan"


@dataclasses.dataclass(frozen=True)
class Hair:
    """Length, volume and curl in metres; stiffness in 1/s^2 of the spring that pulls a tip to its rest place."""

    kind: HairKind
    colour: Colour
    grey: float
    length: float
    volume: float
    curl: float
    parting: float
    frequency: float  # rad/s of a tip's swing
    damping: float
    beard: float  # metres; 0 is shaved


@dataclasses.dataclass(frozen=True)
class Garment:
    """One layer of clothes; lengths in metres of the rest pose."""

    pattern: Pattern
    colours: tuple[Colour, ...]
    offset: float  # between cloth and skin
    sleeve: float  # |x| at which the sleeve ends in the T-pose
    neckline: float  # above the shoulder line; negative is a deep cut
    vee: float  # depth of a V at the front
    opening: float  # half width of an open front; 0 is closed
    wrinkle: float  # height of folds
    looseness: float  # share of the lagged motion that shows
    scale: float  # size of the pattern


@dataclasses.dataclass(frozen=True)
class Light:
    """Directions in degrees around the person (0 faces the person's front), strengths relative."""

    sky: Colour
    ground: Colour
    sky_strength: float
    key_azimuth: float
    key_height: float
    key_size: float
    key_colour: Colour
    rim: float
    blinds: int  # bars between key light and person; 0 is none


@dataclasses.dataclass(frozen=True)
class View:
    """Camera: degrees and metres; `height` and `width` of what is seen at the person's distance."""

    field_of_view: float
    azimuth: float
    elevation: float
    width: float
    drop: float  # from the eyes to the picture's centre


@dataclasses.dataclass(frozen=True)
class Person:
    """All choices of one clip; `seed` feeds the noise of textures and motion."""

    seed: tuple[int, int]
    betas: tuple[float, ...]
    age: float  # 0 young, 1 old
    skin: Colour
    iris: Colour
    lips: float
    brow: float
    freckles: float
    hair: Hair
    garments: tuple[Garment, ...]
    light: Light
    view: View
    shows_hands: bool
    liveliness: float

    def rng(self, stream: str) -> np.random.Generator:
        """A generator of this person's own for one use; uses do not disturb each other."""
        return np.random.default_rng([*self.seed, *stream.encode()])


def _colour(rng: np.random.Generator, choices: tuple[tuple[float, ...], ...], spread: float) -> Colour:
    base = np.asarray(choices[int(rng.integers(len(choices)))])
    red, green, blue = np.clip(base * np.exp(rng.normal(0, spread)) + rng.normal(0, spread / 4, 3), 0.03, 0.95).tolist()
    return red, green, blue


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _hair(rng: np.random.Generator, index: int, age: float) -> Hair:
    kinds = list(HairKind)
    # Every cut comes up equally often, in an order that the skin tones do not share.
    kind = kinds[(index * 5 + index // 6) % len(kinds)]
    length, volume, curl = {
        HairKind.BUZZ: ((0.004, 0.012), (0.002, 0.005), (0, 0)),
        HairKind.SHORT: ((0.03, 0.07), (0.008, 0.022), (0, 0.004)),
        HairKind.AFRO: ((0.05, 0.10), (0.03, 0.06), (0.008, 0.014)),
        HairKind.BOB: ((0.16, 0.23), (0.012, 0.026), (0, 0.010)),
        HairKind.LONG: ((0.30, 0.45), (0.012, 0.028), (0, 0.016)),
        HairKind.TAIL: ((0.24, 0.38), (0.006, 0.010), (0, 0.010)),
    }[kind]
    bearded = kind in (HairKind.BUZZ, HairKind.SHORT) and rng.random() < 0.6
    return Hair(
        kind=kind, colour=_colour(rng, HAIR_COLOURS, 0.15), grey=max(0.0, age - 0.55) * _between(rng, 0.6, 2.0),
        length=_between(rng, *length), volume=_between(rng, *volume), curl=_between(rng, *curl),
        parting=_between(rng, -0.035, 0.035), frequency=_between(rng, 6.5, 11.0), damping=_between(rng, 0.18, 0.4),
        beard=_between(rng, 0.003, 0.02) if bearded else 0.0,
    )  # fmt: skip


def _garment(rng: np.random.Generator, pattern: Pattern, outer: bool) -> Garment:
    colours = (_colour(rng, CLOTH_COLOURS, 0.2), _colour(rng, CLOTH_COLOURS, 0.2), _colour(rng, CLOTH_COLOURS, 0.2))
    sleeve = _between(rng, 0.52, 0.66) if outer or rng.random() < 0.55 else _between(rng, 0.25, 0.36)
    return Garment(
        pattern=pattern, colours=colours, offset=_between(rng, 0.020, 0.032) if outer else _between(rng, 0.007, 0.015),
        sleeve=sleeve, neckline=_between(rng, 0.02, 0.05) if outer else float(rng.choice([-0.025, 0.0, 0.02, 0.055])),
        vee=_between(rng, 0.05, 0.14) if not outer and rng.random() < 0.35 else 0.0,
        opening=_between(rng, 0.03, 0.08) if outer else 0.0, wrinkle=_between(rng, 0.006, 0.012),
        looseness=_between(rng, 0.4, 1.0), scale=_between(rng, 0.8, 1.5),
    )  # fmt: skip


def _light(rng: np.random.Generator) -> Light:
    warmth = rng.normal(0, 0.09)
    side = float(rng.choice([-1, 1]))
    blinds = int(rng.choice([0, 0, 3, 5, 7]))
    return Light(
        sky=(_between(rng, 0.6, 0.9), _between(rng, 0.7, 0.9), _between(rng, 0.8, 1.0)),
        ground=(_between(rng, 0.3, 0.5), _between(rng, 0.25, 0.4), _between(rng, 0.2, 0.35)),
        sky_strength=_between(rng, 0.45, 0.9), key_azimuth=side * _between(rng, 32, 75),
        key_height=_between(rng, 12, 48), key_size=_between(rng, 0.03, 0.07) if blinds else _between(rng, 0.08, 0.45),
        key_colour=(1.0 + warmth, 1.0, 1.0 - warmth), rim=max(0.0, _between(rng, -0.4, 0.6)), blinds=blinds,
    )  # fmt: skip


def draw_person(seed: int, index: int) -> Person:
    """Person number `index` of a set: the same for the same two numbers, whatever else is drawn."""
    rng = np.random.default_rng([seed, index])
    age = _between(rng, 0, 1)
    shows_hands = index % 3 == 1
    tone = np.asarray(SKIN_TONES[(index * 7 + index // 6) % len(SKIN_TONES)])
    patterns = list(Pattern)
    garments = [_garment(rng, patterns[index % len(patterns)], outer=False)]
    if index % 5 in (1, 3):
        garments.append(_garment(rng, patterns[(index // 2 + 3) % len(patterns)], outer=True))
    return Person(
        seed=(seed, index), betas=tuple(np.clip(rng.normal(0, 1.1, 10), -2.2, 2.2).tolist()), age=age,
        skin=tuple(np.clip(tone * np.exp(rng.normal(0, 0.05, 3)), 0.05, 0.96).tolist()),
        iris=_colour(rng, IRIS_COLOURS if tone[0] > 0.6 else IRIS_COLOURS[:2], 0.1), lips=_between(rng, 0.3, 1.0),
        brow=_between(rng, 0.6, 1.0), freckles=_between(rng, 0, 1) ** 3, hair=_hair(rng, index, age),
        garments=tuple(garments), light=_light(rng),
        view=View(
            field_of_view=_between(rng, 20, 42), azimuth=_between(rng, -14, 14), elevation=_between(rng, -8, 12),
            width=_between(rng, 0.72, 0.86) if shows_hands else _between(rng, 0.46, 0.60),
            drop=_between(rng, 0.17, 0.21) if shows_hands else _between(rng, 0.07, 0.11),
        ),
        shows_hands=shows_hands, liveliness=_between(rng, 0.8, 1.3),
    )  # fmt: skip
