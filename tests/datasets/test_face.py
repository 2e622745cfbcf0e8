"""What is drawn on the face is what is asked for: valence, mouth, blink, pose, light, blur, occlusion."""

from __future__ import annotations

import itertools
from dataclasses import astuple, replace

import numpy as np
import pytest

from edgekit.datasets import face

SIZE = 64
PERSON = replace(face.draw_identity(np.random.default_rng(0)), glasses=False, beard=0.0, resting_mouth=0.0, skin=(0.9, 0.7, 0.6), lip=(0.6, 0.2, 0.2))


def motion(frames: int = 1, **changes) -> face.Motion:
    """A still, neutral, frontal, evenly lit face."""
    same = dict.fromkeys(("valence", "mouth_open", "blink", "x", "y", "roll", "yaw"), np.zeros(frames))
    rest = {
        "scale": np.full(frames, 0.8), "light": np.ones(frames), "light_x": 0.0, "light_y": 0.0, "warmth": 0.0, "blur_px": 0.0, "noise": 0.0,
        "occluder": np.zeros((frames, 4)), "occluder_colour": (0.0, 1.0, 0.0), "background": np.full((4, 3), 0.2),
    }  # fmt: skip
    arrays = {name: np.full(frames, float(value)) if name in same or name in ("scale", "light") else value for name, value in changes.items()}
    return face.Motion(**{**same, **rest, **arrays})


def drawn(person=PERSON, size: int = SIZE, **changes) -> np.ndarray:
    return face.render(person, motion(**changes), size, np.random.default_rng(1))[0].astype(int)


def rows(image: np.ndarray, left: float, right: float, top: float, bottom: float) -> np.ndarray:
    """A part of the picture, in face coordinates −1..1 at the scale of `motion`."""
    x0, x1, y0, y1 = (round((v * 0.8 + 1) / 2 * SIZE) for v in (left, right, top, bottom))
    return image[y0:y1, x0:x1]


def centre_of_lips(image: np.ndarray, left: float, right: float) -> float:
    """Mean row of what is far redder than it is bright, in a column range of the lower face."""
    part = rows(image, left, right, 0.25, 0.85)
    reddish = np.clip(part[..., 0] - part[..., 1] - 60, 0, None)
    return float((np.arange(len(part))[:, None] * reddish).sum() / reddish.sum())


def test_pictures_are_uint8_and_deterministic():
    frames = face.render(PERSON, motion(5, valence=0.5), SIZE, np.random.default_rng(1))
    assert frames.shape == (5, SIZE, SIZE, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, face.render(PERSON, motion(5, valence=0.5), SIZE, np.random.default_rng(1)))


def test_a_smile_lifts_the_corners_of_the_mouth_and_a_frown_drops_them():
    def lift(valence):
        image = drawn(valence=valence)
        corner = (centre_of_lips(image, -0.34, -0.2) + centre_of_lips(image, 0.2, 0.34)) / 2
        return centre_of_lips(image, -0.08, 0.08) - corner

    lifts = [lift(v) for v in (-1.0, 0.0, 1.0)]
    assert lifts[0] < lifts[1] - 1 < lifts[2] - 2


def test_a_frown_furrows_the_brow():
    between = [rows(drawn(valence=v), -0.12, 0.12, -0.4, -0.2).mean() for v in (-1.0, 0.0)]
    assert between[0] < between[1] - 2  # the furrow is dark


def test_every_step_of_valence_shows():
    """A tenth more or less must be visible, or the label is not in the picture."""
    images = [drawn(valence=v) for v in np.linspace(-1, 1, 21)]
    assert min(np.abs(a - b).sum() for a, b in itertools.pairwise(images)) > 400


def test_speech_opens_the_mouth():
    dark = [(rows(drawn(mouth_open=o), -0.15, 0.15, 0.3, 0.75).sum(-1) < 200).sum() for o in (0.0, 0.5, 1.0)]
    assert dark[0] < dark[1] < dark[2]


def test_a_blink_hides_the_eyes():
    """White of the eye is blue as no skin is."""
    blue = [rows(drawn(blink=b), -0.45, 0.45, -0.25, 0.0)[..., 2].astype(float) for b in (0.0, 0.5, 1.0)]
    assert [b.max() for b in blue] == sorted((b.max() for b in blue), reverse=True)
    assert (blue[0] > 180).sum() > 2 * (blue[2] > 180).sum()


def test_the_head_moves_turns_and_grows():
    still = drawn()
    assert np.abs(drawn(x=8 / 32)[:, 8:] - still[:, :-8])[20:50, 10:40].mean() < 1  # 8 pixels to the right
    for change in ({"roll": 0.15}, {"yaw": 1.0}, {"scale": 0.9}, {"y": 0.1}):
        assert np.abs(drawn(**change) - still).mean() > 1, change


def test_light_has_strength_direction_and_colour():
    assert drawn(light=0.5).mean() == pytest.approx(drawn().mean() / 2, rel=0.03)
    lit = drawn(light_x=1.0)
    assert lit[:, 40:].mean() / lit[:, :24].mean() > 1.3 * drawn()[:, 40:].mean() / drawn()[:, :24].mean()
    warm, cold = drawn(warmth=1.0), drawn(warmth=-1.0)
    assert warm[..., 0].mean() > cold[..., 0].mean() and warm[..., 2].mean() < cold[..., 2].mean()


