"""What tests of ctc_loss share: float64 by the paper, and golden values by PyTorch, which this file makes as a script.

python tests/ctc.py        # golden.npz, made with torch 2.14.1; needs PyTorch, and no TensorFlow
"""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "custom_ops/ctc_loss/golden.npz"


def exact(logits, labels, frames, counts, blank=0):
    """Losses and their gradients in float64: logarithms of sums over states. Written from Graves et al. 2006."""
    losses, gradients = [], np.zeros(logits.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        for b, (count, time) in enumerate(zip(counts, frames, strict=True)):
            x = logits[b, :time].astype(np.float64)
            log_y = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
            states = np.full(2 * count + 1, blank)
            states[1::2] = labels[b][:count]
            skips = np.zeros(states.size, bool)
            skips[2:] = (states[2:] != blank) & (states[2:] != states[:-2])
            total, expected = ways(log_y[:, states], skips)
            losses.append(-total)
            if np.isfinite(total):
                gradients[b, :time] = np.exp(log_y)
                for s, c in enumerate(states):
                    gradients[b, :time, c] -= expected[:, s]
    return np.array(losses), gradients


def ways(log_y, skips):
    """The logarithm of the sum over all ways, and how likely each state is at each frame; [time, states]."""

    def run(log_y, skips):
        alpha, rows = np.where(np.arange(skips.size) == 0, 0.0, -np.inf), []
        for row in log_y:
            one, two = (np.concatenate([np.full(n, -np.inf), alpha])[: skips.size] for n in (1, 2))
            alpha = np.logaddexp(np.logaddexp(alpha, one), np.where(skips, two, -np.inf)) + row
            rows.append(alpha)
        return np.array(rows).reshape(-1, skips.size)

    if not len(log_y):
        return (0.0 if skips.size == 1 else -np.inf), np.zeros(log_y.shape)
    alpha = run(log_y, skips)
    # Backward, states are counted from the end, and may be skipped to where forward they are skipped from.
    from_end = np.concatenate([[False, False], skips[::-1]])[: skips.size]
    backward = run(log_y[::-1, ::-1], from_end)[::-1, ::-1]
    total = np.logaddexp(alpha[-1, -1], alpha[-1, -2] if skips.size > 1 else -np.inf)
    both = np.where(np.isneginf(alpha) | np.isneginf(backward), -np.inf, alpha + backward - log_y)
    return total, np.exp(both - total)


def run(call, inputs, upstream, mode="eager", **options):
    import op_values
    import tensorflow as tf

    def both(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs[0])
            loss = call(*inputs, **options)
        return loss, tape.gradient(loss, inputs[0], output_gradients=upstream)

    return [one.numpy() for one in op_values.MODES[mode](both)(tf.convert_to_tensor(inputs[0]), *inputs[1:])]


def check(inputs, upstream, found, **options):
    """To what float32 sums of a loss' size leave; the gradient of logits of `dtype` is rounded to it."""
    losses, gradients = exact(*(np.asarray(x) for x in inputs), **options)
    np.testing.assert_allclose(found[0], losses, rtol=1e-6, atol=2e-6)
    right = gradients * upstream[:, None, None]
    step = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}[found[1].dtype.name]
    np.testing.assert_allclose(
        found[1].astype(np.float64), right, rtol=step, atol=1e-5 * np.abs(upstream).max(), err_msg=str(options)
    )


def dense(case):
    """Inputs of a case with padded labels, and an upstream gradient."""
    from tftoolkit.custom_ops.ctc_loss.cases import call_of

    inputs, options = call_of("CtcLoss", case)
    if case.ragged:
        rows = np.split(inputs[1], np.cumsum(inputs[3])[:-1])
        inputs[1] = np.stack([np.resize(np.append(row, [case.blank] * case.labels), case.labels) for row in rows])
    return inputs, np.random.default_rng(5).standard_normal(case.batch).astype(np.float32), options["blank"]


# batch, time, classes, labels, blank
SIZES = ((3, 12, 6, 4, 0), (2, 40, 4, 13, 3), (2, 25, 30, 25, 7))


def given(batch, time, classes, labels, blank):
    """Logits, labels, lengths, the losses' gradient: sequences too short, without labels, with repeated labels."""
    rng = np.random.default_rng(batch * time)
    logits = 2 * rng.standard_normal((batch, time, classes)).astype(np.float32)
    found = rng.integers(0, classes - 1, (batch, labels))
    found += found >= blank
    found[:, 1] = found[:, 0]
    frames, counts = rng.integers(time // 2, time + 1, batch), rng.integers(1, labels // 2 + 1, batch)
    frames[0] = time
    counts[-1] = labels if labels == time else 0
    return logits, found, frames, counts, rng.standard_normal(batch).astype(np.float32)


def main():
    import torch
    from torch.nn import functional

    arrays = {}
    for i, sizes in enumerate(SIZES):
        logits, labels, frames, counts, upstream = (torch.tensor(x) for x in given(*sizes))
        x = logits.double().requires_grad_()
        log_probs = functional.log_softmax(x, -1).transpose(0, 1)
        options = {"blank": sizes[-1], "reduction": "none"}
        arrays[f"loss_{i}"] = functional.ctc_loss(log_probs, labels, frames, counts, **options).detach().numpy()
        zeroed = functional.ctc_loss(log_probs, labels, frames, counts, zero_infinity=True, **options)
        (gradient,) = torch.autograd.grad((zeroed * upstream).sum(), x)
        arrays[f"gradient_{i}"] = gradient.numpy().astype(np.float32)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
