"""Draws a driver's face: identity, expression by valence or muscle by muscle, pose, light, blur and occlusion.

Everything is signed-distance shapes composited in float64 with + − × ÷ and √ only, which IEEE 754
rounds the same everywhere: the same seed gives the same bytes on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Identity:
    """What stays the same about a face. Lengths are in half face heights, colours 0..1 RGB."""

    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    lip: tuple[float, float, float]
    shirt: tuple[float, float, float]
    face_width: float
    jaw: float
    hairline: float
    eye_distance: float
    eye_size: float
    brow_height: float
    brow_weight: float
    nose_length: float
    mouth_width: float
    mouth_height: float
    lip_thickness: float
    resting_mouth: float  # corners at rest: some people look glum without being so
    expressiveness: float
    glasses: bool
    beard: float


def draw_identity(rng: np.random.Generator) -> Identity:
    tone = rng.uniform(0.25, 1.0)
    skin = np.array([0.98, 0.80, 0.68]) * tone + np.array([0.10, 0.02, 0.0]) * (1 - tone)
    hair = np.array([0.10, 0.07, 0.05]) + rng.choice([0.0, 0.15, 0.35, 0.6]) * np.array([1.0, 0.75, 0.45])
    return Identity(
        skin=tuple(skin + rng.uniform(-0.03, 0.03, 3)),
        hair=tuple(hair),
        iris=tuple(rng.choice([[0.25, 0.15, 0.08], [0.2, 0.35, 0.5], [0.25, 0.4, 0.2]])),
        lip=tuple(np.clip(skin * [0.85, 0.55, 0.55] + [rng.uniform(0, 0.12), 0, 0], 0, 1)),
        shirt=tuple(rng.uniform(0.05, 0.8, 3)),
        face_width=rng.uniform(0.66, 0.82),
        jaw=rng.uniform(0.75, 1.0),
        hairline=rng.uniform(-0.72, -0.5),
        eye_distance=rng.uniform(0.28, 0.36),
        eye_size=rng.uniform(0.10, 0.14),
        brow_height=rng.uniform(0.16, 0.22),
        brow_weight=rng.uniform(0.025, 0.05),
        nose_length=rng.uniform(0.26, 0.36),
        mouth_width=rng.uniform(0.24, 0.32),
        mouth_height=rng.uniform(0.44, 0.52),
        lip_thickness=rng.uniform(0.04, 0.065),
        resting_mouth=rng.uniform(-0.025, 0.025),
        expressiveness=rng.uniform(0.9, 1.1),
        glasses=bool(rng.random() < 0.3),
        beard=float(rng.choice([0.0, 0.0, 0.0, 0.5, 0.9])),
    )


@dataclass(frozen=True)
class Expression:
    """What single muscles do on top of what `valence` draws: a number or an array [frames] each, 0 at rest.

    The units are those of the Facial Action Coding System (Ekman and Friesen 1978), named in the comments.
    """

    corners: float | Array = 0.0  # −1..1, of the mouth: up (AU 12, with the cheeks) or down (AU 15)
    jaw: float | Array = 0.0  # 0..1, dropped (AU 26), on top of what speech opens
    stretch: float | Array = 0.0  # −1..1, mouth pulled wide (AU 20) or narrow (AU 18)
    brows: float | Array = 0.0  # −1..1, both raised (AU 1 + 2) or lowered
    inner: float | Array = 0.0  # 0..1, their inner ends raised (AU 1)
    knit: float | Array = 0.0  # 0..1, drawn together, inner ends down, a furrow between (AU 4)
    lids: float | Array = 0.0  # −1..1, eyes wide (AU 5) or drooping (AU 43)
    nose: float | Array = 0.0  # 0..1, wrinkled, upper lip raised (AU 9 + 10)


@dataclass(frozen=True)
class Motion:
    """What changes from frame to frame; arrays are [frames], occluder [frames, 4] as centre x, y and half sizes."""

    valence: Array  # −1..1 as shown at this moment
    mouth_open: Array  # 0..1, from the speech
    blink: Array  # 0..1, 1 is closed
    x: Array
    y: Array
    roll: Array  # radians, small
    yaw: Array  # −1..1: features slide across the face
    scale: Array
    light: Array  # gain
    light_x: float  # −1..1, where the light comes from
    light_y: float
    warmth: float  # −1 blue .. 1 orange
    blur_px: float
    noise: float  # sensor noise, standard deviation in 0..1
    occluder: Array
    occluder_colour: tuple[float, float, float]
    background: Array  # [4, 3] corner colours
    expression: Expression = Expression()


def render(identity: Identity, motion: Motion, size: int, rng: np.random.Generator) -> Array:
    """[frames, size, size, 3] uint8 RGB."""
    frames = len(motion.valence)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    px = 2.0 / size
    gx = np.broadcast_to(axis[None, None, :], (frames, size, size))
    gy = np.broadcast_to(axis[None, :, None], (frames, size, size))

    def per_frame(a) -> Array:
        return np.asarray(a, dtype=np.float64).reshape(-1, 1, 1)

    # Pixel → face coordinates: unrotate by a small angle (Taylor, so that no libm enters), unscale.
    roll = per_frame(motion.roll)
    cos, sin = 1 - roll * roll / 2, roll - roll * roll * roll / 6
    dx, dy = gx - per_frame(motion.x), gy - per_frame(motion.y)
    inverse = 1 / per_frame(motion.scale)
    x, y = (dx * cos + dy * sin) * inverse, (dy * cos - dx * sin) * inverse
    soft = px * inverse  # one pixel, in face units
    fx = x - 0.12 * per_frame(motion.yaw)  # features turn further than the outline

    def cover(distance: Array) -> Array:
        return np.clip(0.5 - distance / soft, 0.0, 1.0)

    def ellipse(ex: Array, ey: Array, rx, ry) -> Array:
        q = np.sqrt((ex / rx) ** 2 + (ey / ry) ** 2)
        return (q - 1) * np.minimum(rx, ry)

    top, bottom = motion.background[:2], motion.background[2:]
    mix_x, mix_y = (gx[..., None] + 1) / 2, (gy[..., None] + 1) / 2
    image = (top[0] * (1 - mix_x) + top[1] * mix_x) * (1 - mix_y) + (bottom[0] * (1 - mix_x) + bottom[1] * mix_x) * mix_y

    def paint(alpha: Array, colour) -> None:
        touched = alpha.any(0)
        if not touched.any():
            return
        # Only the box that it touches: elsewhere alpha is 0 and nothing would change.
        box = tuple(slice(hit[0], hit[-1] + 1) for hit in (np.flatnonzero(touched.any(axis)) for axis in (1, 0)))
        part = image[:, *box]
        step = np.asarray(colour, dtype=np.float64) - part
        step *= alpha[:, *box][..., None]
        part += step

    i = identity
    v = np.clip(per_frame(motion.valence) * i.expressiveness, -1.2, 1.2)
    smile, frown = np.maximum(v, 0), np.maximum(-v, 0)
    # Every term of these is 0 where no muscle is asked for, and adding 0 changes no bit.
    e = motion.expression
    corners, stretch, lids = (np.clip(per_frame(a), -1.2, 1.2) for a in (e.corners, e.stretch, e.lids))
    brows, inner_up, knit, nose = (np.clip(per_frame(a), low, 1.2) for a, low in ((e.brows, -1.2), (e.inner, 0), (e.knit, 0), (e.nose, 0)))
    lifted = np.maximum(corners, 0)
    opening = np.minimum(per_frame(motion.mouth_open) + np.maximum(per_frame(e.jaw), 0), 1.3)
    skin, hair = np.array(i.skin), np.array(i.hair)

    # Seat, shoulders, neck, hair behind the head.
    paint(cover(ellipse(x, y - 1.75, 1.15, 0.75)), i.shirt)
    paint(cover(np.maximum(np.abs(x) - 0.28, np.abs(y - 0.95) - 0.35)), skin * 0.8)
    paint(cover(ellipse(x, y + 0.12, i.face_width + 0.1, 1.0)), hair)
    # Head: the jaw narrows the lower half.
    narrow = 1 + (1 - i.jaw) * np.clip(y, 0, 1)
    head = cover(ellipse(x * narrow, y - 0.06, i.face_width, 0.94))
    paint(head, skin)
    for side in (-1, 1):
        paint(cover(ellipse(x - side * i.face_width, y + 0.02, 0.09, 0.17)), skin * 0.9)
    paint(head * cover(y - i.hairline + 0.1 * (x / i.face_width) ** 2), hair)
    if i.beard:
        paint(head * cover(0.30 - y) * i.beard * 0.7, hair * 0.8 + skin * 0.2)
    # Cheeks rise and redden with a smile.
    for side in (-1, 1):
        cheek = np.clip(1 - ellipse(fx - side * 0.38, y - 0.26 + 0.08 * (smile + lifted + nose), 0.2, 0.15) / 0.15 - 1, 0, 1)
        paint(head * np.clip(cheek, 0, 1) * (0.10 + 0.30 * (smile + lifted)), skin * [1.05, 0.75, 0.72])

    eye_y = -0.12
    lid = np.clip(1 - 0.35 * smile - 0.2 * frown + 0.5 * lids - 0.2 * lifted - 0.25 * nose, 0.2, 1.6) * (1 - per_frame(motion.blink))
    for side in (-1, 1):
        ex, ey = fx - side * i.eye_distance, y - eye_y
        half = np.maximum(i.eye_size * 0.62 * lid, 0.012)
        eye = cover(ellipse(ex, ey, i.eye_size, half))
        paint(eye, (0.93, 0.93, 0.92))
        paint(eye * cover(ellipse(ex - 0.03 * per_frame(motion.yaw), ey, 0.055, 0.055)), i.iris)
        paint(eye * cover(ellipse(ex - 0.03 * per_frame(motion.yaw), ey, 0.028, 0.028)), (0.02, 0.02, 0.02))
        # Brow: a thick parabola; the inner end drops in a frown and lifts a little in a smile.
        bx = ex + side * 0.05 * knit
        inner = -side * bx / i.eye_size  # −1 outer end .. 1 inner end
        centre = -i.brow_height - 0.07 * smile + 0.06 * frown + inner * (0.10 * frown - 0.02 * smile) + 0.03 * inner * inner
        centre = centre - 0.12 * brows + 0.05 * (knit + nose) - 0.03 * inner_up + inner * (0.09 * knit - 0.10 * inner_up)
        paint(cover(np.maximum(np.abs(ey - centre) - i.brow_weight, np.abs(bx) - i.eye_size * 1.25)), hair * 0.8)
    # Furrow between the brows.
    paint(cover(np.maximum(np.abs(np.abs(fx) - 0.05) - 0.012, np.abs(y + 0.30) - 0.07)) * np.minimum(frown + knit, 1) * 0.6, skin * 0.6)
    # Nose: a shaded ridge and its tip.
    nose_y = eye_y + i.nose_length - 0.04 * nose
    paint(cover(np.maximum(np.abs(fx - 0.045) - 0.018, np.abs(y - (nose_y - 0.12)) - 0.12)) * 0.5, skin * 0.75)
    paint(cover(ellipse(fx, y - nose_y, 0.10 + 0.05 * nose, 0.05)) * 0.6, skin * 0.8)
    for side in (-1, 1) if nose.any() else ():  # wrinkles run down its sides
        paint(cover(np.maximum(np.abs(fx - side * (0.09 + 0.4 * (y - 0.02))) - 0.016, np.abs(y) - 0.10)) * np.minimum(nose, 1) * 0.7, skin * 0.6)

    # Mouth: corners lift or drop along a parabola; speech opens it.
    width = i.mouth_width * (1 + 0.30 * smile - 0.12 * frown - 0.1 * opening + 0.30 * lifted + 0.30 * stretch)
    along = np.clip(fx / width, -1.3, 1.3)
    curve = i.mouth_height + 0.03 - (0.17 * v + i.resting_mouth + 0.17 * corners) * (along * along - 0.35)
    taper = np.sqrt(np.maximum(1 - along * along, 0))
    gap = (0.015 + 0.11 * opening + 0.03 * smile + 0.03 * lifted + 0.05 * nose) * taper
    my = y - curve + 0.05 * nose * taper
    inside = np.abs(fx) - width
    paint(cover(np.maximum(np.abs(my) - gap - i.lip_thickness * (0.35 + 0.65 * taper), inside)), i.lip)
    hole = cover(np.maximum(np.abs(my) - gap, inside))
    paint(hole, (0.12, 0.03, 0.03))
    teeth = hole * cover(my + gap * 0.2) * np.clip(opening * 1.5 + smile + lifted + nose, 0, 1)
    paint(teeth, (0.92, 0.9, 0.86))
    # Nasolabial folds deepen with any strong expression.
    effort = np.maximum(np.maximum(smile, 0.6 * frown), np.maximum(lifted, nose))
    for side in (-1, 1):
        fold = np.abs(fx - side * (0.24 + 0.25 * (y - 0.2))) - 0.012
        paint(cover(np.maximum(fold, np.abs(y - 0.36) - 0.12)) * (0.15 + 0.5 * effort), skin * 0.7)
    if i.glasses:
        for side in (-1, 1):
            rim = np.abs(ellipse(fx - side * i.eye_distance, y - eye_y - 0.01, 0.21, 0.17)) - 0.018
            paint(cover(rim), (0.08, 0.08, 0.09))
        paint(cover(np.maximum(np.abs(y - eye_y + 0.02) - 0.015, np.abs(fx) - 0.14)), (0.08, 0.08, 0.09))

    # A hand, a phone or the wheel's rim passes in front.
    ox, oy, rx, ry = (per_frame(motion.occluder[:, k]) for k in range(4))
    shown = (rx > 0) & (ry > 0)
    paint(cover(ellipse(gx - ox, gy - oy, np.maximum(rx, 1e-3), np.maximum(ry, 1e-3))) * shown, motion.occluder_colour)

    shade = 1 + 0.35 * (motion.light_x * gx + motion.light_y * gy)
    image = image * (per_frame(motion.light) * np.clip(shade, 0.3, 1.7))[..., None]
    image = image * np.array([1 + 0.12 * motion.warmth, 1.0, 1 - 0.12 * motion.warmth])
    image = _blur(np.clip(image, 0, 1.2), motion.blur_px)
    if motion.noise > 0:
        image = image + motion.noise * rng.standard_normal(image.shape[:3])[..., None]
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _blur(image: Array, radius_px: float) -> Array:
    """Two triangular passes per axis, near enough to a Gaussian of that standard deviation."""
    weight = min(radius_px * radius_px / 4, 0.33)
    for _ in range(2 if radius_px > 0 else 0):
        for axis in (1, 2):
            padded = np.concatenate([image.take([0], axis), image, image.take([-1], axis)], axis)
            n = image.shape[axis]
            before, after = (padded.take(range(k, k + n), axis) for k in (0, 2))
            image = image * (1 - 2 * weight) + weight * (before + after)
    return image
