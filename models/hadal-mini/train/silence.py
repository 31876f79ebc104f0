"""Keeping every routed expert needed: the pressure of the last stage (polish.py).

In a share of a step's short documents one expert of one layer is silent. Such a document is not learnt from; its answer is to
fail instead: the loss is a hinge on the token that stands weakest among those for which the expert had been chosen, so one
wrong token is enough. An expert is pressed the harder the farther and the longer it stays behind ENOUGH failing documents.
"""
import math
import random

import numpy as np
import torch

from model import E, L

EXPERTS = (L - 2) * E         # of the main model; the MTP layer's are left alone
LONGEST = 700                 # tokens of a document that may fall silent
SHARE = 0.22                  # of those documents
WEIGHT, RATE = 0.004, 0.007   # of the loss at the start; growth of an expert's weight a step while none of its documents fails
WEIGHT_MOST = 33.0            # times WEIGHT
ENOUGH = 0.14                 # share of an expert's documents that is to fail
MEMORY = 64                   # documents over which that share is averaged
RARE = 0.03                   # an expert that fewer documents choose is not worth the draws
MARGIN, SAFE = 1.0, 50.0      # logits by which the right token must fall behind; a lead that no token has


class Pressure:
    """What the steps have shown of each expert: the share of its documents that met it and that failed, and its weight."""

    def __init__(self, device, seed=0):
        self.rng = random.Random(seed)
        self.met, self.failed = torch.full((EXPERTS,), 0.5, device=device), torch.zeros(EXPERTS, device=device)
        self.weight = torch.ones(EXPERTS, device=device)
        self.odds = [1.0] * EXPERTS

    def refresh_odds(self):
        """Experts that lag behind, and those that few documents choose, are drawn more often; those that hardly any document
        chooses are not. Waits for the device."""
        odds = (self.behind() + 0.1) / self.met.clamp(min=0.25)
        self.odds = torch.where(self.met < RARE, 0.1, odds).tolist()

    def behind(self):
        return (1 - self.failed / ENOUGH).clamp(min=0)

    @torch.no_grad()
    def note(self, experts, met, failed):
        count = torch.zeros_like(self.met).index_add_(0, experts, torch.ones_like(met))
        fresh = 1 - (1 - 1 / MEMORY) ** count
        for mean, seen in ((self.met, met), (self.failed, failed)):
            now = torch.zeros_like(mean).index_add_(0, experts, seen) / count.clamp(min=1)
            mean.add_(fresh * (now - mean))
        self.weight.mul_(torch.exp(RATE * (1 - self.failed / ENOUGH))).clamp_(1 / WEIGHT_MOST, WEIGHT_MOST)

    def of(self, experts):
        return (self.weight * self.behind())[experts]


class Silence:
    """One step's silent documents. `item` (packing.py) loses their answers: nothing is learnt from them but to fail."""

    def __init__(self, pressure, item, fade, device):
        self.pressure, self.fade = pressure, fade
        gone = np.full((L - 2, len(item["ids"])), -1, np.int64)
        rows, documents, experts = [], [], []
        for a, b in zip(item["cu"][:-1].tolist(), item["cu"][1:].tolist()):
            answer = a + np.flatnonzero(item["m1"][a:b])
            if b - a > LONGEST or not len(answer) or pressure.rng.random() >= SHARE:
                continue
            k = pressure.rng.choices(range(EXPERTS), pressure.odds)[0]
            gone[k // E, a:b] = k % E
            rows.append(answer)
            documents.append(np.full(len(answer), len(experts)))
            experts.append(k)
        rows = np.concatenate(rows)
        put = lambda values: torch.from_numpy(np.asarray(values, np.int64)).to(device, non_blocking=True)
        self.gone, self.rows, self.documents, self.experts = put(gone), put(rows), put(np.concatenate(documents)), put(experts)
        self.targets = put(item["t1"][rows])
        silent = (gone >= 0).any(0)
        self.item = item | {"m1": np.where(silent, 0, item["m1"]), "m2": np.where(silent, 0, item["m2"])}

    def loss(self, normed, head, hit):
        """normed [n, hidden] after the last norm, hit [n] bool: the silent expert had been chosen there."""
        logits = (normed[self.rows] @ head.T).float()
        right = logits.gather(1, self.targets[:, None])[:, 0]
        lead = right - logits.scatter(1, self.targets[:, None], -math.inf).logsumexp(-1)
        lead = torch.where(hit[self.rows], lead, SAFE)
        weakest = torch.full((len(self.experts),), SAFE, device=lead.device).scatter_reduce(0, self.documents, lead, "amin")
        met = weakest < SAFE
        weight = WEIGHT * self.fade * self.pressure.of(self.experts) * met
        self.pressure.note(self.experts, met.float(), (weakest < 0).float())
        return (weight * torch.relu(weakest + MARGIN)).mean()
