#!/usr/bin/env python3
"""Golden tensors of FLUX.1's transformer and text encoders at tiny sizes: make_flux_golden.py OUTDIR

Needs torch, diffusers, transformers and safetensors. Writes flux_a.safetensors and
flux_b.safetensors: weights (bfloat16, under transformer., clip., t5.) as diffusers and transformers
name them, their configurations as metadata, inputs and outputs (under want.; float32, computed in float32 from
the stored weights). No size is a multiple of 64; b has no guidance input, unusual rotary axes,
a batch of two pictures with a prompt each, and a DistillT5 projection behind T5.
"""
import json
import sys
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors.torch import save_file

CASES = {
    "a": dict(heads=1, head=32, axes=(4, 14, 14), doubles=1, singles=1, guidance=True, batch=1, text=7,
              rows=3, columns=4, steps=2, clip=dict(hidden_size=24, intermediate_size=40,
              num_attention_heads=12, num_hidden_layers=2, eos_token_id=2), projection=0,
              t5=dict(d_model=40, d_ff=56, d_kv=12, num_heads=3, num_layers=2)),
    "b": dict(heads=3, head=12, axes=(4, 4, 4), doubles=1, singles=2, guidance=False, batch=2, text=5,
              rows=2, columns=5, steps=2, clip=dict(hidden_size=18, intermediate_size=30,
              num_attention_heads=3, num_hidden_layers=3, eos_token_id=119, hidden_act="gelu"), projection=36,
              t5=dict(d_model=20, d_ff=28, d_kv=10, num_heads=2, num_layers=2)),
}
VOCAB = 120


def randomised(module, generator):
    """Every part shows: no gate or modulation is zero, norms' weights differ from one."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise * (1.0 / p.shape[-1]) ** 0.5)
            else:
                p.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
            p.copy_(p.bfloat16().float())
    return module.eval()


def stored(prefix, module):
    return {prefix + k: v.bfloat16().contiguous() for k, v in module.state_dict().items()
            if not k.endswith("position_ids")}


def flux(case, out, meta, gen):
    pooled_dim, joint = 20, case["projection"] or case["t5"]["d_model"]
    config = dict(attention_head_dim=case["head"], num_attention_heads=case["heads"], num_layers=case["doubles"],
                  num_single_layers=case["singles"], joint_attention_dim=joint, pooled_projection_dim=pooled_dim,
                  in_channels=16, axes_dims_rope=case["axes"], guidance_embeds=case["guidance"])
    model = randomised(diffusers.FluxTransformer2DModel(**config), gen)
    out |= stored("transformer.", model)
    meta["transformer"] = json.dumps({"_class_name": "FluxTransformer2DModel", **config})
    batch, text, rows, columns = (case[k] for k in ("batch", "text", "rows", "columns"))
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None]
    states = torch.randn(batch, text, joint, generator=gen)
    pooled = torch.randn(batch, pooled_dim, generator=gen)
    tokens = torch.randn(case["steps"], batch, rows * columns, 16, generator=gen)
    times = torch.tensor([0.93, 0.31])[: case["steps"]]
    velocity = [model(hidden_states=x, encoder_hidden_states=states, pooled_projections=pooled,
                      timestep=t.repeat(batch), img_ids=ids.reshape(-1, 3), txt_ids=torch.zeros(text, 3),
                      guidance=torch.full((batch,), 3.5) if case["guidance"] else None).sample
                for x, t in zip(tokens, times)]
    meta |= {"grid": f"{rows}x{columns}"}
    out |= {"want.flux.states": states, "want.flux.pooled": pooled, "want.flux.tokens": tokens, "want.flux.times": times,
            "want.flux.velocity": torch.stack(velocity)}


def clip(case, out, meta, gen):
    config = transformers.CLIPTextConfig(vocab_size=VOCAB, max_position_embeddings=13, projection_dim=14,
                                         bos_token_id=118, pad_token_id=1,
                                         **{"hidden_act": "quick_gelu", **case["clip"]})
    model = randomised(transformers.CLIPTextModelWithProjection(config), gen)
    out |= stored("clip.", model)
    meta["clip"] = json.dumps(config.to_dict(), default=str)
    ids = torch.randint(2, 117, (2, 13), generator=gen)
    ids[:, 0] = 118
    ids[0, 6:], ids[1, 12] = 119, 119
    got = model(input_ids=ids, output_hidden_states=True)
    # The norm and pooling as the model without projection gives them.
    final = model.text_model.final_layer_norm(got.hidden_states[-1])
    end = (ids == 119).int().argmax(-1)
    out |= {"want.clip.ids": ids.int(), "want.clip.last": got.hidden_states[-1], "want.clip.before": got.hidden_states[-2],
            "want.clip.before_normed": model.text_model.final_layer_norm(got.hidden_states[-2]),
            "want.clip.pooled": final[torch.arange(2), end], "want.clip.projected": got.text_embeds}


def t5(case, out, meta, gen):
    config = transformers.T5Config(vocab_size=VOCAB, feed_forward_proj="gated-gelu", dense_act_fn="gelu_new",
                                   is_gated_act=True, tie_word_embeddings=False, **case["t5"])
    model = randomised(transformers.T5EncoderModel(config), gen)
    weights = stored("t5.", model)
    weights.pop("t5.encoder.embed_tokens.weight", None)
    meta["t5"] = json.dumps(config.to_dict(), default=str)
    ids = torch.randint(2, VOCAB, (2, 40), generator=gen)
    ids[:, 30:] = 0
    mask = (torch.arange(40)[None] < torch.tensor([[31], [17]])).long()
    tail = torch.nn.Identity()
    if case["projection"]:
        hidden = 33
        tail = randomised(torch.nn.Sequential(torch.nn.Linear(config.d_model, hidden, bias=False), torch.nn.ReLU(),
                                              torch.nn.Dropout(0.0),
                                              torch.nn.Linear(hidden, case["projection"], bias=False)), gen)
        weights |= stored("t5.final_projection.", tail)
    out |= weights
    out |= {"want.t5.ids": ids.int(), "want.t5.states": tail(model(input_ids=ids).last_hidden_state),
            "want.t5.masked": tail(model(input_ids=ids, attention_mask=mask).last_hidden_state)}
    relative = torch.arange(-700, 701)
    attention = model.encoder.block[0].layer[0].SelfAttention
    out["want.t5.buckets"] = attention._relative_position_bucket(relative, num_buckets=32, max_distance=128).int()


@torch.no_grad()
def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for n, (name, case) in enumerate(CASES.items()):
        gen, out, meta = torch.Generator().manual_seed(n), {}, {}
        for part in (flux, clip, t5):
            part(case, out, meta, gen)
        save_file({k: v.contiguous() for k, v in out.items()}, folder / f"flux_{name}.safetensors", meta)


main()
