"""Emulation finds each mistake planted in a CUDA kernel and names its lines, and finds nothing in right kernels."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation

HERE = Path(__file__).parent
SOURCE = HERE / "planted.cu"
X = np.arange(256, dtype=np.float32)
ENUM = re.search(r"enum Bug \{(.*?)\}", SOURCE.read_text(), re.DOTALL)
BUGS = re.findall(r"k(\w+),", ENUM[1])

# What the finding says, in order; "@mark" is the place of that line.
FINDINGS = {
    "NoBarrierAfterStore": ["kernel Reverse<1>, block", "thread", "shared array tile +", "@load"],
    "NoBarrierBeforeReuse": ["kernel Reverse<2>", "race: ", "shared array tile +", "no barrier orders it after"],
    "BarrierUnderCondition": ["kernel Reverse<3>", "shared array tile +", "@load"],
    "TwoBarriers": ["__syncthreads(), @first, waits for ever: thread (32, 0, 0) waits at __syncthreads(), @second"],
    "EarlyReturn": ["__syncthreads(), ", "waits for ever: thread (5, 0, 0) has left the kernel"],
    "SmallArray": ["thread (63, 0, 0): store to shared array tile + 252 bytes, behind its end", "@store"],
    "ReadsPast": ["thread (63, 0, 0): load from input x + 1024 bytes, behind its end (it holds 1024 bytes), @store"],
    "WritesPast": ["store to output y + 1024 bytes, behind its end", "@load"],
    "WritesInput": ["store to input x + ", "which kernels must not change, @input"],
    "Misaligned": ["misaligned access: ", "is no multiple of 16, @wide"],
    "ShuffleUnderCondition": ["a shuffle, @half, waits for ever: thread (16, 0, 0) waits at a shuffle"],
    "ShuffleFromOutside": ["a shuffle gives lane 0 the value of lane 20, which its mask lacks, @outside"],
    "NoSyncwarp": ["load from shared array values + ", "@take"],
    "WrongSegment": ["load from shared array values + ", "@take"],
    "SamePartialsRow": ["race: store to scratch memory + 0 bytes, @partial; no barrier", "of another block, @partial"],
    "UnwrittenScratch": ["kernel SumPartials", "load from scratch memory + 4 bytes, which nobody has written, @row"],
    "NoAtomic": ["race: load from output y + ", "@add; no barrier", "of another block, @add"],
    "NoFence": ["race: load from scratch memory + ", "@theirs; no barrier", "of another block, @mine"],
    "NullPointer": ["load from ", "@wide"],
    "TooManyThreads": ["kernel Reverse<kBug> is launched with a block of (1025, 1, 1) threads"],
    "TooMuchShared": ["51200 bytes of dynamic shared memory, more than 49152"],
    "CopiesPast": ["kernel CopyRows<22>", "thread (1, 0, 0): load from input x + 256 bytes, behind its end", "@copy"],
    "Assertion": ["kernel CopyRows<23>", "thread (1, 0, 0): assert(", "fails, @assert"],
    "HostReads": ["host code touches input x, which is in the device's memory, @host"],
    "UnwrittenOutput": ["output y + 128 bytes (it holds 256) is written by no kernel"],
}  # fmt: skip
ON_64 = ("CopiesPast", "Assertion", "HostReads", "UnwrittenOutput")  # numbers; the others run on 256
RIGHT = {
    "reverse": (0, X.reshape(4, 64)[:, ::-1].reshape(-1)),
    "copy, four at a time": (26, X),
    "sum of a warp": (27, np.repeat(X[:64].reshape(2, 32).sum(axis=1), 32)),
    "next lane": (28, np.roll(X[:64].reshape(2, 32), -1, axis=1).reshape(-1)),
    "partial sums": (29, np.full(64, X.sum())),
    "atomic sums": (30, X.reshape(4, 64).sum(axis=0)),
    "sums by the last block": (31, np.full(64, X.sum())),
    "copy, in rows": (32, X[:64]),
}


@pytest.fixture(scope="module")
def planted():
    return custom_ops.load("Planted", [SOURCE], cuda="emulated").planted


@pytest.fixture(params=[0, "random"], ids=["seed 0", "random seed"])
def seed(request, random_seed):
    with emulation.settings(seed=random_seed if request.param else 0):
        yield


def test_every_planted_mistake_has_a_finding():
    assert ["None", *FINDINGS] == BUGS


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("bug", FINDINGS)
def test_a_planted_mistake_is_found(planted, bug, place_of):
    with pytest.raises(tf.errors.InternalError) as caught:
        planted(X[:64] if bug in ON_64 else X, bug=BUGS.index(bug), size=64 if bug in ON_64 else 256)
    text, rest = str(caught.value), str(caught.value)
    for part in FINDINGS[bug]:
        wanted = re.sub(r"@(\w+)", lambda mark: place_of("planted.cu", mark[1]), part)
        assert wanted in rest, text
        rest = rest.partition(wanted)[2]


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernels_have_no_finding(planted, kernel):
    number, expected = RIGHT[kernel]
    x = X[:64] if kernel == "copy, in rows" else X
    np.testing.assert_array_equal(planted(x, bug=number, size=len(expected)), expected)


def test_a_block_comes_to_its_second_round_only_on_enough_work(planted):
    short = X[:128]  # two pieces for two blocks
    bug = BUGS.index("NoBarrierBeforeReuse")
    assert planted(short, bug=bug, size=128).shape == [128]
    with emulation.settings(max_blocks=1), pytest.raises(tf.errors.InternalError, match="race: "):
        planted(short, bug=bug, size=128)


def test_in_every_mode(planted):
    expected = RIGHT["reverse"][1]
    for function in (tf.function(planted), tf.function(planted, jit_compile=True)):
        np.testing.assert_array_equal(function(X, bug=0), expected)
        with pytest.raises(tf.errors.InternalError, match="behind its end"):
            function(X, bug=BUGS.index("SmallArray"))
