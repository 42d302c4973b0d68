// dataset.c: CIFAR files, class folders and WebDataset shards behind one interface. See dataset.h.
#include "engine/dataset.h"

#include "backend/os.h"
#include "engine/gzip.h"
#include "engine/tar.h"

enum { CIFAR_SIDE = 32, CIFAR_PIXELS = 3 * 32 * 32, CIFAR_RECORD = 1 + CIFAR_PIXELS };
enum { META_LIMIT = 1 << 24, NAME_TEXT = 256, CLS_TEXT = 24, MAX_SAMPLES = 1 << 30 };
static const size_t CACHE_LIMIT = (size_t)1 << 30, MEMORY_LIMIT = (size_t)2 << 30;
static const char *const PICTURE_ENDS[] = {".jpg", ".jpeg", ".png"};
static const char *const SHARD_ENDS[] = {".tar", ".tar.gz", ".tgz"};
static const char *const CIFAR_NAMES[] = {"airplane", "automobile", "bird",  "cat",  "deer",
                                          "dog",      "frog",       "horse", "ship", "truck"};

// A file that holds many samples: a CIFAR batch or a shard.
typedef struct Part {
    const char *name;
    FileMap map;         // empty when the bytes came from memory
    const uint8_t *data; // the map's, or unpacked ones
    size_t size;
} Part;

typedef struct Sample {
    int label, part, record; // part -1: a file of its own; record: CIFAR's number in the part
    const char *name;        // folder: file name; shards: key; CIFAR: NULL
    const uint8_t *data;     // CIFAR: planes; shards: the picture file; folder: NULL
    const uint8_t *json;
    size_t size, json_size;
} Sample;

struct Dataset {
    DatasetKind kind;
    DatasetOptions options;
    char *path;
    size_t unpacked;  // bytes of gzip shards so far
    bool names_known; // the classes came from a file or from folders
    ARRAY(char *) classes;
    ARRAY(Part) parts;
    ARRAY(Sample) samples;
    ARRAY(char *) damage; // the first ones, "NAME: why"
    int damaged;
    DatasetShape *shapes; // [samples.n] after decoding
    uint8_t *cache;       // [samples.n, 3, cache_size, cache_size]
    int cache_size;
};

static bool ends_in(const char *name, const char *const *ends, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (str_ends(name, ends[i])) return true;
    return false;
}

static bool is_picture(const char *name) {
    return ends_in(name, PICTURE_ENDS, COUNT_OF(PICTURE_ENDS));
}
static bool is_shard(const char *name) { return ends_in(name, SHARD_ENDS, COUNT_OF(SHARD_ENDS)); }

static void add_damage(Dataset *set, const char *name, const char *why) {
    set->damaged++;
    if (set->damage.n >= DATASET_KEPT_DAMAGE) return;
    char *line = mem_printf(set, "%s: %s", name, why);
    ARR_PUSH(set, &set->damage, line);
}

static bool add_sample(Dataset *set, Sample sample, Error *err) {
    if (set->samples.n >= MAX_SAMPLES)
        return err_failed(err, "%s: expected at most %d pictures, found more; split it", set->path,
                          MAX_SAMPLES);
    ARR_PUSH(set, &set->samples, sample);
    return true;
}

static bool is_printable(const char *text) {
    for (const char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) return false;
    return true;
}

// ---- CIFAR-10 binary files ----------------------------------------------------------------------

