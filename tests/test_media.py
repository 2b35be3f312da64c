"""Are image and sound files read as they are, and is every one that cannot be shown named?"""

from __future__ import annotations

import re
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from llm2nifti import cli, media, paradigm, scanner, stimuli

RATE = 16_000


def tone(n=800, rate=RATE, pitch=440):
    return np.sin(2 * np.pi * pitch * np.arange(n) / rate)


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 4])
def test_samples_of_every_depth_are_the_same_sound(tmp_path, n_bytes):
    path, top = tmp_path / "a.wav", 2 ** (8 * n_bytes - 1)
    samples = np.round(0.5 * tone() * (top - 1)).astype(np.int64)
    if n_bytes == 1:
        samples += 128  # 8 bits are unsigned
    data = b"".join(int(s).to_bytes(n_bytes, "little", signed=n_bytes > 1) for s in samples)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(n_bytes)
        file.setframerate(RATE)
        file.writeframes(data)
    rate, found = media.read_sound(path)
    assert rate == RATE
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 0.5 * tone(), atol=1.1 / top)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_samples_are_taken_as_they_are(tmp_path, dtype):
    wavfile.write(tmp_path / "a.wav", RATE, (2 * tone()).astype(dtype))
    np.testing.assert_allclose(media.read_sound(tmp_path / "a.wav")[1], 2 * tone(), rtol=1e-6)


def test_resampling_keeps_a_tone():
    found = media.resampled(tone(22_050, 22_050).astype(np.float32), 22_050, RATE)
    assert found.shape == (RATE,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[500:-500], tone(RATE)[500:-500], atol=2e-3)
    same = tone().astype(np.float32)
    assert media.resampled(same, RATE, RATE) is same


def wav(path: Path, samples, rate=RATE):
    wavfile.write(path, rate, samples)
    return path.read_bytes()


def broken_sounds(folder):
    """One file of every kind that cannot be shown, by name; and what is said of it."""
    good = wav(folder / "good.wav", (9_000 * tone()).astype(np.int16))
    (folder / "cut.wav").write_bytes(good[:-700])
    (folder / "header.wav").write_bytes(good[:30])
    (folder / "text.wav").write_text("no samples")
    (folder / "empty.wav").touch()
    wav(folder / "silent.wav", np.zeros(0, np.int16))
    wav(folder / "stereo.wav", np.zeros((800, 2), np.int16))
    wav(folder / "nan.wav", np.where(np.arange(800) == 5, np.nan, tone()).astype(np.float32))
    wav(folder / "inf.wav", np.where(np.arange(800) == 5, np.inf, tone()).astype(np.float32))
    (folder / "alaw.wav").write_bytes(good[:20] + struct.pack("<H", 6) + good[22:])
    wav(folder / "fast.wav", np.zeros(800, np.int16), rate=2_000_000)
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    return {
        "cut.wav": "damaged: it ends before its header says",
        "header.wav": "(damaged|not a wav file)",
        "text.wav": "not a wav file of PCM or float samples",
        "empty.wav": "empty",
        "silent.wav": "no samples",
        "stereo.wav": "2 channels; save it with one",
        "nan.wav": "NaN or infinite samples",
        "inf.wav": "NaN or infinite samples",
        "alaw.wav": "not a wav file of PCM or float samples .*ALAW",
        "fast.wav": "2000000 samples a second; 1000 to 768000 can be read",
        "picture.png": "not a wav file",
        "absent.wav": "no such file",
        ".": "a folder",
    }


def test_every_sound_that_cannot_be_shown_is_named_at_once(tmp_path, monkeypatch, capsys):
    bad = broken_sounds(tmp_path)
    rows = [f"art\t{name}\n" for name in ("good.wav", *bad)]
    (tmp_path / "stimuli.tsv").write_text(f"task\taudio\n{''.join(rows)}control\t./good.wav\n")
    assert cli.main(["scan", str(tmp_path / "ds"), "--stimuli", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{len(bad)} of {len(bad) + 2} sounds cannot be shown: row 3, 'cut.wav': damaged" in line
    assert line.endswith(f"; and {len(bad) - media.N_NAMED} more")
    assert not (tmp_path / "ds").exists()
    monkeypatch.setattr(media, "N_NAMED", len(bad))
    with pytest.raises(stimuli.StimulusError) as error:
        stimuli.load(tmp_path)
    for row, (name, said) in enumerate(bad.items(), start=3):
        assert re.search(f"row {row}, '{name}': {said}", str(error.value)), name
    assert "good.wav" not in str(error.value)


def test_a_file_that_broke_after_it_was_checked_is_noticed(tmp_path):
    path = tmp_path / "a.wav"
    good = wav(path, (9_000 * tone()).astype(np.int16))
    assert media.problems({"a": path}, "audio") == ""
    path.write_bytes(good[:-300])
    assert "1 of 1 sounds cannot be shown: a: damaged" in media.problems({"a": path}, "audio")


def test_files_of_a_table_made_by_hand_are_checked_too(tiny_models, image_table, tmp_path):
    (tmp_path / "text.png").write_text("no pixels")
    design = paradigm.blocks("discs", table=image_table, n_blocks=1, trials_per_block=2)
    design.trials.loc[[1, 2], "image"] = str(tmp_path / "text.png")
    with pytest.raises(scanner.ScanError, match=r"2 of 5 images cannot be shown: .*not an image"):
        scanner.check(tiny_models("vit"), design, scanner.Settings())


def test_sounds_need_control_sounds(tmp_path):
    wav(tmp_path / "a.wav", (9_000 * tone()).astype(np.int16))
    (tmp_path / "stimuli.tsv").write_text("task\taudio\nart\ta.wav\n")
    with pytest.raises(stimuli.StimulusError, match="sounds need rows of task 'control', too"):
        stimuli.load(tmp_path)
