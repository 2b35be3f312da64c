"""What can be shown beside text? Image and sound files: which are sound, and what is in them?"""

from __future__ import annotations

import warnings
from collections.abc import Container, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MEDIA = {"image": "images", "audio": "sounds"}  # column of a stimulus table: what its files are
N_NAMED = 5  # files that a message names
RATES = (1_000, 768_000)  # samples a second: a filter between other rates would fill the memory


class MediaError(ValueError):
    """A file cannot be shown."""


def medium_of(columns: Container[str]) -> str:
    """Column of the files that are shown, or ``""`` where prompts are all.

    Examples
    --------
    >>> medium_of(["task", "audio"])
    'audio'
    """
    return next((medium for medium in MEDIA if medium in columns), "")


def problems(files: Mapping[str, Path], medium: str) -> str:
    """Which files, by what to call them, cannot be shown, and why; ``""`` if all can.

    Every file is read whole, one after the other, and once as long as it stays the same.
    """
    checked = {name: _problem_of(path, medium) for name, path in files.items()}
    bad = [f"{name}: {text}" for name, text in checked.items() if text]
    summary = f"{len(bad)} of {len(files)} {MEDIA[medium]} cannot be shown: {listed(bad)}"
    return summary if bad else ""


def listed(items: Sequence[str]) -> str:
    """The first few of some items, and how many more there are.

    Examples
    --------
    >>> listed(list("abcdefg"))
    'a; b; c; d; e; and 2 more'
    """
    more = [f"and {len(items) - N_NAMED} more"] if len(items) > N_NAMED else []
    return "; ".join([*items[:N_NAMED], *more])


def first_line(error: BaseException) -> str:
    """First line of an error's text, else its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _problem_of(path: Path, medium: str) -> str:
    """Why a file cannot be shown, or ``""``."""
    if not path.is_file():
        return "a folder" if path.is_dir() else "no such file"
    stat = path.stat()
    return _problem(path, medium, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _problem(path: Path, medium: str, n_bytes: int, _changed: int) -> str:
    """See `problems`; the size and the time of the last change stand for the content."""
    if not n_bytes:
        return "empty"
    try:
        read_image(path) if medium == "image" else read_sound(path)
    except MediaError as error:
        return str(error)
    return ""


def read_image(path: Path) -> Image.Image:
    """Decode an image as RGB, unless it is damaged or so large that it would fill the memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.convert("RGB")
    except UnidentifiedImageError:
        raise MediaError("damaged or not an image; Pillow reads PNG, JPEG and more") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        size = str(error).partition(" exceeds")[0].removeprefix("Image size ")
        raise MediaError(f"too large {size}; make it smaller") from None
    except Exception as error:  # every format has errors of its own
        raise MediaError(f"damaged: {first_line(error)}") from None


def read_sound(path: Path) -> tuple[int, NDArray[np.float32]]:
    """Rate and (n_samples,) samples of a ``.wav`` file: PCM or float, one channel, none NaN.

    Rates are samples a second; samples are between -1 and 1 where the file holds integers.
    """
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # What scipy says of a file that ends too early; other chunks than samples may be there.
            warnings.filterwarnings("error", "Reached EOF prematurely", wavfile.WavFileWarning)
            rate, samples = wavfile.read(path)
    except wavfile.WavFileWarning:
        raise MediaError("damaged: it ends before its header says") from None
    except ValueError as error:
        raise MediaError(f"not a wav file of PCM or float samples ({first_line(error)})") from None
    except Exception as error:  # struct.error, MemoryError: whatever a damaged header leads to
        raise MediaError(f"damaged: {first_line(error)}") from None
    if samples.ndim > 1:
        raise MediaError(
            f"{samples.shape[1]} channels; save it with one, which of them or their mean is yours "
            "to choose"
        )
    if not len(samples):
        raise MediaError("no samples")
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(f"{rate} samples a second; {RATES[0]} to {RATES[1]} can be read")
    if samples.dtype.kind != "f":
        info = np.iinfo(samples.dtype)
        middle = 0 if info.min else (info.max + 1) // 2  # 8 bits are unsigned
        samples = (samples.astype(np.float64) - middle) / (info.max - middle + 1)
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise MediaError("NaN or infinite samples")
    return int(rate), samples


def resampled(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Sound at another rate, by a polyphase filter.

    Examples
    --------
    >>> resampled(np.zeros(441, np.float32), 44_100, 16_000).shape
    (160,)
    """
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    return resample_poly(samples, wanted, rate).astype(np.float32)