static bool add_cifar(Dataset *set, int part, Error *err) {
    Part *p = &set->parts.v[part];
    size_t records = p->size / CIFAR_RECORD, rest = p->size % CIFAR_RECORD;
    for (size_t r = 0; r < records; r++) {
        const uint8_t *at = p->data + r * CIFAR_RECORD;
        if (at[0] < set->classes.n) {
            Sample s = {.label = at[0],
                        .part = part,
                        .record = (int)r,
                        .data = at + 1,
                        .size = CIFAR_PIXELS};
            if (!add_sample(set, s, err)) return false;
            continue;
        }
        char *name = mem_printf(NULL, "%s record %zu", p->name, r);
        char *why =
            mem_printf(name, "expected a class of 0 to %d, found %d", set->classes.n - 1, at[0]);
        add_damage(set, name, why);
        mem_free(name);
    }
    if (rest || !p->size) {
        char *why = mem_printf(NULL, "expected records of %d bytes, found %zu bytes at the end",
                               CIFAR_RECORD, rest);
        add_damage(set, p->name, p->size ? why : "expected records, found an empty file");
        mem_free(why);
    }
    return true;
}

// ---- WebDataset shards --------------------------------------------------------------------------

// The members of one sample follow each other: they are gathered until the key changes.
typedef struct Group {
    char *key;
    const uint8_t *picture, *json;
    size_t picture_size, json_size;
    int label;
    bool has_label, is_known; // is_known: a picture or a class number was there
    const char *problem;
} Group;

// The class number: digits with white space around.
static bool read_label(const uint8_t *data, size_t n, int *label) {
    size_t i = 0, digits = 0;
    long value = 0;
    while (i < n && (data[i] == ' ' || data[i] == '\t')) i++;
    for (; i < n && data[i] >= '0' && data[i] <= '9' && digits < 9; i++, digits++)
        value = value * 10 + (data[i] - '0');
    while (i < n && (data[i] == ' ' || data[i] == '\t' || data[i] == '\r' || data[i] == '\n')) i++;
    *label = (int)value;
    return digits && i == n;
}

static bool flush_group(Dataset *set, int part, Group *g, Error *err) {
    bool ok = true;
    const char *why = g->problem;
    if (g->key && g->is_known) {
        int classes = set->names_known ? set->classes.n : DATASET_MAX_CLASSES;
        if (!why && !g->picture) why = "expected a picture, found none";
        if (!why && !g->has_label) why = "expected a .cls member, found none";
        if (!why && g->label >= classes)
            why = "expected a class of classes.txt, found a larger number";
        if (why) {
            char *name = mem_printf(NULL, "%s: %s", set->parts.v[part].name, g->key);
            add_damage(set, name, why);
            mem_free(name);
        } else {
            Sample s = {.label = g->label,
                        .part = part,
                        .name = g->key,
                        .data = g->picture,
                        .size = g->picture_size,
                        .json = g->json,
                        .json_size = g->json_size};
            mem_move(set, g->key);
            g->key = NULL;
            ok = add_sample(set, s, err);
        }
    }
    mem_free(g->key);
    *g = (Group){0};
    return ok;
}

static void add_member(Group *g, const char *extension, const TarMember *m) {
    bool is_label = !strcmp(extension, "cls"), is_json = !strcmp(extension, "json");
    char dotted[16];
    snprintf(dotted, sizeof dotted, ".%s", extension);
    if (is_label) {
        if (g->has_label) g->problem = "expected one .cls member, found two";
        g->is_known = true;
        g->has_label = read_label(m->data, m->size, &g->label);
        if (!g->has_label && !g->problem)
            g->problem = "expected a class number in .cls, found something else";
    } else if (is_json) {
        g->json = m->data;
        g->json_size = m->size;
    } else if (is_picture(dotted)) {
        if (g->picture) g->problem = "expected one picture, found two";
        g->is_known = true;
        g->picture = m->data;
        g->picture_size = m->size;
    }
}

