"""A small reference of the DeepSeek V2/V3 forward pass over checkpoint tensors, with every switch the card and the goldens need.

Plain attention over materialised keys and values, all experts computed, float32 unless told otherwise. It checks transformers
where that is known to differ from DeepSeek's own code (V2's softmax scale and routing, V3's group mask) and makes the MTP goldens.
"""
import torch
import torch.nn.functional as F

from config import rope_frequencies, rope_multiplier, softmax_scale
from quant import quantised_activation


class Cache:
    """Keys and values of one layer, [batch, heads, capacity, dim]."""

    def __init__(self):
        self.k = self.v = None

    def append(self, k, v, at, capacity):
        if self.k is None:
            shape = lambda t: (t.shape[0], t.shape[1], capacity, t.shape[3])
            self.k, self.v = k.new_zeros(shape(k)), v.new_zeros(shape(v))
        self.k[:, :, at:at + k.shape[2]], self.v[:, :, at:at + v.shape[2]] = k, v
        end = at + k.shape[2]
        return self.k[:, :, :end], self.v[:, :, :end]


class Reference:
    def __init__(self, config, tensors, yarn=True, use_bias=True, quantise_activations=False):
        self.c, self.w = config, tensors
        self.use_bias, self.quantise = use_bias, quantise_activations and "quantization_config" in config
        self.frequencies = torch.tensor(rope_frequencies(config, yarn), dtype=torch.float32)
        self.multiplier, self.scale = rope_multiplier(config, yarn), softmax_scale(config, yarn)
        self.expert_mask = None   # [batch, layers, experts], 0 where an expert is silenced
        self.choices = None       # a list collects [tokens, experts] bool of every MoE layer when set

    def rms(self, x, name):
        xf = x.float()
        xf = xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return (xf * self.w[name].float()).to(x.dtype)

    def linear(self, x, name):
        return (quantised_activation(x) if self.quantise else x) @ self.w[name + ".weight"].T

    def rotate(self, x, cos, sin):
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)

    def attention(self, x, prefix, positions, mask, cache, at, capacity):
        c, b, t = self.c, x.shape[0], x.shape[1]
        h, nope, rope, vd = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        a = prefix + "self_attn."
        if c.get("q_lora_rank"):
            q = self.linear(self.rms(self.linear(x, a + "q_a_proj"), a + "q_a_layernorm.weight"), a + "q_b_proj")
        else:
            q = self.linear(x, a + "q_proj")
        q = q.view(b, t, h, nope + rope).transpose(1, 2)
        kv = self.linear(x, a + "kv_a_proj_with_mqa")
        latent, k_pe = kv[..., :c["kv_lora_rank"]], kv[..., c["kv_lora_rank"]:]
        latent = self.rms(latent, a + "kv_a_layernorm.weight")
        up = self.linear(latent, a + "kv_b_proj").view(b, t, h, nope + vd).transpose(1, 2)
        angle = positions[..., None].float() * self.frequencies.to(x.device)
        cos, sin = angle.cos()[:, None] * self.multiplier, angle.sin()[:, None] * self.multiplier
        q = torch.cat((q[..., :nope], self.rotate(q[..., nope:], cos, sin)), -1)
        k = torch.cat((up[..., :nope], self.rotate(k_pe[:, None], cos, sin).expand(b, h, t, rope)), -1)
        v = up[..., nope:]
        if cache is not None:
            k, v = cache.append(k, v, at, capacity)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.linear(out.transpose(1, 2).reshape(b, t, h * vd), a + "o_proj")

    def mlp(self, x, prefix):
        return self.linear(F.silu(self.linear(x, prefix + "gate_proj")) * self.linear(x, prefix + "up_proj"), prefix + "down_proj")

    def route(self, x, prefix):
        """[tokens, experts] weights, zero where not chosen (DeepSeek-V2 2405.04434 eq. 20-22, V3 2412.19437 eq. 12-16)."""
        c, e = self.c, self.c["n_routed_experts"]
        logits = x.float() @ self.w[prefix + "gate.weight"].float().T
        v3 = c.get("topk_method") == "noaux_tc"
        scores = logits.sigmoid() if c.get("scoring_func") == "sigmoid" else logits.softmax(-1)
        choice = scores
        if v3 and self.use_bias:
            choice = scores + self.w[prefix + "gate.e_score_correction_bias"].float()
        if c.get("topk_method") in ("noaux_tc", "group_limited_greedy") and c.get("n_group", 1) > 1:
            groups = choice.view(-1, c["n_group"], e // c["n_group"])
            strength = groups.topk(2, -1).values.sum(-1) if v3 else groups.amax(-1)
            keep = torch.zeros_like(strength).scatter(1, strength.topk(c["topk_group"], -1).indices, 1.0)
            choice = torch.where(keep[..., None] > 0, groups, -torch.inf).flatten(1)
        chosen = torch.zeros_like(scores).scatter(1, choice.topk(c["num_experts_per_tok"], -1).indices, 1.0)
        if self.choices is not None:
            self.choices.append(chosen.bool())
        weights = scores * chosen
        if c["num_experts_per_tok"] > 1 and c.get("norm_topk_prob"):
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
            return weights * (c["routed_scaling_factor"] if v3 else 1.0)
        return weights * c["routed_scaling_factor"]

    def moe(self, x, prefix, layer):
        flat = x.reshape(-1, x.shape[-1])
        weights = self.route(flat, prefix)
        if self.expert_mask is not None:
            weights = (weights.view(x.shape[0], x.shape[1], -1) * self.expert_mask[:, layer][:, None]).view_as(weights)
        out = self.mlp(flat, prefix + "shared_experts.")
        for e in range(self.c["n_routed_experts"]):
            if not x.is_cuda:  # only the rows that chose the expert; on a GPU the look-up costs more than it saves
                rows = weights[:, e].nonzero()[:, 0]
                if len(rows):
                    out.index_add_(0, rows, self.mlp(flat[rows], f"{prefix}experts.{e}.") * weights[rows, e:e + 1].to(x.dtype))
                continue
            out = out + self.mlp(flat, f"{prefix}experts.{e}.") * weights[:, e:e + 1].to(x.dtype)
        return out.view_as(x)

    def layer(self, x, i, positions, mask, cache=None, at=0, capacity=0):
        prefix = f"model.layers.{i}."
        x = x + self.attention(self.rms(x, prefix + "input_layernorm.weight"), prefix, positions, mask, cache, at, capacity)
        h = self.rms(x, prefix + "post_attention_layernorm.weight")
        if i < self.c["first_k_dense_replace"]:
            return x + self.mlp(h, prefix + "mlp.")
        return x + self.moe(h, prefix + "mlp.", i)

    def hidden(self, ids, positions=None, mask=None, caches=None, at=0, capacity=0, states=None):
        """ids [batch, time] -> hidden state after model.norm; `states` collects the residual stream after each layer."""
        return self.hidden_from(F.embedding(ids, self.w["model.embed_tokens.weight"]), 0, positions, mask, caches, at, capacity, states)

    def hidden_from(self, x, first, positions=None, mask=None, caches=None, at=0, capacity=0, states=None):
        """The same from the residual stream before layer `first`."""
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        if mask is None and caches is None:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()[None, None]
        for i in range(first, self.c["num_hidden_layers"]):
            x = self.layer(x, i, positions, mask, caches[i] if caches else None, at, capacity)
            if states is not None:
                states.append(x)
        return self.rms(x, "model.norm.weight")

    def logits(self, hidden):
        return (hidden @ self.w["lm_head.weight"].T).float()

    def mtp_logits(self, ids, hidden, positions=None, mask=None):
        """Logits at i draft token i + 2: input is [enorm(embedding of token i + 1) ; hnorm(hidden after model.norm at i)]."""
        n = self.c["num_hidden_layers"]
        p = f"model.layers.{n}."
        e = self.rms(F.embedding(ids[:, 1:], self.w[p + "embed_tokens.weight"]), p + "enorm.weight")
        x = torch.cat((e, self.rms(hidden[:, :-1], p + "hnorm.weight")), -1) @ self.w[p + "eh_proj.weight"].T
        t = x.shape[1]
        if positions is None:
            positions = torch.arange(t, device=ids.device)[None]
        if mask is None:
            mask = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril()[None, None]
        x = self.layer(x, n, positions, mask)
        return (self.rms(x, p + "shared_head.norm.weight") @ self.w[p + "shared_head.head.weight"].T).float()


@torch.no_grad()
def generate(model, prompts, limits, eos, device, expert_mask=None):
    """Greedy continuation of many prompts at once (left-padded, finished rows are dropped). Returns lists of ids."""
    order, longest = list(range(len(prompts))), max(map(len, prompts))
    capacity = longest + max(limits)
    ids = torch.full((len(prompts), longest), 2, dtype=torch.long)
    pad = torch.tensor([longest - len(p) for p in prompts])
    for i, p in enumerate(prompts):
        ids[i, longest - len(p):] = torch.tensor(p)
    ids, pad = ids.to(device), pad.to(device)
    model.expert_mask = expert_mask
    caches = [Cache() for _ in range(model.c["num_hidden_layers"])]
    columns = torch.arange(longest, device=device)
    visible = columns[None] >= pad[:, None]
    mask = (visible[:, None, :] & (columns[:, None] >= columns[None])[None])[:, None]
    mask = mask | torch.eye(longest, dtype=torch.bool, device=device)
    positions = (columns[None] - pad[:, None]).clamp(min=0)
    hidden = model.hidden(ids, positions, mask, caches, 0, capacity)[:, -1:]
    results, at = [[] for _ in prompts], longest
    limit = torch.tensor(limits, device=device)
    step_tokens, alive = [], torch.arange(len(prompts), device=device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    produced = 0
    while True:
        token = model.logits(hidden)[:, -1].argmax(-1)
        step_tokens.append((alive, token))
        produced += 1
        done = done | (token == eos) | (produced >= limit[alive])
        if produced % 16 == 0 or produced >= max(limits):
            keep = ~done
            if not bool(keep.any()):
                break
            if int(keep.sum()) < 0.75 * len(alive):
                for c in caches:
                    c.k, c.v = c.k[keep], c.v[keep]
                alive, token, pad, done = alive[keep], token[keep], pad[keep], done[keep]
                if model.expert_mask is not None:
                    model.expert_mask = model.expert_mask[keep]
        columns = torch.arange(at + 1, device=device)
        mask = (columns[None] >= pad[:, None])[:, None, None]
        hidden = model.hidden(token[:, None], (at - pad)[:, None], mask, caches, at, capacity)
        at += 1
    for rows, tokens in step_tokens:
        for r, t in zip(rows.tolist(), tokens.tolist()):
            if len(results[r]) < limits[r] and (not results[r] or results[r][-1] != eos):
                results[r].append(t)
    model.expert_mask = None
    return results
