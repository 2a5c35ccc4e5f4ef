"""Checkpoints are whole or not there, and never loaded into the wrong place."""

import contextlib
import errno
import json
import os
import resource
import shutil
import stat
import tempfile
import warnings
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.trainers import Checkpointer, CheckpointError, CheckpointMismatchError, RunLockedError


def _variables(value):
    return {
        "model/w": tf.Variable(np.full([3, 2], value), dtype=tf.float32),
        "model/half": tf.Variable(np.full([5], value), dtype=tf.bfloat16),
        "odd name.with/dots": tf.Variable(np.full([0, 4], value), dtype=tf.float64),
        "iterations": tf.Variable(int(value), dtype=tf.int64),
    }


def _save(directory, *steps, keep=3):
    with Checkpointer(directory, keep=keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, _variables(step), {"step": step})
    return checkpointer


def _restored(directory):
    """The step restored, after checking that every value is that step's."""
    variables = _variables(-1)
    restored = Checkpointer(directory).restore(variables)
    for name, expected in _variables(restored.step).items():
        np.testing.assert_array_equal(variables[name].numpy(), expected.numpy(), err_msg=name)
    assert restored.state == {"step": restored.step}
    return restored.step


def test_round_trip_keeps_the_newest(tmp_path):
    _save(tmp_path, 5, 100, 20_000, 123_456_789, keep=3)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000100", "step-00020000", "step-123456789"]
    assert _restored(tmp_path) == 123_456_789


def test_the_best_and_every_hundredth_are_kept_besides_the_newest(tmp_path):
    scores = {50: 0.1, 100: 0.5, 150: 0.9, 200: 0.2, 250: 0.9, 300: 0.3, 350: 0.4, 400: None}
    with Checkpointer(tmp_path, keep=2, keep_best=2, keep_every=100) as checkpointer:
        for step, score in scores.items():
            checkpointer.save(step, _variables(step), {"step": step}, score=score)
    # 150 and 250 are the best, 350 and 400 the newest; 50 was all of that once.
    assert checkpointer.steps() == [100, 150, 200, 250, 300, 350, 400]
    assert checkpointer.best_step() == 150  # the first of equals
    assert _restored(tmp_path) == 400


def test_nothing_to_restore(tmp_path):
    assert Checkpointer(tmp_path / "absent").restore(_variables(0)) is None
    assert not (tmp_path / "absent").exists()


