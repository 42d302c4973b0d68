// vae_open.c: which autoencoder files hold, and its weights bound. See vae.h.
#include "engine/vae_impl.h"

#include "backend/os.h"
#include "engine/json.h"

#include <math.h>

// Training code's leavings in single-file checkpoints, and what diffusers' fuse_qkv_projections has
// stacked beside its pieces.
static const char *const IGNORED[] = {"loss.", "model_ema.", "*.to_qkv.weight", "*.to_qkv.bias", NULL};

static const char *const PREFIXES[] = {"", "vae.", "first_stage_model."};

static int64_t count_numbers(const BoundWeight *b) {
    int64_t n = b->pieces > 0;
    for (int i = 0; i < b->ndim; i++) n *= b->shape[i];
    return n;
}

// Binds wants, of which the first `encoder` are the encoder's, in both halves.
static bool bind_halves(Vae *vae, const Weights *w, const BindWant *wants, int count, int encoder,
                        BindNames *names, void *user, Error *err) {
    const BindOptions options = {.names = names, .user = user, .type = DT_COUNT, .ignore = IGNORED};
    BoundWeight *bound = bind_weights(vae, w, wants, count, &options, err);
    if (!bound) return false;
    if (encoder) vae->half[VAE_ENCODE].count = encoder, vae->half[VAE_ENCODE].weight = bound;
    if (count > encoder)
        vae->half[VAE_DECODE].count = count - encoder, vae->half[VAE_DECODE].weight = bound + encoder;
    for (int i = 0; i < count; i++) vae->info.parameters += count_numbers(&bound[i]);
    return true;
}

// ---- the two kinds ----------------------------------------------------------------------------

static bool open_kl(Vae *vae, const Weights *w, const ConfigFile *config, Error *err) {
    KlConfig *c = MEM_NEW(vae, KlConfig);
    if (!kl_config(w, config, c, err)) return false;
    int count, encoder;
    BindWant *wants = kl_wants(vae, c, &count, &encoder);
    if (!bind_halves(vae, w, wants, count, encoder, kl_names, c, err)) return false;
    if (c->encoder) vae->half[VAE_ENCODE].kl = *c;
    if (c->decoder) vae->half[VAE_DECODE].kl = *c;
    vae->info.kind = VAE_KL;
    vae->info.name = "AutoencoderKL";
    vae->info.channels = c->channels;
    vae->info.factor = kl_factor(c);
    vae->info.scale = c->scale;
    vae->info.shift = c->shift;
    return true;
}

static bool tiny_config(const ConfigFile *file, VaeInfo *info, Error *err) {
    info->scale = 1;
    if (!file || !file->text) return true;
    Json *root = config_parse(file, err);
    if (!root) return false;
    const ConfigFact facts[] = {{"in_channels", 3}, {"out_channels", 3}, {"latent_channels", info->channels}};
    const double most = KL_MAX_SCALE;
    bool ok = config_agrees(file, root, facts, COUNT_OF(facts), err) &&
              config_number(file, root, "scaling_factor", -most, most, &info->scale, err) &&
              config_number(file, root, "shift_factor", -most, most, &info->shift, err);
    json_free(root);
    if (ok && info->scale == 0)
        ok = err_failed(err, "%s: expected a scaling_factor other than 0, found 0", file->path);
    return ok;
}

static bool open_tiny(Vae *vae, const Weights *w, const TaesdHalf half[VAE_HALVES],
                      const ConfigFile *config, Error *err) {
    BindWant *wants[VAE_HALVES];
    int n[VAE_HALVES] = {0};
    for (int i = 0; i < VAE_HALVES; i++) {
        wants[i] = half[i].layers ? taesd_wants(vae, &half[i], &n[i]) : NULL;
        if (half[i].layers) vae->half[i].tiny = half[i];
    }
    int e = n[VAE_ENCODE], d = n[VAE_DECODE];
    BindWant *all = MEM_ARRAY(vae, BindWant, e + d);
    if (e) memcpy(all, wants[VAE_ENCODE], sizeof *all * (size_t)e);
    if (d) memcpy(all + e, wants[VAE_DECODE], sizeof *all * (size_t)d);
    const TaesdHalf *one = &half[d ? VAE_DECODE : VAE_ENCODE];
    vae->info.kind = VAE_TINY;
    vae->info.name = "TAESD";
    vae->info.channels = one->channels;
    vae->info.factor = one->factor;
    return bind_halves(vae, w, all, e + d, e, NULL, NULL, err) && tiny_config(config, &vae->info, err);
}

