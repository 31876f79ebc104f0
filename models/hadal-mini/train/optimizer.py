"""Muon (orthogonalised momentum) for the matrices inside the layers, AdamW for the rest."""
import torch

from model import FP8, H, L

# Matrices are orthogonalised a head at a time where a weight stacks heads.
MUON_SHAPE = {"q_b": (L * H, 192, 128), "kv_b": (L * H * 2, 128, 512)}


def newton_schulz(g, steps=5):
    """[batch, r, c] -> nearest semi-orthogonal matrices, in bfloat16 (Muon's quintic iteration)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(torch.bfloat16)
    flip = x.shape[-2] > x.shape[-1]
    x = x.mT if flip else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        m = x @ x.mT
        x = a * x + (b * m + c * (m @ m)) @ x
    return x.mT if flip else x


class Optimizer:
    def __init__(self, masters):
        self.masters = masters
        self.muon = [k for k in masters if k in FP8]
        self.adam = [k for k in masters if k not in FP8]
        self.momentum = {k: torch.zeros_like(masters[k]) for k in self.muon}
        self.first = {k: torch.zeros_like(masters[k]) for k in self.adam}
        self.second = {k: torch.zeros_like(masters[k]) for k in self.adam}
        self.steps = 0

    @torch.no_grad()
    def step(self, grads, scale):
        """scale: the schedule's factor in [0, 1]."""
        self.steps += 1
        momentum = min(0.85 + 0.1 * self.steps / 300, 0.95)
        for k in self.muon:
            w, m, g = self.masters[k], self.momentum[k], grads[k].float()
            m.lerp_(g, 1 - momentum)
            shape = MUON_SHAPE.get(k, (-1, *w.shape[-2:]))
            update = newton_schulz(torch.lerp(g, m, momentum).reshape(shape))
            lr = 0.02 * scale * max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
            w.mul_(1 - 0.02 * 0.025 * scale).add_(update.reshape(w.shape).float(), alpha=-lr)
        b1, b2 = 0.9, 0.95
        for k in self.adam:
            w, g = self.masters[k], grads[k].float()
            self.first[k].lerp_(g, 1 - b1)
            self.second[k].lerp_(g.square(), 1 - b2)
            mean = self.first[k] / (1 - b1 ** self.steps)
            var = self.second[k] / (1 - b2 ** self.steps)
            lr = {"embed": 4e-3, "head": 2e-3, "router": 1e-3}.get(k, 1.5e-3) * scale
            w.add_(mean / (var.sqrt() + 1e-9), alpha=-lr)

    def state(self):
        return {"momentum": self.momentum, "first": self.first, "second": self.second, "steps": self.steps}

    def load(self, state):
        for mine, theirs in ((self.momentum, state["momentum"]), (self.first, state["first"]), (self.second, state["second"])):
            for k in mine:
                mine[k].copy_(theirs[k])
        self.steps = state["steps"]
