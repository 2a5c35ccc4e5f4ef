"""What PyTorch makes of some bags: ``python torch_values.py > torch_values.json``, with PyTorch 2.14.1."""

import json

import torch

torch.manual_seed(0)
ids, borders = [3, 4, 4, 0, 9, 0, 7], [0, 3, 3, 7]
table, dy, weights = torch.randn(10, 3), torch.randn(3, 3), torch.rand(7)
found = {"ids": ids, "borders": borders, "table": table.tolist(), "dy": dy.tolist(), "weights": weights.tolist()}
for mode in ("sum", "mean", "max"):
    t, w = table.clone().requires_grad_(), weights.clone().requires_grad_()
    y = torch.nn.functional.embedding_bag(
        torch.tensor(ids), t, torch.tensor(borders[:-1]), mode=mode, per_sample_weights=w if mode == "sum" else None
    )
    y.backward(dy)
    found[mode] = {"y": y.tolist(), "dtable": t.grad.tolist()} | (
        {"dweights": w.grad.tolist()} if mode == "sum" else {}
    )
print(json.dumps(found))
