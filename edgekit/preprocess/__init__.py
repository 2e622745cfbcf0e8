"""From a decoded clip to model inputs, by `preprocess.json` alone.

The device must compute the same tensors, so the definition below is integer arithmetic wherever an
index or a sum is formed and plain float32 elsewhere: it can be written again in C from this page
(compile with -ffp-contract=off: a fused multiply-add rounds once less). Spectra of the sound are
float64 until their last step. Golden vectors in every bundle hold raw and preprocessed clips to
check it against.

video: frames uint8 [n, h, w, 3] RGB -> float32 [K, 3, T, H, W], or its axes as `layout` has them
    1. N = K*T frames are chosen by `sampling` (integers; / rounds down). Frame i goes to clip
       k = i/T at time t = i%T.
       uniform_round_linspace: first and last frame included, repeats where n < N:
           q = i*(n-1);  d = N-1;  index = q/d;  r = q%d          (index 0 if N = 1)
           if 2*r > d, or 2*r = d and index is odd: index += 1     (round half to even)
       floor_offset: n = min(n, window_frames) if `window_frames` is given:
           index = min(i*n/N + n/offset_divisor, n-1)
       subsequences: K windows of W = frames_per_window frames, the last of which ends with the clip.
           Window k has frames b to e, a = e-b+1 of them, and shows every s-th, counted back from e:
           e = max(0, n-1-(K-1-k)*W);  b = max(0, e-W+1);  s = max(1, a/T)
           index = e - (T-1-t)*s;  but if a < T: index = min(b+t, e)       (the last frame again)
       With `average` (K and T are 1): N is its number, or n if it is `all`, `sampling` is uniform_round_linspace, and
       all N frames become one summary image, with sums that are exact in integers: v = float32(sum)/float32(N).
    2. Bilinear resize, half-pixel centres, no antialias. For output column x of W from width w
       (and the same for rows with H, h):
           p = max(0, (2*x+1)*w - W);  x0 = p/(2*W);  x1 = min(x0+1, w-1)      (integers)
           a = float32(p % (2*W)) / float32(2*W)
       Columns first, then rows, each in float32 as
           v = v0 + (v1 - v0)*a
       With `resize_to` [H', W']: resize to that, then take H rows from row (H'-H)/2 and W columns
       from column (W'-W)/2.
    3. out[k, c, t, y, x] = (v - mean[c]) / std[c] in float32; mean and std in units of pixels 0..255.
    4. `layout` names the axes of the result, outermost first; without K or T, that count is 1.

outputs over time: a model's outputs, `features` and the audio features `per: frame` have one value for
    each output frame: the frames e of the K windows with `subsequences`, the last one chosen with `average`, else all
    N chosen frames.
    Frame i is taken at time t[i] ms: `frame_ms` of the clip, or 1000*i/fps in float64 if it has none.
    The last frame ends at t[n] = t[n-1] + 1000/fps (1000*n/fps without `frame_ms`).
    Its sample is s(i) = floor(t[i]*sample_rate_hz/1000 + 0.5), in float64.

wave: audio int16 [samples] mono at exactly `sample_rate_hz` -> float32 [S], or [1, S] with `layout: CS`
    1. Keep the first m = min(samples, S) samples x.
    2. Zero mean, unit variance over these m valid samples. The sums are exact in 64-bit integers:
           s1 = sum(x);  s2 = sum(x*x)
           mean = s1/m;  var = max(0, s2/m - mean*mean)                         (float64)
           offset = float32(mean/scale);  gain = float32(1/sqrt(var/scale^2 + eps))
           out = (float32(x)/float32(scale) - offset)*gain                      (float32)
       With `normalize: none` instead: out = float32(x)/float32(scale).
    3. Zeros follow on the right up to S.

audio.features: named spectra of the sound, instead of `wave`. All in float64 (80 dB below the loudest
    sound, float32 has lost its digits), rounded to float32 once, at the end.
    0. x = audio/scale, m samples. With `subtract` (spectral subtraction), L = n_fft and H = hop_length of its own:
       column c = 0.. holds the L samples from c*H - (L-H) on, zeros beyond both ends of x; C = ceil((m+L-H)/H) columns.
           w[n] = 0.5 - 0.5*cos(2*pi*n/L);  X[c,k] = sum_n x[c*H-(L-H)+n]*w[n]*exp(-2i*pi*k*n/L), k = 0..L/2
       The noise N[k] is the mean of |X[c,k]| over the quietest columns: of those that lie wholly within x (of all, if
       none does; B of them) the max(1, floor(quietest*B)) with the least sum_k |X[c,k]|^2, the earlier first.
           Y[c,k] = X[c,k]*max(1 - over*N[k]/|X[c,k]|, floor)     (0 where X is 0)
       Each Y goes back by the inverse DFT, times w, and is added up; each sample is divided by the sum of its w^2.
       With `peak`, x is then multiplied by peak/max|x|, unless all of it is 0.
    1. x is cut by `per`:
       clip: S = samples. `fit: start` keeps the first S, `center` those from max(0, m-S)/2 on (m: how
           many there are); zeros follow on the right up to S.                    -> [D, columns]
       subsequence: samples s(b) to s(e+1)-1 of window k (with `until: start_of_frame` to s(e)-1), as
           far as there are any; zeros go before them up to `samples`.     -> [K, 1, D, columns]
       frame: columns, see 2, around the sample s(i) of each output frame i.                -> [T, D]
    2. Columns. With `center`, n_fft/2 samples are put before and after x first: zeros (`pad_mode:
       constant`), or x mirrored without its outermost sample (`reflect`). Column c holds the n_fft samples
       from c*hop_length on; as many columns as there are whole ones: 1 + m/hop_length with `center`,
       else 1 + (m-n_fft)/hop_length. `per: frame` instead: the n_fft samples from s(i) - n_fft/2 on,
       zeros beyond both ends of the sound.
    3. Power of each column, n = 0..n_fft-1, bins k = 0..n_fft/2, L = win_length, o = (n_fft-L)/2:
           w[n] = a - (1-a)*cos(2*pi*(n-o)/L) for o <= n < o+L, else 0;  a = 0.5 (hann), 0.54 (hamming)
           P[k] = |sum_n x[n]*w[n]*exp(-2i*pi*k*n/n_fft)|^2
    4. Mel bands j = 0..n_mels-1, from edges f[0..n_mels+1] evenly spaced in mel from f_min to f_max:
           k_hz = k*sample_rate_hz/n_fft
           M[j] = sum_k P[k]*h*max(0, min((k_hz-f[j])/(f[j+1]-f[j]), (f[j+2]-k_hz)/(f[j+2]-f[j+1])))
       mfcc: h = 2/(f[j+2]-f[j]); mel = 3*f/200 below 1000 Hz, else 15 + 27*ln(f/1000)/ln(6.4)
       log_mel: h = 1; mel = 2595*log10(1 + f/700)
    5. B = 10*log10(max(1e-10, M)), then max(B, max(B)-80): max over all bands and columns of this clip
       (`per: subsequence`: of this window).
    6. mfcc: DCT over the bands, u = 0..n_mfcc-1:
           C[u] = g*sum_j B[j]*cos(pi*u*(2*j+1)/(2*n_mels));  g = sqrt(1/n_mels) if u = 0, else sqrt(2/n_mels)
       With `deltas`, D = 3*n_mfcc: C, then its slope, then its second derivative, from nine columns:
           sum_{v=-4..4} C[c+v]*v/60    and    sum_v C[c+v]*q[v]/462, q = 28 7 -8 -17 -20 -17 -8 7 28
       where c < 4 takes the value of c = 4, and the last four that of the fifth from the end. `per: frame`
       instead takes the columns around the samples s(i) + v*hop_length; they count in 5.
    7. out = (value + shift)/scale; each one number (0 and 1 if not given), or one per row of D.
    8. `per: subsequence`: the last `frames` columns (if not given, as many as `samples` have); zeros go
       before fewer. `per: clip`: the first `frames` columns, if given.
    mfcc is what librosa >= 0.10 calls feature.mfcc, and log_mel torchaudio's MelSpectrogram followed by
    AmplitudeToDB("power", 80), each in exact arithmetic.

features: float32 [rows, dim] that come with the clip, made by another network; mean and std one number,
    or one per column: out = (value - mean)/std in float32.
       per: frame (or not given): a row for every frame; those of the output frames           -> [T, dim]
       per: clip: rows of something else, such as words; the first `rows`, zeros after fewer -> [rows, dim]

Nothing is resampled here: a clip at another sample rate is refused, since the resampling filter
would be one more thing that the device must have in common with the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.datasets import Clip
from edgekit.errors import DataError
from edgekit.resize import resize_bilinear

from . import picture, sound
from .picture import frame_indices
from .schema import AUDIO_LAYOUTS, NORMALIZE, SAMPLING, VIDEO_LAYOUTS, check_spec

__all__ = ["AUDIO_LAYOUTS", "NORMALIZE", "SAMPLING", "VIDEO_LAYOUTS", "check_spec", "frame_indices", "labels_of", "preprocess", "resize_bilinear", "shapes", "sources", "window"]


def preprocess(spec: dict[str, Any], clip: Clip) -> dict[str, np.ndarray]:
    """Turn one clip into model inputs.

    Args:
        spec: preprocess.json, with "video", "audio", "features" or some of them.
        clip: see edgekit.datasets.Clip.

    Returns:
        {"video": float32 [K, 3, T, H, W], "wave": float32 [S], name: float32 of every feature} in the
        shapes of `shapes(spec)`, each if its part is in the spec.

    Raises:
        DataError: the spec is wrong, or the clip is empty, of another type or at another sample rate.
    """
    check_spec(spec)
    inputs = {}
    for name, source in _sources(spec).items():
        if source == "video":
            inputs[name] = picture.video(spec["video"], clip)
        elif source == "features":
            inputs[name] = _feature(name, spec, clip)
        else:
            inputs[name] = sound.feature(name, spec, clip) if "features" in spec["audio"] else sound.wave(spec["audio"], clip)
    return inputs


def sources(spec: dict[str, Any]) -> dict[str, str]:
    """{flow input: "video", "audio" or "features"}: what of a clip each input is made of, in a fixed order. Raises DataError."""
    check_spec(spec)
    return _sources(spec)


def shapes(spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """{flow input: the shape that `preprocess` gives it}, in the order of `sources`. Raises DataError."""
    check_spec(spec)
    found: dict[str, tuple[int, ...]] = {}
    for name, source in _sources(spec).items():
        section = spec[source]
        if source == "video":
            sizes = {"K": section["clips"], "C": 3, "T": section["frames_per_clip"], "H": section["height"], "W": section["width"]}
            found[name] = tuple(sizes[axis] for axis in section["layout"])
        elif source == "features":
            how = section[name]
            found[name] = (how["rows"] if how.get("per") == "clip" else picture.output_count(spec["video"]), how["dim"])
        elif "features" in section:
            found[name] = sound.shape(section["features"][name], spec)
        else:
            found[name] = (1,) * (section.get("layout") == "CS") + (section["samples"],)
    return found


def labels_of(spec: dict[str, Any], clip: Clip) -> dict[str, float | np.ndarray]:
    """The labels as a model's outputs are compared with them.

    Returns:
        {name: number, or float32 [T] at the frames that the outputs stand for}: the last frame of every
        sub-sequence, or else all frames that `video` shows. A model of sound alone has labels that are sound, such as
        the speech in `wave`: float32 [S], cut and padded as `wave` is.

    Raises:
        DataError: a label over time has not one value for every frame (every sample, of sound).
    """
    check_spec(spec)
    over_time = [name for name, value in clip.labels.items() if np.ndim(value)]
    if over_time and "video" not in spec:
        return {name: _sound(spec, clip, name) if name in over_time else float(value) for name, value in clip.labels.items()}
    chosen = picture.output_frames(spec["video"], clip) if over_time else None
    labels: dict[str, float | np.ndarray] = {}
    for name, value in clip.labels.items():
        if name in over_time and np.shape(value) != (len(clip.frames),):
            raise DataError(f"clip {clip.id}: label `{name}` is {picture.describe(value)}, expected one value for each of {len(clip.frames)} frames")
        labels[name] = np.float32(value)[chosen] if name in over_time else float(value)
    return labels


def _sound(spec: dict[str, Any], clip: Clip, name: str) -> np.ndarray:
    value, samples = clip.labels[name], spec.get("audio", {}).get("samples")
    if samples is None or np.shape(value) != np.shape(clip.audio):
        raise DataError(
            f"clip {clip.id}: label `{name}` is {picture.describe(value)}, the sound has {len(clip.audio)} samples",
            "without `video`, a label over time is sound: one value for every sample",
        )
    kept = np.float32(value)[:samples]
    return np.concatenate([kept, np.zeros(samples - len(kept), np.float32)])


def window(spec: dict[str, Any]) -> tuple[int, int]:
    """(frames, samples) of a clip that fills the model's inputs: fewer are repeated or padded, more are left out.

    1 for what the model does not take. Of sub-sequences, `samples` counts what the K windows pad to.
    """
    check_spec(spec)
    video, audio = spec.get("video", {}), spec.get("audio", {})
    frames = video.get("clips", 1) * video.get("frames_per_window" if video.get("sampling") == "subsequences" else "frames_per_clip", 1)
    samples = [audio.get("samples", 1)]
    for how in audio.get("features", {}).values():
        samples.append(how.get("samples", 1) * (video["clips"] if how["per"] == "subsequence" else 1))
    average = video.get("average", 1)
    return max(frames, video.get("window_frames", 1), average if isinstance(average, int) else 1), max(samples)


def _sources(spec: dict[str, Any]) -> dict[str, str]:
    found = {}
    if "video" in spec:
        found["video"] = "video"
    if "audio" in spec:
        found |= dict.fromkeys(spec["audio"].get("features", ("wave",)), "audio")
    return found | dict.fromkeys(spec.get("features", ()), "features")


def _feature(name: str, spec: dict[str, Any], clip: Clip) -> np.ndarray:
    how = spec["features"][name]
    if name not in clip.features:
        raise DataError(f"clip {clip.id}: no features `{name}`, it has {', '.join(clip.features) or 'none'}")
    values = clip.features[name]
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.shape[1] != how["dim"] or values.dtype.kind != "f":
        raise DataError(f"clip {clip.id}: features `{name}` must be float32 [rows, {how['dim']}], got {picture.describe(values)}")
    picture.refuse_nan(clip, f"features `{name}`", values)
    whole = (np.float32(values) - np.float32(how["mean"])) / np.float32(how["std"])
    if how.get("per") == "clip":
        out = np.zeros((how["rows"], how["dim"]), np.float32)
        out[: len(whole)] = whole[: how["rows"]]
        return out
    if len(whole) != (n := picture.frame_count(clip)):
        raise DataError(f"clip {clip.id}: features `{name}` are {picture.describe(values)}, expected a row for each of {n} frames")
    return whole[picture.output_frames(spec["video"], clip)]