def test_blur_takes_edges_and_keeps_brightness():
    sharp, soft = drawn(), drawn(blur_px=1.2)
    # Squared: a blurred edge is as high, and spread over more pixels.
    assert (np.diff(soft, axis=1) ** 2).sum() < 0.7 * (np.diff(sharp, axis=1) ** 2).sum()
    assert soft.mean() == pytest.approx(sharp.mean(), rel=0.01)


def test_noise_is_of_the_asked_strength():
    noisy, clean = drawn(noise=0.03, background=np.full((4, 3), 0.4)), drawn(background=np.full((4, 3), 0.4))
    assert np.std((noisy - clean)[:8]) == pytest.approx(0.03 * 255, rel=0.1)


def test_an_occluder_hides_what_is_under_it_and_size_zero_nothing():
    hidden = drawn(occluder=np.array([[0.0, 0.35, 0.4, 0.25]]))
    part = hidden[38:48, 26:38]
    assert (part == [0, 255, 0]).all()
    assert np.array_equal(drawn(occluder=np.array([[0.0, 0.35, 0.0, 0.0]])), drawn())


def test_the_camera_does_not_change_the_scene():
    """Twice the resolution, averaged down, is the same picture but for edges."""
    fine = drawn(size=2 * SIZE).reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
    assert np.abs(fine - drawn()).mean() < 2.5


def test_people_differ_visibly():
    people = [face.draw_identity(np.random.default_rng(seed)) for seed in range(40)]
    assert len({astuple(p) for p in people}) == 40
    images = [drawn(p) for p in people]
    assert min(np.abs(images[i] - images[j]).mean() for i in range(40) for j in range(i)) > 1.5


# --------------------------------------------------------------------------- muscle by muscle


def with_muscles(**muscles) -> np.ndarray:
    return drawn(expression=face.Expression(**muscles))


def eye_white(image: np.ndarray) -> int:
    """Pixels of both eyes that are as blue as no skin is."""
    return int((rows(image, -0.5, 0.5, -0.26, 0.02)[..., 2] > 190).sum())


def brow_row(image: np.ndarray, left: float, right: float) -> float:
    """Mean row of what is dark above the eyes, in a column range."""
    part = rows(image, left, right, -0.5, -0.2)
    dark = np.clip(330 - part.sum(-1), 0, None)
    return float((np.arange(len(part))[:, None] * dark).sum() / dark.sum())


def mouth_hole(image: np.ndarray) -> np.ndarray:
    """[rows, columns] of the lower face, True where it is darker than lips and skin."""
    return rows(image, -0.5, 0.5, 0.25, 0.85).sum(-1) < 200


def test_a_face_at_rest_is_what_it_is_without_an_expression():
    assert np.array_equal(with_muscles(), drawn())
    at_rest = face.Expression(*(np.zeros(1) for _ in astuple(face.Expression())))
    assert np.array_equal(drawn(expression=at_rest, valence=0.7), drawn(valence=0.7))


@pytest.mark.parametrize("muscle", ["corners", "jaw", "stretch", "brows", "inner", "knit", "lids", "nose"])
def test_every_muscle_shows_and_shows_more_when_stronger(muscle):
    rest, half, full = (with_muscles(**{muscle: strength}) for strength in (0.0, 0.5, 1.0))
    assert np.abs(half - rest).sum() > 400  # as a tenth of valence; lids move least: half a pixel
    assert np.abs(full - rest).sum() > 1.1 * np.abs(half - rest).sum()


def test_corners_of_the_mouth_go_up_and_down():
    def lift(corners):
        image = with_muscles(corners=corners)
        return centre_of_lips(image, -0.08, 0.08) - (centre_of_lips(image, -0.34, -0.2) + centre_of_lips(image, 0.2, 0.34)) / 2

    lifts = [lift(c) for c in (-1.0, 0.0, 1.0)]
    assert lifts[0] < lifts[1] - 1 < lifts[2] - 2


def test_the_jaw_drops_and_the_mouth_stretches():
    assert mouth_hole(with_muscles(jaw=1.0)).sum() > mouth_hole(with_muscles(jaw=0.4)).sum() > mouth_hole(drawn()).sum()
    width = [mouth_hole(with_muscles(jaw=0.6, stretch=s)).any(0).sum() for s in (-1.0, 0.0, 1.0)]
    assert width == sorted(set(width))


def test_eyes_open_wide_and_droop():
    white = [eye_white(with_muscles(lids=strength)) for strength in (-1.0, 0.0, 1.0)]
    assert white[0] < white[1] < white[2]


def test_brows_rise_lower_and_slant():
    outer, inner = (-0.45, -0.35), (-0.3, -0.2)
    rest = drawn()
    assert brow_row(with_muscles(brows=1.0), *outer) < brow_row(rest, *outer) - 1 and brow_row(with_muscles(brows=1.0), *inner) < brow_row(rest, *inner) - 1
    grieved, cross = with_muscles(inner=1.0), with_muscles(knit=1.0)
    assert brow_row(grieved, *inner) < brow_row(rest, *inner) - 1 < brow_row(cross, *inner) - 2


def test_muscles_move_frame_by_frame():
    frames = face.render(PERSON, motion(3, expression=face.Expression(jaw=np.array([0.0, 0.5, 1.0]))), SIZE, np.random.default_rng(1))
    for frame, jaw in zip(frames, (0.0, 0.5, 1.0), strict=True):
        assert np.array_equal(frame, with_muscles(jaw=jaw))