// One member: its key is the name up to the first dot of the base name, as WebDataset has it.
static bool take_member(Dataset *set, int part, Group *g, const TarMember *m, Error *err) {
    if (!m->is_file) return true;
    if (!tar_name_is_safe(m->name) || strlen(m->name) >= NAME_TEXT) {
        char *name = mem_printf(NULL, "%s: %.100s", set->parts.v[part].name, m->name);
        add_damage(set, name, "expected a short relative name, found a hostile one");
        mem_free(name);
        return true;
    }
    const char *dot = strchr(os_base_name(m->name), '.');
    if (!dot) return true;
    size_t n = (size_t)(dot - m->name);
    if (!g->key || strlen(g->key) != n || memcmp(g->key, m->name, n) != 0) {
        if (!flush_group(set, part, g, err)) return false;
        g->key = mem_strndup(NULL, m->name, n);
    }
    add_member(g, dot + 1, m);
    return true;
}

static bool add_shard(Dataset *set, int part, Error *err) {
    Part *p = &set->parts.v[part];
    Error why = {0};
    if (gzip_is(p->data, p->size)) {
        size_t limit = set->options.memory_limit;
        uint8_t *data =
            gzip_unpack(set, p->data, p->size, limit - MIN(limit, set->unpacked), &p->size, &why);
        os_unmap(&p->map);
        p->data = data;
        if (!data) {
            p->size = 0;
            add_damage(set, p->name, why.text);
            return true;
        }
        set->unpacked += p->size;
    }
    void *scope = mem_new(NULL, 1);
    TarReader tar = tar_reader(scope, p->data, p->size);
    Group group = {0};
    TarMember member;
    bool ok = true;
    for (TarResult r; ok && (r = tar_next(&tar, &member, &why)) != TAR_END;) {
        if (r == TAR_DAMAGED) add_damage(set, set->parts.v[part].name, why.text);
        else ok = take_member(set, part, &group, &member, err);
    }
    if (ok) ok = flush_group(set, part, &group, err);
    mem_free(group.key);
    mem_free(scope);
    return ok;
}

// ---- class folders ------------------------------------------------------------------------------

static bool add_class_folder(Dataset *set, const char *name, Error *err) {
    char *folder = os_path_join(NULL, set->path, name);
    char **files;
    int count, label = set->classes.n;
    bool ok = os_list(set, folder, &files, &count, err);
    mem_free(folder);
    if (!ok) return false;
    char *copy = mem_strdup(set, name);
    ARR_PUSH(set, &set->classes, copy);
    for (int i = 0; ok && i < count; i++) {
        if (files[i][0] == '.' || !is_picture(files[i])) continue;
        ok = add_sample(set, (Sample){.label = label, .part = -1, .name = files[i]}, err);
    }
    return ok;
}

static bool open_folder(Dataset *set, char **names, int count, Error *err) {
    void *scope = mem_new(NULL, 1);
    bool ok = true;
    set->names_known = true;
    for (int i = 0; ok && i < count; i++) {
        if (names[i][0] == '.' ||
            os_path_kind(os_path_join(scope, set->path, names[i])) != PATH_DIR)
            continue;
        if (!is_printable(names[i]))
            add_damage(set, names[i], "expected a printable class name, found another");
        else if (set->classes.n >= DATASET_MAX_CLASSES)
            ok = err_failed(err, "%s: expected at most %d class folders, found more; split it",
                            set->path, DATASET_MAX_CLASSES);
        else ok = add_class_folder(set, names[i], err);
    }
    mem_free(scope);
    return ok;
}

// ---- opening ------------------------------------------------------------------------------------

// One name a line; empty lines at the end are ignored.
static bool read_class_names(Dataset *set, const char *path, int most, Error *err) {
    size_t n;
    char *text = (char *)os_read_file(NULL, path, META_LIMIT, &n, err);
    if (!text) return false;
    while (n && (text[n - 1] == '\n' || text[n - 1] == '\r')) text[--n] = 0;
    bool ok = strlen(text) == n && n;
    for (char *line = text; ok && line;) {
        char *end = strchr(line, '\n'), *next = end ? end + 1 : NULL;
        size_t size = end ? (size_t)(end - line) : strlen(line);
        if (size && line[size - 1] == '\r') size--;
        char *name = mem_strndup(set, line, size);
        ok = set->classes.n < most && *name && is_printable(name);
        ARR_PUSH(set, &set->classes, name);
        line = next;
    }
    mem_free(text);
    set->names_known = ok;
    return ok ||
           err_failed(err,
                      "%s: expected 1 to %d class names, one a line, found something else; mend it",
                      path, most);
}

