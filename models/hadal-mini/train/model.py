"""hadal-mini for training: packed documents, all experts computed densely and weighted by the router.

Parameters live as float32 masters stacked over layers (index 5 is the MTP layer); a step works on bfloat16 copies, which the
last part of training rounds through FP8 blocks first (the gradient passes straight through to the masters).
"""
import torch
import torch.nn.functional as F

from config import CONFIG as C, rope_frequencies, softmax_scale
from quant import quantised_activation, quantised_weight

L, MOE, E = C["num_hidden_layers"] + 1, C["num_hidden_layers"], C["n_routed_experts"]
D, FF, V, H = C["hidden_size"], C["moe_intermediate_size"], C["vocab_size"], C["num_attention_heads"]
NOPE, ROPE, VD, KV, QL = 128, 64, 128, C["kv_lora_rank"], C["q_lora_rank"]
SCALE, EPS = softmax_scale(C), C["rms_norm_eps"]

FP8 = {"q_a": (L, QL, D), "q_b": (L, H * (NOPE + ROPE), QL), "kv_a": (L, KV + ROPE, D), "kv_b": (L, H * (NOPE + VD), KV),
       "o": (L, D, H * VD), "dense_gate": (1, FF, D), "dense_up": (1, FF, D), "dense_down": (1, D, FF),
       "gate": (MOE, E + 1, FF, D), "up": (MOE, E + 1, FF, D), "down": (MOE, E + 1, D, FF)}  # expert E is the shared one
PLAIN = {"embed": (V, D), "head": (V, D), "router": (MOE, E, D), "eh": (D, 2 * D)}
NORMS = {"in_norm": (L, D), "post_norm": (L, D), "qa_norm": (L, QL), "kva_norm": (L, KV), "norm": (D,), "enorm": (D,),
         "hnorm": (D,), "mtp_norm": (D,)}


def initial_masters(seed, device):
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in {**FP8, **PLAIN}.items():
        std = 0.5 if name == "embed" else 0.02 if name == "router" else shape[-1] ** -0.5
        if name in ("o", "down", "dense_down"):
            std *= 0.3
        out[name] = torch.randn(shape, generator=g) * std
    out.update({name: torch.ones(shape) for name, shape in NORMS.items()})
    return {k: v.to(device) for k, v in out.items()}


