"""E4M3 with 128x128 weight blocks and 1x128 activation groups, as DeepSeek stores and computes them."""
import torch

BLOCK, E4M3_MAX = 128, 448.0


def weight_blocks(w):
    """w [..., n, k] float32 -> (e4m3 [..., n, k], scale_inv float32 [..., ceil(n/128), ceil(k/128)])."""
    n, k = w.shape[-2:]
    bn, bk = -(-n // BLOCK), -(-k // BLOCK)
    padded = torch.nn.functional.pad(w, (0, bk * BLOCK - k, 0, bn * BLOCK - n))
    tiles = padded.reshape(*w.shape[:-2], bn, BLOCK, bk, BLOCK)
    scale = tiles.abs().amax(dim=(-3, -1)).clamp(min=1e-12) / E4M3_MAX
    q = (tiles / scale[..., :, None, :, None]).to(torch.float8_e4m3fn).reshape(*w.shape[:-2], bn * BLOCK, bk * BLOCK)
    return q[..., :n, :k], scale


def dequantise(q, scale):
    """The inverse: a multiplication, despite the name weight_scale_inv."""
    n, k = q.shape[-2:]
    full = scale.repeat_interleave(BLOCK, -2)[..., :n, :].repeat_interleave(BLOCK, -1)[..., :k]
    return q.to(torch.float32) * full


def quantised_weight(w):
    return dequantise(*weight_blocks(w))


def quantised_activation(x):
    """x [..., k] through E4M3 in groups of 128 (amax clamped at 1e-4, as the reference does); same dtype as x."""
    groups = x.float().unflatten(-1, (-1, BLOCK))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-4) / E4M3_MAX
    return ((groups / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2).to(x.dtype)
