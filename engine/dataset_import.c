// dataset_import.c: describing, previewing and rewriting data sets. See dataset.h.
#include "engine/dataset.h"

#include "backend/os.h"
#include "engine/tar.h"

#include <stdlib.h>

enum { CHECK_SIZE = 32, PREVIEW_GAP = 2, PREVIEW_GREY = 255, SHARD_NAME = 32 };
static const uint64_t SHARD_SIZE = (uint64_t)256 << 20;

static bool check_all(Dataset *set, DatasetProgress progress, void *user, Error *err) {
    // Planes are not kept: nobody asked for them here.
    DatasetLoad load = {
        .size = CHECK_SIZE, .cache_limit = 1, .check = true, .progress = progress, .user = user};
    return dataset_load(set, &load, err);
}

// ---- info ---------------------------------------------------------------------------------------

static int by_shape(const void *a, const void *b) {
    const DatasetShape *x = a, *y = b;
    return x->width != y->width ? (x->width < y->width ? -1 : 1)
                                : (x->height > y->height) - (x->height < y->height);
}

static int by_count(const void *a, const void *b) {
    const DatasetSize *x = a, *y = b;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    DatasetShape p = {x->width, x->height, 0}, q = {y->width, y->height, 0};
    return by_shape(&p, &q);
}

static void count_sizes(void *parent, const Dataset *set, DatasetInfo *info) {
    int n = dataset_count(set);
    DatasetShape *shapes = MEM_ARRAY(NULL, DatasetShape, n);
    memcpy(shapes, dataset_shapes(set), (size_t)n * sizeof *shapes);
    qsort(shapes, (size_t)n, sizeof *shapes, by_shape);
    ARRAY(DatasetSize) sizes = {0};
    for (int i = 0; i < n; i++) {
        if (!i || by_shape(&shapes[i], &shapes[i - 1])) {
            DatasetSize size = {shapes[i].width, shapes[i].height, 0};
            ARR_PUSH(parent, &sizes, size);
        }
        sizes.v[sizes.n - 1].count++;
    }
    qsort(sizes.v, (size_t)sizes.n, sizeof *sizes.v, by_count);
    info->sizes = sizes.v;
    info->size_count = sizes.n;
    mem_free(shapes);
}

bool dataset_info(void *parent, Dataset *set, DatasetInfo *info, DatasetProgress progress,
                  void *user, Error *err) {
    *info = (DatasetInfo){.kind = dataset_kind(set)};
    if (!dataset_shapes(set) && !check_all(set, progress, user, err)) return false;
    info->count = dataset_count(set);
    info->classes = dataset_class_count(set);
    info->damaged = dataset_damage_count(set);
    info->per_class = MEM_ARRAY(parent, int, MAX(info->classes, 1));
    for (int i = 0; i < info->count; i++) info->per_class[dataset_label(set, i)]++;
    count_sizes(parent, set, info);
    dataset_parts(parent, set, info);
    return true;
}

// ---- preview ------------------------------------------------------------------------------------

static Image *preview_cell(void *parent, const Dataset *set, int i, int size, Error *err) {
    Image *image = dataset_image(NULL, set, i, err);
    Image *cell = image ? image_fit(parent, image, IMAGE_TRIANGLE, size, size, err) : NULL;
    mem_free(image);
    return cell;
}

Image *dataset_preview(void *parent, const Dataset *set, int rows, int columns, int size,
                       Error *err) {
    rows = MIN(MAX(rows, 1), dataset_class_count(set));
    if (columns < 1 || columns > IMAGE_MAX_SIDE || size < 1 || size > IMAGE_MAX_SIDE) {
        err_failed(err, "preview: expected 1 to %d columns and pixels, found %dx%d; change them",
                   IMAGE_MAX_SIDE, columns, size);
        return NULL;
    }
    int cells = rows * columns, n = dataset_count(set);
    void *scope = mem_new(NULL, 1);
    const Image **images = MEM_ARRAY(scope, const Image *, cells);
    int *per_class = MEM_ARRAY(scope, int, rows), *seen = MEM_ARRAY(scope, int, rows);
    int *used = MEM_ARRAY(scope, int, rows);
    for (int i = 0; i < n; i++)
        if (dataset_label(set, i) < rows) per_class[dataset_label(set, i)]++;
    // Of a class's m pictures every (m / columns)-th is shown; a damaged one leaves its place
    // empty.
    for (int i = 0; i < n; i++) {
        int c = dataset_label(set, i);
        if (c >= rows || used[c] >= columns) continue;
        int64_t due = (int64_t)used[c] * per_class[c] / columns;
        if (seen[c]++ < due && per_class[c] > columns) continue;
        images[c * columns + used[c]++] = preview_cell(scope, set, i, size, NULL);
    }
    Image *sheet = image_grid(parent, images, cells, columns, PREVIEW_GAP, PREVIEW_GREY, err);
    mem_free(scope);
    return sheet;
}

// ---- import -------------------------------------------------------------------------------------

