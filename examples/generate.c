// generate.c: a picture of a class with libkiln, in one file. Build and run:
//   cc generate.c -o generate $(pkg-config --cflags --libs kiln)
//   ./generate nano cat cat.png
#include <kiln.h>
#include <stdio.h>
#include <stdlib.h>

static void show(void *user, const KilnProgress *p) {
    (void)user;
    if (p->total) fprintf(stderr, "\r%s %d/%d ", p->stage, (int)p->done, (int)p->total);
    if (p->total && p->done == p->total) fputc('\n', stderr);
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: generate MODEL CLASS FILE.png [SEED [STEPS [DEVICE]]]\n");
        return 2;
    }
    KilnError err = {0};
    KilnModel *model = NULL;
    KilnImages *images = NULL;
    KilnContext *ctx = kiln_open(argc > 6 ? argv[6] : "auto", NULL, &err);
    if (ctx) model = kiln_model_open(ctx, argv[1], NULL, &err);
    if (model) {
        KilnRequest request = kiln_request(model);
        request.class_name = argv[2];
        request.seed = argc > 4 ? strtoull(argv[4], NULL, 10) : 42;
        if (argc > 5) request.steps = atoi(argv[5]);
        request.callbacks.progress = show;
        images = kiln_generate(model, &request, &err);
    }
    bool ok = images && kiln_image_save(images, 0, argv[3], &err);
    if (ok)
        fprintf(stderr, "%s: made by Kiln %s on %s with %.1f MB\n", argv[3], kiln_version(),
                kiln_device(ctx)->id, (double)kiln_memory(ctx).peak / 1e6);
    else
        fprintf(stderr, "%s\n", err.text);
    kiln_images_free(images);
    kiln_model_close(model);
    kiln_close(ctx);
    return ok ? 0 : 1;
}