static bool find_class_names(Dataset *set, const char *dir, Error *err) {
    bool is_cifar = set->kind == DATASET_CIFAR;
    char *path =
        dir ? os_path_join(NULL, dir, is_cifar ? "batches.meta.txt" : "classes.txt") : NULL;
    bool ok = true;
    if (path && os_path_kind(path) == PATH_FILE)
        ok = read_class_names(set, path, is_cifar ? 256 : DATASET_MAX_CLASSES, err);
    else if (is_cifar)
        for (size_t i = 0; i < COUNT_OF(CIFAR_NAMES); i++) {
            char *name = mem_strdup(set, CIFAR_NAMES[i]);
            ARR_PUSH(set, &set->classes, name);
        }
    mem_free(path);
    return ok;
}

// Without classes.txt the classes are called by their numbers.
static void number_classes(Dataset *set) {
    int most = -1;
    for (int i = 0; i < set->samples.n; i++) most = MAX(most, set->samples.v[i].label);
    while (set->classes.n <= most) {
        char *name = mem_printf(set, "%d", set->classes.n);
        ARR_PUSH(set, &set->classes, name);
    }
}

static bool add_part(Dataset *set, const char *path, Error *err) {
    Part part = {.name = mem_strdup(set, os_base_name(path))};
    if (!os_map(&part.map, path, err)) return false;
    part.data = part.map.data;
    part.size = part.map.size;
    ARR_PUSH(set, &set->parts, part);
    int at = set->parts.n - 1;
    return set->kind == DATASET_CIFAR ? add_cifar(set, at, err) : add_shard(set, at, err);
}

static bool is_batch(const char *name, bool test) {
    if (test) return !strcmp(name, "test_batch.bin");
    return !strncmp(name, "data_batch_", 11) && str_ends(name, ".bin");
}

static bool open_parts(Dataset *set, char **names, int count, Error *err) {
    bool ok = find_class_names(set, set->path, err);
    for (int i = 0; ok && i < count; i++) {
        bool wanted = set->kind == DATASET_CIFAR ? is_batch(names[i], set->options.test)
                                                 : names[i][0] != '.' && is_shard(names[i]);
        if (!wanted) continue;
        char *path = os_path_join(NULL, set->path, names[i]);
        ok = add_part(set, path, err);
        mem_free(path);
    }
    return ok;
}

static bool open_dir(Dataset *set, Error *err) {
    void *scope = mem_new(NULL, 1);
    char **names;
    int count, batches = 0, shards = 0;
    bool ok = os_list(scope, set->path, &names, &count, err);
    for (int i = 0; ok && i < count; i++) {
        batches += is_batch(names[i], false) || is_batch(names[i], true);
        shards += names[i][0] != '.' && is_shard(names[i]);
    }
    set->kind = batches ? DATASET_CIFAR : shards ? DATASET_SHARDS : DATASET_FOLDER;
    if (ok)
        ok = batches || shards ? open_parts(set, names, count, err)
                               : open_folder(set, names, count, err);
    mem_free(scope);
    return ok;
}

static bool open_file(Dataset *set, Error *err) {
    if (is_shard(set->path)) set->kind = DATASET_SHARDS;
    else if (str_ends(set->path, ".bin")) set->kind = DATASET_CIFAR;
    else
        return err_failed(err,
                          "%s: expected a folder, a CIFAR .bin file or a .tar shard, found another "
                          "file; name the folder of its classes",
                          set->path);
    char *dir = os_dir_name(NULL, set->path);
    bool ok = find_class_names(set, dir, err) && add_part(set, set->path, err);
    mem_free(dir);
    return ok;
}