typedef struct Import {
    Dataset *set;
    const char *dst;
    DatasetImport options;
    DatasetImported done;
    bool made_dst;
    TarWriter *tar;
    char **written; // paths, to be removed after an error
    int written_count, written_cap;
} Import;

static bool prepare_target(Import *im, Error *err) {
    PathKind kind = os_path_kind(im->dst);
    if (kind == PATH_FILE)
        return err_failed(
            err, "%s: expected a new or empty folder, found a file; choose another name", im->dst);
    if (kind == PATH_NONE) {
        im->made_dst = true;
        return os_make_dirs(im->dst, err);
    }
    char **names;
    int count;
    void *scope = mem_new(NULL, 1);
    bool ok = os_list(scope, im->dst, &names, &count, err);
    mem_free(scope);
    if (ok && count)
        return err_failed(
            err, "%s: expected a new or empty folder, found %d entries in it; choose another name",
            im->dst, count);
    return ok;
}

static char *add_written(Import *im, const char *name) {
    char *path = os_path_join(im->set, im->dst, name);
    arr_grow(im->set, (void **)&im->written, im->written_count, &im->written_cap,
             sizeof *im->written);
    return im->written[im->written_count++] = path;
}

static bool next_shard(Import *im, Error *err) {
    if (im->tar) {
        TarWriter *tar = im->tar;
        im->tar = NULL;
        if (!tar_finish(tar, err)) return false;
    }
    char name[SHARD_NAME];
    snprintf(name, sizeof name, "%06d.tar%s", im->done.shards, im->options.gzip ? ".gz" : "");
    im->done.shards++;
    im->tar = tar_open(NULL, add_written(im, name), im->options.gzip, err);
    return im->tar != NULL;
}

static bool add_picture(Import *im, const DatasetFile *file, int number, int label, Error *err) {
    char name[SHARD_NAME], cls[SHARD_NAME];
    snprintf(cls, sizeof cls, "%d", label);
    snprintf(name, sizeof name, "%09d.cls", number);
    if (!tar_add(im->tar, name, cls, strlen(cls), err)) return false;
    snprintf(name, sizeof name, "%09d.%s", number, file->extension);
    if (!tar_add(im->tar, name, file->bytes, file->size, err)) return false;
    snprintf(name, sizeof name, "%09d.json", number);
    return !file->json || tar_add(im->tar, name, file->json, file->json_size, err);
}

static bool import_sample(Import *im, int i, Error *err) {
    void *scope = mem_new(NULL, 1);
    DatasetFile file;
    bool ok = dataset_file(scope, im->set, i, &file, err);
    // Blocks of 512: three headers, paddings and the end mark at most.
    uint64_t adds = ok ? file.size + file.json_size + 8 * 512 : 0;
    if (ok && (!im->tar || tar_size(im->tar) + adds > im->options.shard_size))
        ok = next_shard(im, err);
    uint64_t before = ok ? tar_size(im->tar) : 0;
    ok = ok && add_picture(im, &file, i, dataset_label(im->set, i), err);
    if (ok) {
        im->done.bytes += tar_size(im->tar) - before;
        im->done.count++;
    }
    mem_free(scope);
    return ok;
}

static bool write_classes(Import *im, Error *err) {
    char *path = add_written(im, "classes.txt");
    OutFile *out = out_open(NULL, path, err);
    bool ok = out != NULL;
    for (int c = 0; ok && c < dataset_class_count(im->set); c++) {
        const char *name = dataset_class(im->set, c);
        ok = out_write(out, name, strlen(name), err) && out_write(out, "\n", 1, err);
    }
    if (ok) return out_commit(out, err);
    out_abort(out);
    return false;
}

static bool write_shards(Import *im, Error *err) {
    int n = dataset_count(im->set);
    for (int i = 0; i < n; i++) {
        if (im->options.progress && !im->options.progress(im->options.user, "write", i, n))
            return err_set(err, STATUS_CANCELLED, "%s: interrupted; nothing was written", im->dst);
        if (!import_sample(im, i, err)) return false;
    }
    TarWriter *tar = im->tar;
    im->tar = NULL;
    return tar_finish(tar, err) && write_classes(im, err);
}

bool dataset_import(Dataset *set, const char *dst, const DatasetImport *options,
                    DatasetImported *imported, Error *err) {
    Import im = {.set = set, .dst = dst, .options = *options};
    if (!im.options.shard_size) im.options.shard_size = SHARD_SIZE;
    // The target first (it is quick to look at), then the pictures, and only then a byte is
    // written.
    if (!prepare_target(&im, err)) return false;
    bool ok = (dataset_shapes(set) || check_all(set, options->progress, options->user, err)) &&
              write_shards(&im, err);
    if (!ok) {
        tar_abort(im.tar);
        for (int i = 0; i < im.written_count; i++) os_remove(im.written[i], NULL);
        if (im.made_dst) os_remove(dst, NULL);
    }
    for (int i = 0; i < im.written_count; i++) mem_free(im.written[i]);
    mem_free(im.written);
    *imported = im.done;
    return ok;
}
