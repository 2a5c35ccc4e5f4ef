"""A problem for optimizers, and their papers' updates in float64. Plain numpy: PyTorch's golden values use it, too."""

import numpy as np

STEPS = 50
SHAPES = {"tall": (6, 4), "wide": (3, 5), "cube": (2, 3, 4), "bias": (4,), "scale": ()}


def problem():
    """Weights around 1, and gradients of each step between 0.001 and 10."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = [
        {name: rng.normal(size=w.shape) * 10.0 ** rng.integers(-3, 2) for name, w in weights.items()}
        for _ in range(STEPS)
    ]
    return weights, gradients


SWA = {"start": 11, "period": 3}
AVERAGED = range(11, STEPS + 1, 3)


def rows_problem():
    """A table of weights, and of each step the indices that it uses, one of them twice, and gradients of those rows."""
    rng = np.random.default_rng(1)
    steps = []
    for _ in range(STEPS):
        ids = rng.choice(12, 5, replace=False)
        steps.append((np.append(ids, ids[2]), rng.normal(size=(6, 3)) * 10.0 ** rng.integers(-3, 2)))
    return rng.normal(size=(12, 3)), steps


def falling(step):
    return 0.05 / (1 + step / 10)


def run(rule, rate=falling, rounded=lambda x: x, **options):
    """The weights after all steps. ``rule(w, g, state, t, rate, **options)`` gives the new weight; t counts from 1."""
    weights, gradients = problem()
    weights = {name: np.asarray(rounded(w), np.float64) for name, w in weights.items()}
    states = {name: {} for name in weights}
    for step, each in enumerate(gradients):
        for name, g in each.items():
            g = np.asarray(rounded(g), np.float64)
            weights[name] = rule(weights[name], g, states[name], step + 1, rate(step), **options)
    return weights


def _mean(state, name, beta, new):
    state[name] = beta * state.get(name, 0.0) + (1 - beta) * new
    return state[name]


def _adam_direction(g, state, t, beta_1, beta_2, epsilon):
    m, v = _mean(state, "m", beta_1, g), _mean(state, "v", beta_2, g**2)
    return m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)


def adamw(w, g, state, t, rate, beta_1=0.9, beta_2=0.99, epsilon=1e-3, weight_decay=0.0):
    return w - rate * (_adam_direction(g, state, t, beta_1, beta_2, epsilon) + weight_decay * w)


def lamb(w, g, state, t, rate, beta_1=0.9, beta_2=0.99, epsilon=1e-3, weight_decay=0.0):
    u = _adam_direction(g, state, t, beta_1, beta_2, epsilon) + weight_decay * w
    return w - rate * np.linalg.norm(w) / np.linalg.norm(u) * u


def sgd(w, g, state, t, rate, momentum=0.9):
    state["v"] = momentum * state.get("v", 0.0) - rate * g
    return w + state["v"]


def rmsprop(w, g, state, t, rate, rho=0.9, momentum=0.0, centered=False, epsilon=1e-3):
    v, a = _mean(state, "v", rho, g**2), _mean(state, "a", rho, g)
    state["b"] = momentum * state.get("b", 0.0) + rate * g / (np.sqrt(v - centered * a**2) + epsilon)
    return w - state["b"]


def adagrad(w, g, state, t, rate, initial_accumulator_value=0.1, epsilon=1e-3):
    state["s"] = state.get("s", initial_accumulator_value) + g**2
    return w - rate * g / (np.sqrt(state["s"]) + epsilon)


def lion(w, g, state, t, rate, beta_1=0.9, beta_2=0.99, weight_decay=0.0):
    m = state.get("m", 0.0)
    state["m"] = beta_2 * m + (1 - beta_2) * g
    return w - rate * (np.sign(beta_1 * m + (1 - beta_1) * g) + weight_decay * w)


def adafactor(w, g, state, t, rate, relative_step=True, scale_parameter=True, weight_decay=0.0):
    s, beta = g**2 + 1e-30, 1 - t**-0.8
    if w.ndim >= 2:
        r, c = _mean(state, "r", beta, s.mean(-1)), _mean(state, "c", beta, s.mean(-2))
        v = r[..., :, None] * c[..., None, :] / r.mean(-1)[..., None, None]
    else:
        v = _mean(state, "v", beta, s)
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt(np.mean(u**2)))
    step = min(rate, t**-0.5) if relative_step else rate
    step = step * max(1e-3, np.sqrt(np.mean(w**2))) if scale_parameter else step
    return w - rate * weight_decay * w - step * u


def muon(w, g, state, t, rate, momentum=0.95, weight_decay=0.0, adjust="match_rms_adamw", **adam):
    if w.ndim != 2:
        return adamw(w, g, state, t, rate, weight_decay=weight_decay, **adam)
    state["b"] = momentum * state.get("b", 0.0) + g
    x = g + momentum * state["b"]
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    n, m = w.shape
    scale = np.sqrt(max(1, m / n)) if adjust == "original" else 0.2 * np.sqrt(max(n, m))
    return w - rate * (scale * x + weight_decay * w)