static bool refuse_damage(const Dataset *set, Error *err) {
    err_failed(
        err,
        "%s: expected only sound pictures, found %d damaged; mend them, or do without --strict",
        set->path, set->damaged);
    for (int i = 0; i < set->damage.n; i++) err_item(err, "%s", set->damage.v[i]);
    if (err) err->items = set->damaged;
    return false;
}

// What holds for every kind, once the samples are known.
static bool finish_open(Dataset *set, Error *err) {
    if (set->kind == DATASET_SHARDS && !set->names_known) number_classes(set);
    if (set->options.strict && set->damaged) return refuse_damage(set, err);
    if (set->samples.n) return true;
    const char *what = set->kind == DATASET_FOLDER  ? "a folder of .jpg or .png files per class"
                       : set->kind == DATASET_CIFAR ? "CIFAR-10 records"
                                                    : "pairs of .jpg or .png and .cls members";
    err_failed(err, "%s: expected %s, found none%s; check the path", set->path, what,
               set->damaged ? " whole" : "");
    for (int i = 0; i < set->damage.n; i++) err_item(err, "%s", set->damage.v[i]);
    return false;
}

static Dataset *new_set(void *parent, const char *path, const DatasetOptions *options) {
    Dataset *set = MEM_NEW(parent, Dataset);
    set->path = mem_strdup(set, path);
    if (options) set->options = *options;
    if (!set->options.memory_limit) {
        uint64_t ram = os_memory_total();
        set->options.memory_limit = ram ? (size_t)MIN(ram / 2, SIZE_MAX / 2) : MEMORY_LIMIT;
    }
    return set;
}

static Dataset *end_open(Dataset *set, bool ok, Error *err) {
    if (ok && finish_open(set, err)) return set;
    dataset_close(set);
    return NULL;
}

Dataset *dataset_open(void *parent, const char *path, const DatasetOptions *options, Error *err) {
    Dataset *set = new_set(parent, path, options);
    PathKind kind = os_path_kind(path);
    bool ok = false;
    if (kind == PATH_DIR) ok = open_dir(set, err);
    else if (kind == PATH_FILE) ok = open_file(set, err);
    else
        err_failed(err, "%s: expected a folder or file of pictures, found nothing; check the path",
                   path);
    return end_open(set, ok, err);
}

Dataset *dataset_open_memory(void *parent, DatasetKind kind, const char *name, const uint8_t *bytes,
                             size_t n, const DatasetOptions *options, Error *err) {
    Dataset *set = new_set(parent, name, options);
    set->kind = kind;
    Part part = {.name = set->path, .data = bytes, .size = n};
    ARR_PUSH(set, &set->parts, part);
    bool ok = false;
    if (kind == DATASET_FOLDER)
        err_failed(err, "%s: expected CIFAR or WebDataset bytes, found folders; open the path",
                   name);
    else if (find_class_names(set, NULL, err))
        ok = kind == DATASET_CIFAR ? add_cifar(set, 0, err) : add_shard(set, 0, err);
    return end_open(set, ok, err);
}

void dataset_close(Dataset *set) {
    if (!set) return;
    for (int i = 0; i < set->parts.n; i++) os_unmap(&set->parts.v[i].map);
    mem_free(set);
}

// ---- what is in it ------------------------------------------------------------------------------

DatasetKind dataset_kind(const Dataset *set) { return set->kind; }

const char *dataset_kind_name(DatasetKind kind) {
    static const char *const names[] = {"class folders", "CIFAR-10 binary", "WebDataset"};
    return names[kind];
}