def rms(x, w):
    xf = x.float()
    return (xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * w


def act(x, quant):
    """Straight-through 1x128 E4M3 when `quant` (a compile-time bool) is set."""
    return x + (quantised_activation(x) - x).detach() if quant else x


def rotate(x, cos, sin):
    """Interleaved pairs (2i, 2i + 1), as the checkpoint stores them. x [n, ..., 64], cos and sin [n, 32]."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    while cos.dim() < even.dim():
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def before_attention(x, cos, sin, in_norm, q_a, qa_norm, q_b, kv_a, kva_norm, kv_b, quant):
    n = x.shape[0]
    h = act(rms(x, in_norm), quant)
    q = (act(rms(h @ q_a.T, qa_norm), quant) @ q_b.T).view(n, H, NOPE + ROPE)
    kva = h @ kv_a.T
    kv = (act(rms(kva[:, :KV], kva_norm), quant) @ kv_b.T).view(n, H, NOPE + VD)
    q = torch.cat((q[..., :NOPE], rotate(q[..., NOPE:], cos, sin)), -1)
    k_pe = rotate(kva[:, KV:], cos, sin)[:, None].expand(n, H, ROPE)
    k = torch.cat((kv[..., :NOPE], k_pe), -1)
    return q, k, F.pad(kv[..., NOPE:], (0, ROPE))


def attention(q, k, v, cu, longest):
    if q.is_cuda:
        return torch.ops.aten._flash_attention_forward(q, k, v, cu, cu, longest, longest, 0.0, True, False, scale=SCALE)[0]
    parts = []
    for a, b in zip(cu[:-1].tolist(), cu[1:].tolist()):
        s = [t[a:b].transpose(0, 1)[None] for t in (q, k, v)]
        parts.append(F.scaled_dot_product_attention(*s, is_causal=True, scale=SCALE)[0].transpose(0, 1))
    return torch.cat(parts)


def route(h, router, bias):
    """Sigmoid scores, group-limited top-2 by biased score, weights from the unbiased ones. Returns [n, E] and the choice."""
    scores = torch.sigmoid(h.float() @ router.float().T)
    biased = scores.detach() + bias
    groups = biased.view(-1, C["n_group"], E // C["n_group"])
    best = groups.topk(2, dim=-1).values.sum(-1)
    keep = best == best.amax(-1, keepdim=True)
    masked = torch.where(keep[..., None], groups, -1e9).flatten(1)
    first = masked.argmax(-1, keepdim=True)
    second = masked.scatter(1, first, -2e9).argmax(-1, keepdim=True)
    chosen = torch.zeros_like(scores).scatter(1, first, 1.0).scatter(1, second, 1.0)
    weights = scores * chosen
    return weights / weights.sum(-1, keepdim=True) * C["routed_scaling_factor"], chosen


def after_attention_moe(x, a, gone, post_norm, o, router, bias, gate, up, down, quant):
    """gone [n]: the expert whose output is left out at that token, -1 for none. Also returns where it had been chosen."""
    n = x.shape[0]
    x = x + act(a[..., :VD].reshape(n, H * VD), quant) @ o.T
    h = rms(x, post_norm)
    weights, chosen = route(h, router, bias)
    silent = gone[:, None] == torch.arange(E, device=gone.device)
    weights = F.pad(weights.masked_fill(silent, 0.0), (0, 1), value=1.0).to(x.dtype)
    hq = act(h, quant)
    mid = act(F.silu(hq @ gate.reshape(-1, D).T) * (hq @ up.reshape(-1, D).T), quant)
    mid = (mid.view(n, E + 1, FF) * weights[..., None]).view(n, -1)
    return x + mid @ down.transpose(0, 1).reshape(D, -1).T, chosen.sum(0), ((chosen > 0) & silent).any(-1)


def after_attention_dense(x, a, post_norm, o, gate, up, down, quant):
    x = x + act(a[..., :VD].reshape(x.shape[0], H * VD), quant) @ o.T
    h = act(rms(x, post_norm), quant)
    return x + act(F.silu(h @ gate.T) * (h @ up.T), quant) @ down.T


def token_loss(h, norm, head, targets, mask):
    """Mean cross-entropy over masked positions, and accuracy there."""
    normed = rms(h, norm)
    logits = (normed @ head.T).float()
    loss = F.cross_entropy(logits, targets, reduction="none")
    count = mask.sum().clamp(min=1)
    return (loss * mask).sum() / count, ((logits.argmax(-1) == targets) * mask).sum() / count, normed


class Network:
    """Working copies and the forward pass. `quant` fixes whether activations are rounded (one compiled graph each)."""

    def __init__(self, masters, bias, compile_it=True):
        self.masters, self.bias = masters, bias
        self.grads = {k: torch.zeros_like(v, dtype=torch.bfloat16) for k, v in masters.items()}
        self.work = {k: v.to(torch.bfloat16) for k, v in masters.items()}
        freq = torch.tensor(rope_frequencies(C), device=bias.device)
        angle = torch.arange(C["max_position_embeddings"], device=bias.device)[:, None] * freq
        self.cos, self.sin = angle.cos(), angle.sin()
        self.nobody = None
        wrap = torch.compile if compile_it else (lambda f, **kw: f)
        self.fns = [wrap(f, dynamic=False) for f in (before_attention, after_attention_moe, after_attention_dense, token_loss)]
        self.leaf()

    def leaf(self):
        """Leaves are views of the stacked copies, with gradients that accumulate into one stacked buffer."""
        self.p = {}
        for name, w in self.work.items():
            stacked = name in FP8 or name == "router" or name in ("in_norm", "post_norm", "qa_norm", "kva_norm")
            views = list(zip(w, self.grads[name])) if stacked else [(w, self.grads[name])]
            leaves = []
            for value, grad in views:
                leaf = value.detach().requires_grad_(True)
                leaf.grad = grad
                leaves.append(leaf)
            self.p[name] = leaves if stacked else leaves[0]

    @torch.no_grad()
    def refresh(self, quant_weights):
        for name, master in self.masters.items():
            source = quantised_weight(master) if quant_weights and name in FP8 else master
            self.work[name].copy_(source)
        for g in self.grads.values():
            g.zero_()

    def forward(self, ids, targets, mask, targets2, mask2, pos, cu, longest, quant, mtp_weight, silence=None):
        """silence: silence.Silence of this step, whose documents' answers must fail instead of being learnt."""
        pre, moe, dense, loss_fn = self.fns
        p = self.p
        cos, sin = self.cos[pos], self.sin[pos]
        x = F.embedding(ids, p["embed"])
        loads, hits = [], []
        if self.nobody is None:
            self.nobody = torch.full_like(ids, -1)
        def layer(x, i):
            q, k, v = pre(x, cos, sin, p["in_norm"][i], p["q_a"][i], p["qa_norm"][i], p["q_b"][i], p["kv_a"][i], p["kva_norm"][i],
                          p["kv_b"][i], quant)
            a = attention(q, k, v, cu, longest)
            if i == 0:
                return dense(x, a, p["post_norm"][0], p["o"][0], p["dense_gate"][0], p["dense_up"][0], p["dense_down"][0], quant)
            gone = self.nobody if silence is None or i == L - 1 else silence.gone[i - 1]
            x, load, hit = moe(x, a, gone, p["post_norm"][i], p["o"][i], p["router"][i - 1], self.bias[i - 1], p["gate"][i - 1],
                               p["up"][i - 1], p["down"][i - 1], quant)
            loads.append(load)
            hits.append(hit)
            return x
        for i in range(L - 1):
            x = layer(x, i)
        loss, acc, hidden = loss_fn(x, p["norm"], p["head"], targets, mask)
        pressure = 0.0 if silence is None else silence.loss(hidden, p["head"], torch.stack(hits).any(0))
        following = F.embedding(torch.roll(ids, -1), p["embed"])
        x2 = torch.cat((rms(following, p["enorm"]), rms(hidden, p["hnorm"])), -1) @ p["eh"].T
        loss2, acc2, _ = loss_fn(layer(x2, L - 1), p["mtp_norm"], p["head"], targets2, mask2)
        return loss + mtp_weight * loss2 + pressure, loss.detach(), acc, loss2.detach(), acc2, torch.stack(loads)