// ---- opening ----------------------------------------------------------------------------------

// diffusers' configuration names its class; some autoencoders share names of tensors with ours.
static bool check_class(const ConfigFile *config, Error *err) {
    Json *root = config_parse(config, err);
    if (!root) return false;
    const char *name = "AutoencoderKL";
    bool ok = config_text(config, root, "_class_name", &name, err) &&
              (!strcmp(name, "AutoencoderKL") || !strcmp(name, "AutoencoderTiny") ||
               err_failed(err, "%s: expected an AutoencoderKL or AutoencoderTiny, found %s", config->path,
                          name));
    json_free(root);
    return ok;
}

// Adds what `w` holds to the Vae; false with an error where that is no autoencoder.
static bool open_into(Vae *vae, const Weights *w, const ConfigFile *config, Error *err) {
    if (config && config->text && !check_class(config, err)) return false;
    for (size_t i = 0; i < COUNT_OF(PREFIXES); i++) {
        const Weights *part = *PREFIXES[i] ? weights_part(vae, w, PREFIXES[i]) : w;
        if (!part || !weights_count(part)) continue;
        if (kl_found(part, "")) return open_kl(vae, part, config, err);
        TaesdHalf *half = MEM_ARRAY(vae, TaesdHalf, VAE_HALVES);
        if (!taesd_find(part, false, &half[VAE_ENCODE], err) ||
            !taesd_find(part, true, &half[VAE_DECODE], err))
            return false;
        if (half[VAE_ENCODE].layers || half[VAE_DECODE].layers)
            return open_tiny(vae, part, half, config, err);
    }
    return err_failed(err, "%s: expected an autoencoder (AutoencoderKL or TAESD), found other tensors "
                      "(%s first)", weights_path(w),
                      weights_count(w) ? weights_at(w, 0)->name : "none");
}

static Vae *finished(Vae *vae, bool ok) {
    if (!ok) {
        vae_close(vae);
        return NULL;
    }
    vae->info.encoder = vae->half[VAE_ENCODE].count > 0;
    vae->info.decoder = vae->half[VAE_DECODE].count > 0;
    return vae;
}

Vae *vae_open(void *parent, const Weights *w, const ConfigFile *config, Error *err) {
    Vae *vae = MEM_NEW(parent, Vae);
    vae->path = mem_strdup(vae, weights_path(w));
    return finished(vae, open_into(vae, w, config, err));
}

// One file of a pair: the half that is asked for, and no other.
static bool open_half(Vae *vae, const Weights *w, VaePass half, Error *err) {
    static const char *const NAMES[] = {[VAE_DECODE] = "decoder", [VAE_ENCODE] = "encoder"};
    VaeInfo before = vae->info;
    if (!open_into(vae, w, NULL, err)) return false;
    if (!vae->half[half].count)
        return err_failed(err, "%s: expected the %s of an autoencoder, found its %s", weights_path(w),
                          NAMES[half], NAMES[half == VAE_DECODE ? VAE_ENCODE : VAE_DECODE]);
    if (before.name && (before.kind != vae->info.kind || before.channels != vae->info.channels ||
                        before.factor != vae->info.factor))
        return err_failed(err, "%s: expected the other half of a %s with %d channels, found a %s with %d",
                          weights_path(w), before.name, before.channels, vae->info.name,
                          vae->info.channels);
    return true;
}

