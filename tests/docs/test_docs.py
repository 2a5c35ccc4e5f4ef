"""Links in docs/ lead somewhere, and the code on the pages about data and ops runs, as a reader would run it."""

import re
from pathlib import Path

import pytest

from tftoolkit.pipelines import image
from tftoolkit.trainers import recipes

DOCS = Path(__file__).parents[2] / "docs"


def test_links_lead_somewhere(prose):
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose(page)):
            assert (DOCS / target).exists(), f"{page.name}: {target}"


def test_links_of_the_readme_lead_somewhere(prose):
    found = re.findall(r"(?:\]\(|src=\")(?!https?:)([^)\"]*)", prose(DOCS.parent / "README.md"))
    assert len(found) > 40
    for target in found:
        path, _, anchor = target.partition("#")
        page = DOCS.parent / (path or "README.md")
        assert page.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


def test_the_page_on_images_names_every_stage():
    page = (DOCS / "images.md").read_text()
    assert [name for name in image.__all__ if f"`{name}`" not in page] == []


@pytest.mark.slow
def test_the_page_on_images_runs(tmp_path, blocks, run):
    output = run("".join(blocks("images")), tmp_path)
    assert "(4, 224, 224, 3) (4, 2)\n(427, 640, 3)" in output


def test_the_page_on_recipes_names_every_one():
    page = (DOCS / "recipes.md").read_text()
    assert [name for name in recipes.names() if f"`{name}`" not in page] == []


@pytest.mark.slow
def test_the_page_on_pipelines_runs(tmp_path, blocks, run):
    (tmp_path / "page.py").write_text("".join(blocks("pipelines")))  # a file, since AutoGraph reads the sources
    output = run("import page", tmp_path)
    assert "<- slowest" in output
    assert "arrays, row 1: assertion failed: [such a label cannot be]" in output


@pytest.mark.slow
def test_the_page_on_text_audio_and_tables_runs(tmp_path, blocks, run):
    output = run("import matplotlib\nmatplotlib.use('Agg')\n" + "".join(blocks("text_audio_tabular")), tmp_path)
    assert "(8, 256) (8, 256)" in output
    assert (tmp_path / "spectrograms.png").exists()


@pytest.mark.slow
def test_the_page_on_language_models_runs(tmp_path, blocks, run):
    assert "TFLite float32" in run("".join(blocks("language_models", "python")), tmp_path)


@pytest.mark.slow
def test_the_page_on_attention_runs(tmp_path, blocks, run):
    run("".join(blocks("attention")), tmp_path)


@pytest.mark.slow
def test_the_page_on_weights_from_elsewhere_runs(tmp_path, blocks, run):
    output = run("".join(blocks("pretrained_weights")), tmp_path)
    assert "differs: fc/kernel: float32[64, 5] in the file, float32[64, 3] here" in output
    assert "transformer.h.0.attn.c_attn.weight [32, 96] → [32, 32]" in output


@pytest.mark.slow
def test_the_page_on_embeddings_runs(tmp_path, blocks, run):
    assert "0" in run("".join(blocks("embeddings")) + "print(metrics['skipped'].numpy())", tmp_path)


@pytest.mark.slow
def test_the_page_on_sequence_losses_runs(tmp_path, blocks, run):
    output = run("".join(blocks("sequence_losses")) + "print(best.shape, gradient.shape)", tmp_path)
    assert "(4, 9) (5, 5)" in output


@pytest.mark.slow
def test_the_page_on_sampling_runs(tmp_path, blocks, run):
    run("".join(blocks("sampling")), tmp_path)


@pytest.mark.slow
def test_the_page_on_transformer_ops_runs(tmp_path, blocks, run):
    output = run("".join(blocks("transformer_ops")) + "print(y.shape, loss.numpy() > 6)", tmp_path)
    assert "(2, 16, 64) True" in output


@pytest.mark.slow
def test_the_page_on_detection_runs(tmp_path, blocks, run):
    checks = "print(kept.numpy(), soft.indices[:4].numpy(), y.shape)"
    assert "[0 2 3] [0 2 3 1] (1, 20, 20, 16)" in run("".join([*blocks("detection"), checks]), tmp_path)


@pytest.mark.slow
def test_the_pages_on_migration_run(tmp_path, blocks, run):
    pages = ("from_keras", "from_pytorch", "from_jax", "from_orbit")
    (tmp_path / "page.py").write_text("".join(code for page in pages for code in blocks(page, "python")))
    output = run("import page", tmp_path)
    assert "digits.tflite  TFLite float32" in output
    assert "'kind': 'eval', 'step': 172" in output
    assert "\n200\n" in output