def _flip(path, position=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.write_bytes(data)


def _copy(source, target):
    shutil.rmtree(target)
    shutil.copytree(source, target)


DAMAGES = {
    "flipped weight": (lambda folder: _flip(folder / "variables.data-00000-of-00001"), "content of variables.data"),
    "flipped index": (lambda folder: _flip(folder / "variables.index"), "content of variables.index"),
    "flipped state": (lambda folder: _flip(folder / "state.json"), "content of state.json"),
    "truncated": (lambda folder: os.truncate(folder / "variables.data-00000-of-00001", 9), "size of variables.data"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "half a manifest": (lambda folder: os.truncate(folder / "manifest.json", 99), "manifest.json can't be read"),
    "no weights": (lambda folder: (folder / "variables.index").unlink(), "variables.index: No such file"),
    "empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()], "manifest.json is missing"),
    "renamed": (
        lambda folder: (shutil.rmtree(folder), shutil.copytree(folder.with_name("step-00000001"), folder)),
        "step 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_with_one_warning(tmp_path, damage):
    inflict, reason = DAMAGES[damage]
    _save(tmp_path, 1, 2)
    inflict(tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match=f"step-00000002 is damaged .*{reason}.*step 1") as record:
        assert _restored(tmp_path) == 1
    assert len(record) == 1
    assert (tmp_path / "step-00000002").is_dir()  # a reader changes nothing


def test_a_writer_sets_damaged_checkpoints_aside(tmp_path):
    _save(tmp_path, 1, 2, 3)
    _flip(tmp_path / "step-00000003" / "state.json")
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        with pytest.warns(UserWarning, match="step-00000003 is damaged"):
            assert checkpointer.restore(_variables(0)).step == 2
        assert checkpointer.steps() == [1, 2]
        checkpointer.save(2, _variables(2), {"step": 2})  # the same step again
    assert sorted(entry.name for entry in tmp_path.glob("[!.]*")) == ["damaged-step-00000003", "step-00000002"]
    assert _restored(tmp_path) == 2


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path):
    _save(tmp_path, 1, 2)
    for folder in tmp_path.glob("step-*"):
        _flip(folder / "state.json")
    with pytest.raises(CheckpointError, match=r"every checkpoint(.|\n)*step-00000002(.|\n)*step-00000001"):
        Checkpointer(tmp_path).restore(_variables(0))


@pytest.fixture(scope="module")
def pair():
    with tempfile.TemporaryDirectory() as name:
        _save(name, 1, 2)
        yield Path(name)


@hypothesis.given(data=st.data())
@hypothesis.settings(deadline=None, max_examples=15)
def test_no_flipped_bit_ever_gets_through(pair, data):
    """Either the checkpoint is exactly right (a changed blank in the manifest), or the older one is taken."""
    path = data.draw(st.sampled_from(sorted((pair / "step-00000002").iterdir())), label="file")
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1), label="position")
    changed = bytearray(original)
    changed[position] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    path.write_bytes(changed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = _restored(pair)
        assert step == 1 or path.name == "manifest.json"
    finally:
        path.write_bytes(original)


def test_another_model_is_refused_and_nothing_is_loaded(tmp_path):
    _save(tmp_path, 1, 2)
    variables = _variables(7)
    del variables["iterations"]
    variables["model/new"] = tf.Variable(0.0)
    variables["model/w"] = tf.Variable(tf.zeros([2, 3]))
    variables["model/half"] = tf.Variable(tf.zeros([5], tf.float16))
    before = {name: variable.numpy() for name, variable in variables.items()}
    with pytest.raises(CheckpointMismatchError) as caught:
        Checkpointer(tmp_path).restore(variables)
    assert caught.value.differences == [
        "iterations: only in the checkpoint",
        "model/new: not in the checkpoint",
        "model/half: bfloat16[5] in the checkpoint, float16[5] here",
        "model/w: float32[3, 2] in the checkpoint, float32[2, 3] here",
    ]
    assert "model/w: float32[3, 2]" in str(caught.value)
    for name, value in before.items():
        np.testing.assert_array_equal(variables[name].numpy(), value)


def test_only_our_own_leftovers_are_swept(tmp_path):
    leftovers = [tmp_path / ".tmp-step-00000007-4242", tmp_path / ".tmp-step-123456789-1"]
    others = [tmp_path / ".tmp-step-7", tmp_path / "tmp-step-00000007-1", tmp_path / "notes", tmp_path / "step-old"]
    for folder in [*leftovers, *others]:
        folder.mkdir()
        (folder / "file").write_text("x")
    _save(tmp_path, 1)
    assert not any(folder.exists() for folder in leftovers)
    assert all((folder / "file").exists() for folder in others)


def test_one_writer_at_a_time(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(RunLockedError, match=f"in use by process {os.getpid()}"), Checkpointer(tmp_path):
            pass
        checkpointer.save(1, _variables(1), {"step": 1})
        assert _restored(tmp_path) == 1  # readers need no lock
    with pytest.raises(CheckpointError, match="with checkpointer"):
        checkpointer.save(2, _variables(2), {})
    with checkpointer:
        checkpointer.save(2, _variables(2), {"step": 2})


@contextlib.contextmanager
def _unprivileged(*folders):
    """As somebody whom file permissions stop; root would write anyway."""
    if os.geteuid() != 0:
        yield
        return
    for folder in folders:
        os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that an unprivileged user can reach (pytest's are its owner's only)."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for entry in (folder, *folder.rglob("*")):
        if entry.is_dir():
            entry.chmod(stat.S_IRWXU)
    shutil.rmtree(folder)


def test_a_folder_that_becomes_read_only(open_folder):
    with _unprivileged(open_folder), Checkpointer(open_folder) as checkpointer:
        checkpointer.save(1, _variables(1), {"step": 1})
        open_folder.chmod(0o555)
        with pytest.raises(
            CheckpointError, match=r"step 2 can't be written.*Permission denied.*Earlier checkpoints: \[1\]"
        ):
            checkpointer.save(2, _variables(2), {"step": 2})
        assert _restored(open_folder) == 1


def test_a_folder_that_is_read_only_from_the_start(open_folder):
    with _unprivileged(open_folder):
        open_folder.chmod(0o555)
        with pytest.raises(CheckpointError, match=r"can't be written.*Permission denied"), Checkpointer(open_folder):
            pass
        with pytest.raises(CheckpointError, match=r"can't be written"), Checkpointer(open_folder / "run"):
            pass


def test_a_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"can't be written"), Checkpointer(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize("limit", [100, 2000])
def test_no_room_for_a_checkpoint(tmp_path, limit):
    """A limit on file sizes makes the kernel refuse writes, as a full disk does."""
    _save(tmp_path, 1)
    variables = _variables(2)
    variables["large"] = tf.Variable(tf.zeros([5000]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpointer(tmp_path) as checkpointer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(CheckpointError, match=r"step 2 can't be written.*File too large.*\[1\]"):
                checkpointer.save(2, variables, {"step": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.glob(".tmp*"))
        assert _restored(tmp_path) == 1
        checkpointer.save(2, _variables(2), {"step": 2})
    assert _restored(tmp_path) == 2


def test_the_content_is_an_ordinary_tensorflow_checkpoint(tmp_path):
    _save(tmp_path, 4)
    variable = tf.Variable(tf.zeros([3, 2]))
    path = str(tmp_path / "step-00000004" / "variables")
    tf.train.Checkpoint(variables={"model/w": variable}).restore(path).expect_partial()
    np.testing.assert_array_equal(variable.numpy(), np.full([3, 2], 4))
    manifest = json.loads((tmp_path / "step-00000004" / "manifest.json").read_text())
    assert manifest["content"]["variables"]["model/w"] == {"shape": [3, 2], "dtype": "float32"}


def test_a_later_format_is_refused_with_a_reason(tmp_path):
    _save(tmp_path, 1)
    from tftoolkit.trainers.checkpoints import checkpoint_files as module

    path = tmp_path / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["content"]["format"] = 99
    manifest["sha256"] = module._digest(manifest["content"])
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="format 99"):
        Checkpointer(tmp_path).restore(_variables(0))


def test_state_that_json_can_not_hold_leaves_nothing(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises((TypeError, ValueError)):
            checkpointer.save(1, _variables(1), {"bad": object()})
        assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]


def test_bad_keep(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        Checkpointer(tmp_path, keep=0)


def test_a_disk_that_does_not_take_it(tmp_path, monkeypatch):
    """Some say so only when asked to bring a file home, which happens in a thread beside the checksums."""
    _save(tmp_path, 1)
    fsync = os.fsync

    def refusing(descriptor):
        if ".data-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(CheckpointError, match=r"step 2 can't be written.*Input/output error.*\[1\]"):
            checkpointer.save(2, _variables(2), {"step": 2})
        assert not list(tmp_path.glob(".tmp*"))
    assert _restored(tmp_path) == 1