const char *dataset_path(const Dataset *set) { return set->path; }
bool dataset_is_strict(const Dataset *set) { return set->options.strict; }
int dataset_count(const Dataset *set) { return set->samples.n; }
int dataset_class_count(const Dataset *set) { return set->classes.n; }
const char *dataset_class(const Dataset *set, int c) { return set->classes.v[c]; }
int dataset_label(const Dataset *set, int i) { return set->samples.v[i].label; }
int dataset_damage_count(const Dataset *set) { return set->damaged; }
const char *dataset_damage(const Dataset *set, int k) { return set->damage.v[k]; }
const DatasetShape *dataset_shapes(const Dataset *set) { return set->shapes; }

void dataset_name(const Dataset *set, int i, char *out, size_t size) {
    const Sample *s = &set->samples.v[i];
    if (s->part < 0) snprintf(out, size, "%s/%s", set->classes.v[s->label], s->name);
    else if (s->name) snprintf(out, size, "%s: %s", set->parts.v[s->part].name, s->name);
    else snprintf(out, size, "%s record %d", set->parts.v[s->part].name, s->record);
}

void dataset_parts(void *parent, const Dataset *set, DatasetInfo *info) {
    info->part_count = set->parts.n;
    info->parts = MEM_ARRAY(parent, DatasetPart, MAX(set->parts.n, 1));
    for (int i = 0; i < set->parts.n; i++)
        info->parts[i] = (DatasetPart){.name = mem_strdup(parent, set->parts.v[i].name)};
    for (int i = 0; i < set->samples.n; i++) {
        const Sample *s = &set->samples.v[i];
        info->bytes += s->part < 0 && set->shapes ? set->shapes[i].bytes : s->size;
        if (s->part < 0) continue;
        info->parts[s->part].count++;
        info->parts[s->part].bytes += s->size;
    }
}

// ---- reading samples ----------------------------------------------------------------------------

static bool name_error(const Dataset *set, int i, Error *err) {
    char name[NAME_TEXT + 64];
    dataset_name(set, i, name, sizeof name);
    return err_prefix(err, "%s", name);
}

// The encoded bytes of a folder's or shard's picture; a folder's are below `parent`.
static const uint8_t *encoded(void *parent, const Dataset *set, int i, size_t *n, Error *err) {
    const Sample *s = &set->samples.v[i];
    *n = s->size;
    if (s->part >= 0) return s->data;
    char *folder = os_path_join(NULL, set->path, set->classes.v[s->label]);
    char *path = os_path_join(folder, folder, s->name);
    uint8_t *bytes = os_read_file(parent, path, IMAGE_MAX_FILE, n, err);
    mem_free(folder);
    return bytes;
}

// One copy of this exists, for caching, reading and import: without the sample's name in errors.
static Image *decode(void *parent, const Dataset *set, int i, size_t *n, Error *err) {
    const Sample *s = &set->samples.v[i];
    *n = s->size;
    if (set->kind == DATASET_CIFAR)
        return image_from_planes(parent, s->data, CIFAR_SIDE, CIFAR_SIDE, err);
    void *scope = mem_new(NULL, 1);
    const uint8_t *bytes = encoded(scope, set, i, n, err);
    Image *image = bytes ? image_decode(parent, bytes, *n, err) : NULL;
    mem_free(scope);
    return image;
}

static bool decode_planes(const Dataset *set, int i, int size, uint8_t *planes, DatasetShape *shape,
                          Error *err) {
    if (set->kind == DATASET_CIFAR && size == CIFAR_SIDE) {
        memcpy(planes, set->samples.v[i].data, CIFAR_PIXELS);
        *shape = (DatasetShape){CIFAR_SIDE, CIFAR_SIDE, CIFAR_PIXELS};
        return true;
    }
    size_t n;
    Image *image = decode(NULL, set, i, &n, err), *fitted = NULL;
    if (image) {
        *shape = (DatasetShape){image->width, image->height, n};
        if (image->width == size && image->height == size) image_to_planes(image, planes);
        else if ((fitted = image_fit(NULL, image, IMAGE_TRIANGLE, size, size, err)))
            image_to_planes(fitted, planes);
        else shape->width = 0;
    }
    bool ok = image && (fitted || (image->width == size && image->height == size));
    mem_free(image);
    mem_free(fitted);
    return ok;
}

