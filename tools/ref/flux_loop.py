"""FLUX.1 pictures by the parts of a diffusers pipeline, with the settings that diffusers' own loop has
not: a fixed shift, ancestral and second-order samplers, guidance schedules and intervals, dynamic
thresholding, DistillT5's projection. Truth for check_flux_options.py and make_flux_tiny.py.

    picture(pipe, case) -> {"image": [N, H, W, 3] uint8, "latent": [N, C, h, w], "sigmas", "steps": [...]}

case: prompt, negative, width, height, steps, seed, tokens, guidance, cfg, interval (lo, hi),
cfg_schedule, threshold, shift, sampler, init ([H, W, 3] uint8), strength, count, states (text encoder
outputs in place of T5's: {prompt: [1, T, J]}), pooled (in place of CLIP's: {prompt: [1, D]}).
"""
import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift


def sigmas_of(pipe, case):
    n, config = case["steps"], pipe.scheduler.config
    sigmas = np.linspace(1.0, 1 / n, n)
    if case.get("shift"):
        fresh = type(pipe.scheduler)(num_train_timesteps=1000, shift=case["shift"], use_dynamic_shifting=False)
        fresh.set_timesteps(sigmas=sigmas)
        out = fresh.sigmas
    else:
        tokens = (case["height"] // 16) * (case["width"] // 16)
        mu = calculate_shift(tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift,
                             config.max_shift)
        pipe.scheduler.set_timesteps(sigmas=sigmas, mu=mu)
        out = pipe.scheduler.sigmas
    first = 0
    if case.get("init") is not None:
        first = int(max(n - min(n * case["strength"], n), 0))
    return out[first:].clone()


def guidance_scales(case, n):
    u = (np.arange(n) + 0.5) / n
    s = case.get("cfg", 1.0)
    w = {"constant": np.ones(n), "triangle": 1 - abs(2 * u - 1), "cosine": (1 - np.cos(2 * np.pi * u)) / 2}[
        case.get("cfg_schedule", "constant")]
    scale = 1 + (s - 1) * w / w.mean()
    lo, hi = case.get("interval", (0, 1))
    return np.where((u >= lo) & (u <= hi), scale, 1.0)


def threshold(x, sigma, cond, guided, q):
    """Per picture: the guided clean latent is clamped to its quantile and scaled to the conditional's."""
    out = guided.clone()
    for k in range(x.shape[0]):
        clean_c, clean_g = x[k] - sigma * cond[k], x[k] - sigma * guided[k]
        q_c, q_g = (c.flatten().abs().double().quantile(q) for c in (clean_c, clean_g))
        out[k] = (x[k] - clean_g.clamp(-q_g, q_g) * (q_c / q_g)) / sigma
    return out


def step_of(sampler, x, v, s, i, last, generators):
    a, b = float(s[i]), float(s[i + 1])
    clean = x - a * v
    if sampler == "euler":
        return x + (s[i + 1] - s[i]) * v, clean
    if b == 0:
        return clean, clean
    if sampler == "euler_ancestral":  # ComfyUI's form for rectified flows, eta 1
        down = b * b / a
        x = down / a * x + (1 - down / a) * clean
        keep = (1 - b) / (1 - down)
        noise = draw(x.shape, generators)
        return keep * x + noise * (b * b - (down * keep) ** 2) ** 0.5, clean
    assert sampler == "dpmpp_2m"
    h = np.log(a / b)
    d = clean
    if last is not None:
        r = np.log(float(s[i - 1]) / a) / h
        d = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * last
    return b / a * x - np.expm1(-h) * d, clean


def draw(shape, generators):
    return torch.cat([torch.randn((1, *shape[1:]), generator=g) for g in generators])


@torch.no_grad()
def picture(pipe, case):
    count, w, h = case.get("count", 1), case["width"], case["height"]
    channels, vae = pipe.transformer.config.in_channels // 4, pipe.vae
    generators = [torch.Generator("cpu").manual_seed(case["seed"] + k) for k in range(count)]
    encoded = []
    for text in (case["prompt"], case.get("negative") or ""):
        embeds, pooled, ids = pipe.encode_prompt(prompt=text, prompt_2=text, max_sequence_length=case["tokens"])
        if "states" in case:
            embeds = case["states"][text]
            ids = torch.zeros(embeds.shape[1], 3)
        if "pooled" in case:
            pooled = case["pooled"][text]
        encoded.append((embeds, pooled, ids))
    sigmas = sigmas_of(pipe, case)
    shape = (count, channels, h // 8, w // 8)
    start = None
    if case.get("init") is not None:
        image = torch.from_numpy(case["init"]).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        z = torch.cat([vae.encode(image).latent_dist.sample(g) for g in generators])
        start = (z - vae.config.shift_factor) * vae.config.scaling_factor
    noise = draw(shape, generators)
    x = noise if start is None else sigmas[0] * noise + (1 - sigmas[0]) * start
    img_ids = pipe._prepare_latent_image_ids(1, h // 16, w // 16, "cpu", torch.float32)
    dev = pipe.transformer.config.guidance_embeds
    guidance = torch.full([1], case.get("guidance", 3.5)) if dev else None

    def ask(x, sigma, which):
        embeds, pooled, ids = encoded[which]
        out = []
        for k in range(count):
            tokens = pipe._pack_latents(x[k:k + 1], 1, channels, h // 8, w // 8)
            t = (sigma * 1000).expand(1)  # the pipeline's roundings
            v = pipe.transformer(hidden_states=tokens, timestep=t / 1000, guidance=guidance, pooled_projections=pooled,
                                 encoder_hidden_states=embeds, txt_ids=ids, img_ids=img_ids, return_dict=False)[0]
            out.append(pipe._unpack_latents(v, h, w, 8))
        return torch.cat(out)

    scales = guidance_scales(case, len(sigmas) - 1)
    last, steps = None, []
    for i in range(len(sigmas) - 1):
        v = cond = ask(x, sigmas[i], 0)
        if scales[i] != 1:
            uncond = ask(x, sigmas[i], 1)
            v = uncond + float(scales[i]) * (cond - uncond)
        if case.get("threshold"):
            v = threshold(x, sigmas[i], cond, v, case["threshold"])
        x, last = step_of(case.get("sampler", "euler"), x, v, sigmas, i, last, generators)
        steps.append(x.clone())
    decoded = vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
    image = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return dict(image=(image * 255).round().astype(np.uint8), latent=x.numpy(), sigmas=sigmas.numpy(), noise=noise.numpy(),
                steps=[s.numpy() for s in steps])


@torch.no_grad()
def weighted(pipe, phrases, tokens):
    """(states [1, tokens, J], pooled [1, D]) of phrases [(text, weight)] with None at each BREAK, as A1111 tokenises
    them, one by one: T5's states times the weights, CLIP's pooled state of what stands before the first BREAK."""
    def ids_of(tokenizer, phrases, room):
        ids, weights = [], []
        for text, weight in filter(None, phrases):
            new = tokenizer(text, add_special_tokens=False).input_ids
            ids, weights = ids + new, weights + [weight] * len(new)
        assert len(ids) <= room
        return ids, weights

    ids, weights = ids_of(pipe.tokenizer_2, phrases, tokens - 1)
    padding = tokens - 1 - len(ids)
    states = pipe.text_encoder_2(torch.tensor([ids + [1] + [0] * padding]))[0]
    states = states * torch.tensor(weights + [1.0] * (padding + 1))[:, None]
    first = phrases[:phrases.index(None)] if None in phrases else phrases
    ids = ids_of(pipe.tokenizer, first, 75)[0]
    pooled = pipe.text_encoder(torch.tensor([[49406] + ids + [49407] * (76 - len(ids))])).pooler_output
    return states, pooled


def distilled(encoder, tokenizer, w0, w3, text, tokens, width):
    """States of a T5-Base behind final_projection.0 and .3, [1, tokens, width]; None: padded with zeros."""
    ids = tokenizer(text, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        x = encoder(ids)[0]
        if w0 is not None:
            return torch.relu(x @ w0.T) @ w3.T
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))
