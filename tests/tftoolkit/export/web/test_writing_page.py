"""The page of a model that writes, in headless Chromium: reads as the tokenizer does, writes what the file writes."""

import json
import shutil

import numpy as np
import pytest

from tftoolkit import export, models
from tftoolkit.export.runtimes import browser
from tftoolkit.export.web import serving
from tftoolkit.pipelines import text

MISSING = [name for name in ("npm", "chromium") if shutil.which(name) is None]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: apt-get install them")

CORPUS = ["the cat sat on the mat, and the rat saw that", "it's 1234 years since  then\n\n  we'd say: naïve, ¶π😀!"] * 3
TEXTS = [*CORPUS[:2], "that's it", "  two  spaces \n", "日本 äöü", "<end> is letters here", ""]


def exported(folder, model, tokenizer):
    tokenizer.save(folder / "tokenizer.json")
    last = model.vocabulary - 1
    export.tflite(
        model,
        folder / "model.tflite",
        signatures=models.generation_signatures(model, 4, 48),
        input_ranges={"tokens": (0, last), "start": (0, 40)},
    )
    prompt = tokenizer.encode("the cat").tolist()
    written = models.generate(model, prompt, 20, temperature=0).tolist()
    return export.Sample("the cat", prompt, written)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "llama"])
def test_a_page_that_writes(tmp_path, kind):
    if kind == "lstm":
        tokenizer = text.byte_tokenizer(["<end>"])
        model = models.Recurrent(tokenizer.vocabulary_size, width=32, seed=1)
    else:
        tokenizer = text.train_bpe_tokenizer(CORPUS, 300, ["<end>"])
        model = models.Llama(tokenizer.vocabulary_size, width=32, layers=2, heads=4, kv_heads=2, seed=1)
    sample = exported(tmp_path, model, tokenizer)
    report = export.web(tmp_path / "model.tflite", tmp_path / "page", sample=sample)
    assert report.rows[0].latency[1].median > 0
    assert not (tmp_path / "page/model.tflite.golden.npz").exists()  # caches: many times the model's size
    calls = [(one["signature"], one["kind"]) for one in json.loads((tmp_path / "page/golden.json").read_text())]
    assert {"decode", "prefill"} == {signature for signature, _ in calls}
    assert len(calls) == len(set(calls)) < len(report.rows[0].checks)
    with serving.served(tmp_path / "page") as address, browser.Browser() as chromium:
        chromium.open(address)
        chromium.wait_for("window.ready")
        for one in TEXTS:
            found = chromium.evaluate(f"tokenize({json.dumps(one)})")
            assert found["tokens"] == tokenizer.encode(one).tolist()
            assert found["text"] == one
        chromium.evaluate("document.getElementById('temperature').value = 0")
        chromium.evaluate("document.getElementById('prompt').value = 'the cat'")
        chromium.evaluate("document.getElementById('write').click()")
        chromium.wait_for("document.getElementById('write').textContent == 'Write on'", timeout=120)
        shown = chromium.evaluate("document.getElementById('text').textContent")
        ends = [i for i, token in enumerate(sample.tokens) if token in tokenizer.special_tokens.values()]
        assert shown.startswith("the cat" + tokenizer.decode(sample.tokens[: min(ends, default=4)]).rstrip("\ufffd"))
    wrong = export.Sample(sample.text, sample.prompt, [*sample.tokens[:-1], (sample.tokens[-1] + 1) % 100])
    with pytest.raises(export.ExportError, match="token 19 is"):
        export.web(tmp_path / "model.tflite", tmp_path / "other", sample=wrong)
    wrong = export.Sample(sample.text, sample.prompt[:-1], sample.tokens)
    with pytest.raises(export.ExportError, match="the page reads 'the cat' as"):
        export.web(tmp_path / "model.tflite", tmp_path / "other", sample=wrong)
    assert not (tmp_path / "other").exists()


def test_what_the_page_does_not_know_is_refused(tmp_path):
    from tftoolkit.export.web import writing

    inputs = [
        {"name": name, "shape": shape} for name, shape in (("tokens", [1, 1]), ("start", [1]), ("keys_0", [1, 8, 2, 4]))
    ]
    signatures = {
        "decode": {"inputs": inputs},
        "prefill": {"inputs": [{"name": "tokens", "shape": [1, 4]}, *inputs[1:]]},
    }
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"the page needs tokenizer\.json beside the file"):
        writing.page_of(signatures, path, None)
    text.train_word_tokenizer(CORPUS, 30).save(path)
    with pytest.raises(ValueError, match=r"the page knows byte-level byte-pair encoding .* not model WordLevel"):
        writing.page_of(signatures, path, None)
    text.byte_tokenizer().save(path)
    page = writing.page_of(signatures, path, None)
    assert (page["prefill"], page["capacity"]) == (4, 8)
    assert page["cache"] == [{"name": "keys_0", "size": np.prod([1, 8, 2, 4])}]
    with pytest.raises(ValueError, match="the page needs signatures as generation_signatures makes them"):
        writing.page_of({**signatures, "decode": {"inputs": inputs[1:]}}, path, None)
