"""Writes torch_optimizers.json: weights after 50 steps of PyTorch's optimizers, in float64 (its Muon's iteration is
bfloat16 whatever the weights are), and PyTorch's version. Needs PyTorch and numpy alone:

    PYTHONPATH=tests python tests/trainers/update/golden_torch.py
"""

import json
from pathlib import Path

import numpy as np
import optimizer_problem
import torch

RATE = 0.01
FILE = Path(__file__).with_name("torch_optimizers.json")
# Name of ours -> PyTorch's, and its options, the same as ours have in the test.
OPTIMIZERS = {
    "Sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "Adam": (torch.optim.Adam, {"betas": (0.9, 0.99), "eps": 1e-3}),
    "AdamW": (torch.optim.AdamW, {"betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}),
    "RMSprop": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-3}),
    "RMSprop centered": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-3, "centered": True, "momentum": 0.8}),
    "Adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1, "eps": 1e-3}),
    # Its first epsilon is a bound, whose square stands where ours is added.
    "Adafactor": (torch.optim.Adafactor, {"eps": (1e-15, 1e-3), "weight_decay": 0.1}),
    "Muon": (torch.optim.Muon, {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}),
    "Muon original": (torch.optim.Muon, {"weight_decay": 0.1, "adjust_lr_fn": "original"}),
}


def trained(name: str) -> dict[str, object]:
    make, options = OPTIMIZERS[name]
    weights, gradients = optimizer_problem.problem()
    is_muon = name.startswith("Muon")  # which takes matrices alone; they are transposed, as PyTorch applies x @ w.T
    kept = [key for key, weight in weights.items() if weight.ndim == 2 or not is_muon]
    turned = np.transpose if is_muon else np.asarray
    parameters = {key: torch.nn.Parameter(torch.tensor(turned(weights[key]))) for key in kept}
    optimizer = make(parameters.values(), lr=RATE, **options)
    for each in gradients:
        for key, parameter in parameters.items():
            parameter.grad = torch.tensor(turned(each[key]))
        optimizer.step()
    return {key: turned(parameter.detach().numpy()).tolist() for key, parameter in parameters.items()}


def rows_trained() -> list[list[float]]:
    """A table of which each step uses some rows, one of them twice, by SparseAdam.

    Its epsilon stands beside the uncorrected root, so it must be too small to matter.
    """
    table, steps = optimizer_problem.rows_problem()
    parameter = torch.nn.Parameter(torch.tensor(table))
    optimizer = torch.optim.SparseAdam([parameter], lr=RATE, betas=(0.9, 0.99), eps=1e-12)
    for ids, rows in steps:
        parameter.grad = torch.sparse_coo_tensor(ids[None], torch.tensor(rows), table.shape, check_invariants=True)
        optimizer.step()
    return parameter.detach().numpy().tolist()


def averaged() -> dict[str, object]:
    """The mean of the weights after steps 11, 14, … of SGD."""
    weights, gradients = optimizer_problem.problem()
    model = torch.nn.ParameterDict({key: torch.nn.Parameter(torch.tensor(one)) for key, one in weights.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    mean = torch.optim.swa_utils.AveragedModel(model)
    for step, each in enumerate(gradients, 1):
        for key, parameter in model.items():
            parameter.grad = torch.tensor(each[key])
        optimizer.step()
        if step in optimizer_problem.AVERAGED:
            mean.update_parameters(model)
    return {key: parameter.detach().numpy().tolist() for key, parameter in mean.module.items()}


if __name__ == "__main__":
    found = {"torch": torch.__version__, **{name: trained(name) for name in OPTIMIZERS}}
    found |= {"LazyAdam": rows_trained(), "SWA": averaged()}
    FILE.write_text(json.dumps(found) + "\n")
