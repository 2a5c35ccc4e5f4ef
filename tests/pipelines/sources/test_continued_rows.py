"""token_windows(continue_rows=…): rows of batches go on in the next batch, and nothing tears them apart unseen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tftoolkit.pipelines import Pipeline, sources, text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1003 tokens."""
    file = tmp_path_factory.mktemp("tokens") / "corpus.tokens"
    text.write_tokens(["".join(chr(97 + i % 26) for i in range(1003))], file, text.byte_tokenizer())
    return file


@pytest.mark.parametrize(
    ("length", "rows", "targets"),
    [
        (10, 4, True),
        (7, 3, False),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [(100, 1, True), (5, 200, False)]),
    ],
)
def test_t10_each_row_is_one_run_of_the_corpus(corpus: Path, length: int, rows: int, targets: bool) -> None:
    source = sources.token_windows(corpus, length, targets=targets, continue_rows=rows)
    steps = len(sources.token_windows(corpus, length, targets=targets)) // rows
    p = Pipeline(source).batch(rows)
    assert p.batches_per_epoch == steps
    batches = [{name: value.numpy() for name, value in batch.items()} for batch in p.epoch()]
    runs = np.concatenate([batch["tokens"] for batch in batches], axis=1)
    tokens = next(iter(Pipeline(sources.tokens(corpus)).batch(1)))["tokens"].numpy().ravel()
    np.testing.assert_array_equal(runs.ravel(), tokens[: rows * steps * length])
    assert [set(batch["continues"].tolist()) for batch in batches] == [{False}] + [{True}] * (steps - 1)
    if targets:
        following = np.concatenate([batch["targets"] for batch in batches], axis=1)
        np.testing.assert_array_equal(following[:, :-1], runs[:, 1:])
    assert source.lengths("tokens").tolist() == [length] * (rows * steps)
    assert f"(tokens {steps * length if rows > 1 else length} to" in source.describe(1)


def test_t10_it_resumes_and_is_shared_by_rows(corpus: Path) -> None:
    p = Pipeline(sources.token_windows(corpus, 10, continue_rows=4)).map(lambda example: example).batch(4)
    whole = [batch["tokens"].numpy() for batch in p.dataset(epochs=2)]
    for one, other in zip(p.dataset(30, epochs=2), whole[30:], strict=True):
        np.testing.assert_array_equal(one["tokens"], other)
    for one, other in zip(p.shard(1, 2).dataset(epochs=1), whole[:25], strict=True):
        np.testing.assert_array_equal(one["tokens"], other[1::2])
    with pytest.raises(ValueError, match=r"source\.continue_rows: saved 4, this pipeline 5"):
        Pipeline(sources.token_windows(corpus, 10, continue_rows=5)).map(lambda example: example).batch(5).restore(
            p.state()
        )


REFUSED: list[tuple[Callable[[Pipeline, Path], object], str]] = [
    (lambda p, _: p.shuffle().batch(4), r"shuffle: the rows of this source go on from batch to batch .*leave it out"),
    (lambda p, _: p.filter(lambda example: example["continues"]).batch(4), "the rows of this source go on"),
    (lambda p, _: p.window(2).batch(4), r"window.*: the rows of this source go on"),
    (lambda p, _: p.batch(8), r"batch_size=8: the rows .*\(continue_rows=4\); give batch_size=4"),
    (lambda p, _: p.bucket(4, [10]), "bucket: the rows of this source go on"),
    (lambda p, _: p.cache(), "cache: the rows of this source go on"),
    (
        lambda _, c: sources.mix({"a": (sources.token_windows(c, 10, continue_rows=4), 1)}),
        "mix: the rows of this source",
    ),
    (
        lambda _, c: sources.token_windows(c, 10, stride=5, continue_rows=4),
        "stride=5: with continue_rows it must be length=10",
    ),
    (
        lambda _, c: sources.token_windows(c, 10, continue_rows=101),
        "continue_rows=101: the corpus has only 100 windows",
    ),
    (lambda _, c: sources.token_windows(c, 10, continue_rows=0), "continue_rows=0: must be at least 1"),
    (lambda _, c: sources.token_windows(c, 10, continue_rows=-1), "continue_rows=-1: must be at least 1"),
]


@pytest.mark.parametrize(("attempt", "message"), REFUSED)
def test_t10_what_would_tear_rows_apart_is_refused(
    corpus: Path, attempt: Callable[[Pipeline, Path], object], message: str
) -> None:
    p = Pipeline(sources.token_windows(corpus, 10, continue_rows=4))
    with pytest.raises(ValueError, match=message):
        attempt(p, corpus)
    assert p.take(8).repeat(2).batch(4).batches_per_epoch == 4  # these keep the rows
