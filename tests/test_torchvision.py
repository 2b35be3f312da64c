"""Models whose image processor exists for torchvision alone: read with it, or one line without."""

from __future__ import annotations

import json

import pytest
import tiny
import transformers
from test_architectures import scan
from transformers.utils import is_torchvision_available

from llm2nifti import cli, models, paradigm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny DINOv3."""
    path = tmp_path_factory.mktemp("models") / "dinov3"
    sizes = {**tiny.COMMON, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    config = transformers.DINOv3ViTConfig(**sizes)
    transformers.DINOv3ViTModel(config).save_pretrained(path)
    size = {"height": 32, "width": 32}
    processor = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": size}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_without_torchvision_one_line_says_what_to_install(folder, tmp_path, capsys):
    images = tiny.draw_images(tmp_path / "images", n=4)
    options = ["--model", str(folder), "--stimuli", str(images), "--n-runs", "1"]
    sizes = ["--n-blocks", "1", "--trials-per-block", "2"]
    assert cli.main(["scan", str(tmp_path / "ds"), *options, *sizes, "--quiet"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "llm2nifti scan" in line]
    assert f"{folder} prepares its images with torchvision, which is not installed: pip" in line
    assert line.endswith('pip install "llm2nifti[vision]"')
    assert not (tmp_path / "ds").exists()


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
def test_with_torchvision_the_model_reads_images(folder, image_table):
    design = paradigm.blocks("discs", table=image_table, n_blocks=1, trials_per_block=2)
    result = scan(models.load(str(folder)), design)
    assert result.values.std(axis=0).max() > 0