bool dataset_is_cached(const Dataset *set, int size) {
    return set->cache && set->cache_size == size;
}

bool dataset_read(const Dataset *set, int i, int size, uint8_t *planes, Error *err) {
    size_t n = 3 * (size_t)size * (size_t)size;
    if (dataset_is_cached(set, size)) {
        memcpy(planes, set->cache + (size_t)i * n, n);
        return true;
    }
    DatasetShape shape;
    return decode_planes(set, i, size, planes, &shape, err) || name_error(set, i, err);
}

Image *dataset_image(void *parent, const Dataset *set, int i, Error *err) {
    size_t n;
    Image *image = decode(parent, set, i, &n, err);
    if (!image) name_error(set, i, err);
    return image;
}

bool dataset_file(void *parent, const Dataset *set, int i, DatasetFile *file, Error *err) {
    const Sample *s = &set->samples.v[i];
    *file = (DatasetFile){.json = s->json, .json_size = s->json_size, .extension = "png"};
    if (set->kind == DATASET_CIFAR) {
        uint8_t *bytes;
        Image *image = decode(NULL, set, i, &file->size, err);
        bool ok = image && image_encode_png(parent, image, NULL, 0, &bytes, &file->size, err);
        mem_free(image);
        file->bytes = ok ? bytes : NULL;
        return ok || name_error(set, i, err);
    }
    file->bytes = encoded(parent, set, i, &file->size, err);
    if (!file->bytes) return name_error(set, i, err);
    if (image_format(file->bytes, file->size) == IMAGE_JPEG) file->extension = "jpg";
    return true;
}

// ---- decoding all of it -------------------------------------------------------------------------

enum { LOAD_CHUNK = 32, LOAD_MAX_THREADS = 64 };

typedef struct LoadJob {
    Dataset *set;
    int size, next, done, running;
    bool stop;
    uint8_t *cache;
    DatasetShape *shapes;
    char **why; // [samples]: NULL, or what is wrong with this one
    Mutex *mutex;
    Cond *changed;
} LoadJob;

static void load_chunk(LoadJob *job, uint8_t *scratch, int from, int to) {
    size_t n = 3 * (size_t)job->size * (size_t)job->size;
    for (int i = from; i < to; i++) {
        Error err = {0};
        uint8_t *planes = job->cache ? job->cache + (size_t)i * n : scratch;
        if (!decode_planes(job->set, i, job->size, planes, &job->shapes[i], &err))
            job->why[i] = mem_strdup(NULL, err.text); // no parent: threads must not share one
    }
}

static void load_worker(void *arg) {
    LoadJob *job = arg;
    uint8_t *scratch = mem_new(NULL, 3 * (size_t)job->size * (size_t)job->size);
    mutex_lock(job->mutex);
    while (!job->stop && job->next < job->set->samples.n) {
        int from = job->next, to = MIN(from + LOAD_CHUNK, job->set->samples.n);
        job->next = to;
        mutex_unlock(job->mutex);
        load_chunk(job, scratch, from, to);
        mutex_lock(job->mutex);
        job->done += to - from;
        cond_wake_all(job->changed);
    }
    job->running--;
    cond_wake_all(job->changed);
    mutex_unlock(job->mutex);
    mem_free(scratch);
}

// Waits for the workers and tells progress meanwhile, once at least: they may be done already. False
// when the caller cancelled.
static bool watch_load(LoadJob *job, const DatasetLoad *load) {
    mutex_lock(job->mutex);
    do {
        int done = job->done;
        mutex_unlock(job->mutex);
        bool go_on =
            !load->progress || load->progress(load->user, "check", done, job->set->samples.n);
        mutex_lock(job->mutex);
        if (!go_on) job->stop = true;
        while (job->running > 0 && job->done == done && !job->stop)
            cond_wait(job->changed, job->mutex);
        while (job->running > 0 && job->stop) cond_wait(job->changed, job->mutex);
    } while (job->running > 0);
    bool cancelled = job->stop;
    mutex_unlock(job->mutex);
    return !cancelled;
}