Vae *vae_open_pair(void *parent, const Weights *encoder, const Weights *decoder, Error *err) {
    Vae *vae = MEM_NEW(parent, Vae);
    vae->path = mem_strdup(vae, weights_path(encoder ? encoder : decoder));
    bool ok = (!encoder || open_half(vae, encoder, VAE_ENCODE, err)) &&
              (!decoder || open_half(vae, decoder, VAE_DECODE, err));
    return finished(vae, ok);
}

void vae_close(Vae *vae) {
    if (!vae) return;
    Weights *owned[VAE_HALVES];
    memcpy(owned, vae->owned, sizeof owned);
    mem_free(vae);
    for (int i = 0; i < VAE_HALVES; i++) weights_close(owned[i]);
}

VaeInfo vae_info(const Vae *vae) { return vae->info; }

// ---- by path ----------------------------------------------------------------------------------

static bool is_weights(const char *name) {
    static const char *const ends[] = {".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".gguf"};
    for (size_t i = 0; i < COUNT_OF(ends); i++)
        if (str_ends(name, ends[i])) return true;
    return false;
}

// `*_encoder.*` and `*_decoder.*` in a folder; false with an error where there are several.
static bool find_pair(void *parent, const char *dir, char *pair[VAE_HALVES], Error *err) {
    static const char *const ROLES[] = {[VAE_DECODE] = "_decoder.", [VAE_ENCODE] = "_encoder."};
    char **names;
    int count;
    if (!os_list(parent, dir, &names, &count, err)) return false;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < VAE_HALVES; k++) {
            if (!is_weights(names[i]) || !strstr(names[i], ROLES[k])) continue;
            if (pair[k])
                return err_failed(err, "%s: expected one *%s* file, found %s and another; name the file "
                                  "or make a folder for each pair", dir, ROLES[k], names[i]);
            pair[k] = os_path_join(parent, dir, names[i]);
        }
    return true;
}

// config.json beside the weights, where it is an autoencoder's; else without text.
static bool read_config(void *parent, const char *dir, ConfigFile *out, Error *err) {
    if (!config_read(parent, dir, "config.json", out, err)) return false;
    Json *root = out->text ? config_parse(out, err) : NULL;
    if (out->text && !root) return false;
    if (!strstr(json_string(json_get(root, "_class_name"), ""), "Autoencoder")) out->text = NULL;
    json_free(root);
    return true;
}

static bool open_folder_or_file(Vae *vae, const char *path, Error *err) {
    ConfigFile config;
    char *dir = os_path_kind(path) == PATH_DIR ? mem_strdup(vae, path) : os_dir_name(vae, path);
    if (!read_config(vae, dir, &config, err)) return false;
    vae->owned[0] = weights_open(NULL, path, err);
    return vae->owned[0] && open_into(vae, vae->owned[0], &config, err);
}

static bool open_at(Vae *vae, const char *path, Error *err) {
    char *pair[VAE_HALVES] = {NULL}, *below = os_path_join(vae, path, "vae");
    PathKind kind = os_path_kind(path);
    if (kind == PATH_NONE)
        return err_failed(err, "%s: expected an autoencoder's file or folder, found none; check the "
                          "path", path);
    if (kind == PATH_FILE) return open_folder_or_file(vae, path, err);
    if (os_path_kind(below) == PATH_DIR) return open_folder_or_file(vae, below, err);
    if (!find_pair(vae, path, pair, err)) return false;
    if (!pair[VAE_ENCODE] && !pair[VAE_DECODE]) return open_folder_or_file(vae, path, err);
    for (int k = VAE_HALVES - 1; k >= 0; k--) {
        if (!pair[k]) continue;
        vae->owned[k] = weights_open(NULL, pair[k], err);
        if (!vae->owned[k] || !open_half(vae, vae->owned[k], (VaePass)k, err)) return false;
    }
    return true;
}

Vae *vae_open_path(void *parent, const char *path, Error *err) {
    Vae *vae = MEM_NEW(parent, Vae);
    vae->path = mem_strdup(vae, path);
    return finished(vae, open_at(vae, path, err));
}
