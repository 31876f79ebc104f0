"""Reading and writing the Hugging Face directory: names, FP8 blocks, shards."""
import json
import pathlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from quant import dequantise, weight_blocks


def load_dequantised(directory, dtype=torch.float32, device="cpu"):
    """All tensors of a checkpoint; FP8 weights times their scales (transformers' own dequantiser refuses 576 rows)."""
    directory = pathlib.Path(directory)
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    raw = {}
    for shard in sorted(set(index.values())):
        with safe_open(directory / shard, "pt") as f:
            raw.update({k: f.get_tensor(k) for k in f.keys()})
    out = {}
    for name, tensor in raw.items():
        if name.endswith("_scale_inv"):
            continue
        if name + "_scale_inv" in raw:
            tensor = dequantise(tensor, raw[name + "_scale_inv"])
        keep = name.endswith("e_score_correction_bias")
        out[name] = tensor.to(device, torch.float32 if keep else dtype)
    return out


def load_config(directory):
    return json.loads((pathlib.Path(directory) / "config.json").read_text())


def load_transformers(config, tensors, dtype=torch.float32, device="cpu"):
    """transformers' own class over dequantised weights (MTP tensors left out, as it has no MTP layer)."""
    from transformers import AutoConfig, AutoModelForCausalLM
    plain = {k: v for k, v in config.items() if k != "quantization_config"}
    kind = plain.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **plain), dtype=dtype, attn_implementation="sdpa")
    state = model.state_dict()
    mtp = f"model.layers.{config['num_hidden_layers']}."
    used = {k: v for k, v in tensors.items() if not k.startswith(mtp)}
    prepared = pack_experts(used, state)
    missing, unexpected = model.load_state_dict(prepared, strict=False)
    missing = [k for k in missing if "inv_freq" not in k]
    if missing or unexpected:
        raise SystemExit(f"transformers does not take the checkpoint: missing {missing[:4]}, unexpected {unexpected[:4]}")
    return model.to(device).eval()


def pack_experts(tensors, state):
    """transformers 5 keeps the experts of a layer in two stacked parameters; older ones take the names as they are."""
    out = {k: v for k, v in tensors.items() if ".mlp.experts." not in k or k in state}
    for name, slot in state.items():
        if name.endswith("mlp.experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            count = slot.shape[0]
            gate_up = [torch.cat((tensors[f"{prefix}{e}.gate_proj.weight"], tensors[f"{prefix}{e}.up_proj.weight"])) for e in range(count)]
            down = [tensors[f"{prefix}{e}.down_proj.weight"] for e in range(count)]
            out[name], out[prefix + "down_proj"] = torch.stack(gate_up), torch.stack(down)
    return out


def is_fp8(name):
    return name.endswith("proj.weight") and not name.endswith("eh_proj.weight") or name.endswith("kv_a_proj_with_mqa.weight")


def save_checkpoint(directory, tensors, shard_bytes_max=11_500_000):
    """tensors: float32 by checkpoint name. Linear weights become FP8 with scales, the rest BF16, the router bias stays FP32."""
    directory = pathlib.Path(directory)
    stored = {}
    for name, tensor in tensors.items():
        if is_fp8(name):
            q, scale = weight_blocks(tensor.float())
            stored[name], stored[name + "_scale_inv"] = q.contiguous(), scale.contiguous()
        elif name.endswith("e_score_correction_bias"):
            stored[name] = tensor.float().contiguous()
        else:
            stored[name] = tensor.to(torch.bfloat16).contiguous()
    shards, size = [{}], 0
    for name, tensor in stored.items():
        bytes_ = tensor.numel() * tensor.element_size()
        if size + bytes_ > shard_bytes_max:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += bytes_
    weight_map, total = {}, 0
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map.update({k: file for k in shard})
        total += sum(v.numel() * v.element_size() for v in shard.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=1) + "\n")
    return [f.stat().st_size for f in sorted(directory.glob("model-*.safetensors"))]