// Drops the damaged samples, in order, from the list, the shapes and the cache alike.
static void drop_damaged(LoadJob *job) {
    Dataset *set = job->set;
    size_t n = 3 * (size_t)job->size * (size_t)job->size;
    int kept = 0;
    for (int i = 0; i < set->samples.n; i++) {
        if (job->why[i]) {
            char name[NAME_TEXT + 64];
            dataset_name(set, i, name, sizeof name);
            add_damage(set, name, job->why[i]);
            continue;
        }
        if (kept != i) {
            set->samples.v[kept] = set->samples.v[i];
            job->shapes[kept] = job->shapes[i];
            if (job->cache) memcpy(job->cache + (size_t)kept * n, job->cache + (size_t)i * n, n);
        }
        kept++;
    }
    set->samples.n = kept;
}

static bool run_load(LoadJob *job, const DatasetLoad *load, Error *err) {
    int count = job->set->samples.n, wanted = load->threads > 0 ? load->threads : os_cpu_count();
    wanted = MIN(MIN(wanted, LOAD_MAX_THREADS), (count + LOAD_CHUNK - 1) / LOAD_CHUNK);
    job->mutex = mutex_new(job->why);
    job->changed = cond_new(job->why);
    Thread *threads[LOAD_MAX_THREADS];
    int started = 0;
    job->running = wanted;
    while (started < wanted && (threads[started] = thread_start(NULL, load_worker, job))) started++;
    mutex_lock(job->mutex);
    job->running -= wanted - started;
    mutex_unlock(job->mutex);
    if (!started) { // no thread to be had: do it here
        job->running = 1;
        load_worker(job);
    }
    bool ok = watch_load(job, load);
    for (int i = 0; i < started; i++) thread_join(threads[i]);
    if (!ok) err_set(err, STATUS_CANCELLED, "%s: interrupted while it was read", job->set->path);
    return ok;
}

bool dataset_load(Dataset *set, const DatasetLoad *load, Error *err) {
    if (load->size < 1 || load->size > IMAGE_MAX_SIDE / 16)
        return err_failed(err, "%s: expected a picture size of 1 to %d, found %d; change it",
                          set->path, IMAGE_MAX_SIDE / 16, load->size);
    size_t limit = load->cache_limit ? load->cache_limit : CACHE_LIMIT;
    size_t n = 3 * (size_t)load->size * (size_t)load->size;
    bool fits = n <= limit / (size_t)MAX(set->samples.n, 1);
    if (!fits && !load->check && !set->options.strict) return true;
    if (dataset_is_cached(set, load->size) || !set->samples.n) return true;
    LoadJob job = {.set = set, .size = load->size};
    job.why = MEM_ARRAY(NULL, char *, set->samples.n);
    job.shapes = MEM_ARRAY(NULL, DatasetShape, set->samples.n);
    job.cache = fits ? mem_new(NULL, n * (size_t)set->samples.n) : NULL;
    int before = set->samples.n;
    bool ok = run_load(&job, load, err);
    if (ok) {
        drop_damaged(&job);
        mem_free(set->shapes);
        mem_free(set->cache);
        set->shapes = job.shapes;
        set->cache = job.cache;
        set->cache_size = load->size;
        mem_move(set, set->shapes);
        if (set->cache) mem_move(set, set->cache);
        ok = finish_open(set, err);
    } else {
        mem_free(job.shapes);
        mem_free(job.cache);
    }
    for (int i = 0; i < before; i++) mem_free(job.why[i]);
    mem_free(job.why);
    return ok;
}
