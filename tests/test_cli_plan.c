// test_cli_plan.c: `kiln inspect --plan` against `kiln generate`: what the plan says is what the
// run takes, at every budget between the smallest and the one that holds all; and --dummy end to
// end.
#include "tests/cli.h"

#include "engine/pipeline_dummy.h"
#include "engine/safetensors.h"

#include <inttypes.h>
#include <math.h>
#include <sys/wait.h>

enum { STAGES = 5, BUDGETS = 4, STEPS = 2, PICTURES = 2 };

static bool vulkan; // is there a Vulkan device?

static int set_up(void **state) {
    (void)state;
    if (!cli_open()) return 1;
    void *scope = mem_new(NULL, 1);
    vulkan = strstr(kiln(scope, "devices --json").out, "\"vulkan:0\"") != NULL;
    if (!vulkan) print_message("SKIP: no Vulkan device: its plans are not compared with runs\n");
    mem_free(scope);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    cli_close();
    return 0;
}

static const Json *child_of(const Json *list, int i) {
    const Json *v = json_first(list);
    while (v && i--) v = json_next(v);
    assert_non_null(v);
    return v;
}

static Json *plan_of(void *scope, const char *model, const char *budget) {
    Result r = kiln(scope, "inspect %s --plan --json%s%s", model, budget ? " --vram " : "",
                    budget ? budget : "");
    WANT_STATUS(r, 0);
    return json_of(r.out);
}

// One run within `budget` bytes: as planned by `inspect`? Returns the (first) picture. `steps`:
// passes of the transformer.
static uint64_t compare(void *scope, const char *model, uint64_t budget, int steps,
                        double *streamed) {
    char size[32], *png = at("plan.png");
    snprintf(size, sizeof size, "%" PRIu64, budget);
    Json *plan = plan_of(scope, model, size);
    Result r = kiln(scope, "generate %s --vram %s -p x -s 1 -o %s --json", model, size, png);
    WANT_STATUS(r, 0);
    Json *run = json_of(r.out);
    double planned = number(plan, NULL, "peak_bytes"), peak = number(run, "memory", "peak_bytes");
    assert_true(number(run, "memory", "planned_bytes") == planned);
    if (peak > planned || peak < 0.9 * planned || planned > (double)budget)
        fail_msg("budget %s: planned %.0f, measured %.0f", size, planned, peak);
    const Json *theirs = json_get(plan, "stages"), *ours = json_get(run, "stages");
    assert_int_equal(json_count(theirs), json_count(ours));
    *streamed = 0;
    for (int i = 0; i < (int)json_count(ours); i++) {
        const Json *p = child_of(theirs, i), *m = child_of(ours, i);
        const char *name = json_string(json_get(p, "name"), "");
        assert_string_equal(name, json_string(json_get(m, "name"), ""));
        double limit = number(p, NULL, "peak_bytes"), used = number(m, NULL, "used_bytes");
        double passes = number(m, NULL, "passes"), moved = number(p, NULL, "moved_bytes_per_step");
        if (used > limit || used < 0.9 * limit || limit > planned)
            fail_msg("budget %s, %s: planned %.0f, used %.0f", size, name, limit, used);
        assert_true(passes == (!strcmp(name, "transformer") ? steps
                               : strcmp(name, "decode")     ? 1
                                                            : 0));
        if (number(m, NULL, "moved_bytes") != moved * passes)
            fail_msg("budget %s, %s: %.0f bytes a pass planned, %.0f moved in %.0f", size, name,
                     moved, number(m, NULL, "moved_bytes"), passes);
        double units = number(p, NULL, "streamed_units"), bytes = number(p, NULL, "streamed_bytes");
        assert_true((units > 0) == (moved > 0) && (units > 0) == (bytes > 0));
        *streamed += moved;
    }
    uint64_t picture = pixels(json_string(json_first(json_get(run, "images")), ""));
    json_free(plan), json_free(run);
    return picture;
}

// From the smallest budget to one that holds everything: fewer bytes move, the picture stays the
// same.
static void check_budgets(const char *model) {
    void *scope = mem_new(NULL, 1);
    Json *all = plan_of(scope, model, NULL);
    uint64_t low = (uint64_t)number(all, NULL, "smallest_bytes"),
             high = (uint64_t)number(all, NULL, "peak_bytes");
    assert_true(low > 0 && low < high);
    // A device that stages takes less for it in less memory: then all may stay in less than `high`.
    char size[32];
    snprintf(size, sizeof size, "%" PRIu64, low + (high - low) / 2);
    Json *half = plan_of(scope, model, size);
    double streamed = 0;
    for (const Json *s = json_first(json_get(half, "stages")); s; s = json_next(s))
        streamed += number(s, NULL, "streamed_bytes");
    if (!streamed) high = (uint64_t)number(half, NULL, "peak_bytes");
    json_free(half);
    uint64_t first = 0;
    double before = 0;
    for (int i = 0; i < BUDGETS; i++) {
        double moved;
        uint64_t budget = low + (high - low) * (uint64_t)i / (BUDGETS - 1);
        uint64_t picture = compare(scope, model, budget, STEPS, &moved);
        print_message("    %9" PRIu64 " bytes: %9.0f moved per pass\n", budget, moved);
        if (i == 0) first = picture, assert_true(moved > 0);
        else assert_true(picture == first && moved <= before);
        before = moved;
    }
    assert_true(before == 0);
    // Less is refused, and the figure named there is enough.
    Result r = kiln(scope, "generate %s -p x --vram %" PRIu64 " -o %s --json", model, low / 2,
                    at("none.png"));
    WANT_STATUS(r, 1);
    want_one_line(&r);
    const char *figure = strstr(r.err, " (");
    assert_non_null(figure);
    double moved, need = strtod(figure + 2, NULL);
    assert_true(need > (double)(low / 2) && need <= (double)low);
    compare(scope, model, (uint64_t)need, STEPS, &moved);
    assert_false(exists(at("none.png")));
    json_free(all);
    mem_free(scope);
}

static void on_devices(const char *format) {
    static const char *const devices[] = {"cpu", "vulkan"};
    for (int i = 0; i < 1 + vulkan; i++) {
        char *model = mem_printf(NULL, format, devices[i]);
        print_message("  %s\n", model);
        check_budgets(model);
        mem_free(model);
    }
}

static void test_small_dummy(void **state) {
    (void)state;
    on_devices("--dummy --dummy-scale 1/16 -W 64 -H 48 --steps 2 --t5-tokens 32 --device %s");
}

static void test_larger_dummy(void **state) {
    (void)state;
    on_devices(
        "--dummy=flux-schnell --dummy-scale 1/8 --type q8_0 -W 32 -H 32 --steps 2 --t5-tokens 16 "
        "--device %s");
}

// The same numbers in files, one per part.
static char *write_parts(void *scope) {
    static const char *const options[PART_COUNT] = {[PART_TRANSFORMER] = "diffusion-model",
                                                    [PART_CLIP_L] = "clip-l",
                                                    [PART_T5] = "t5xxl",
                                                    [PART_VAE] = "vae"};
    ModelParts *model = pipeline_dummy_open(scope, "flux-dev", 16, DT_BF16);
    char *line = mem_strdup(scope, "");
    Error err = {0};
    for (int i = 0; i < PART_COUNT; i++) {
        const Weights *w = model->part[i].weights;
        StWriter *out = st_writer(scope);
        for (int k = 0; k < weights_count(w); k++) {
            const WeightTensor *t = weights_at(w, k);
            void *data = mem_new(out, (size_t)t->bytes);
            assert_true(weights_read(w, t, 0, data, t->bytes, &err));
            st_put(out, t->name, t->dtype, t->ndim, t->shape, data);
        }
        char *path = mem_printf(scope, "%s/%s.safetensors", cli->dir, options[i]);
        assert_true(st_write(out, path, &err));
        line = mem_printf(scope, "%s--%s %s ", line, options[i], path);
        mem_free(out);
    }
    model_parts_close(model);
    return line;
}

static void test_files(void **state) {
    (void)state;
    static const char rest[] = "-W 64 -H 48 --steps 2 --t5-tokens 32 --device";
    void *scope = mem_new(NULL, 1);
    char *parts = write_parts(scope), *a = at("files.png"), *b = at("dummy.png");
    on_devices(mem_printf(scope, "%s%s %%s", parts, rest));
    WANT_STATUS(kiln(scope, "generate %s%s cpu -p x -s 1 -o %s", parts, rest, a), 0);
    WANT_STATUS(kiln(scope, "generate --dummy --dummy-scale 1/16 %s cpu -p x -s 1 -o %s", rest, b),
                0);
    assert_true(pixels(a) == pixels(b));
    mem_free(scope);
}

// Two prompts per step, two pictures: one by one where all weights stay and where there is no room for
// both, else together, in half the passes. The first is the same picture.
static void test_guided(void **state) {
    (void)state;
    static const char model[] = "--dummy --dummy-scale 1/16 -W 48 -H 32 --steps 2 --t5-tokens 16 "
                                "--cfg-scale 3 -b 2 --device cpu";
    void *scope = mem_new(NULL, 1);
    Json *plan = plan_of(scope, model, NULL);
    uint64_t low = (uint64_t)number(plan, NULL, "smallest_bytes"),
             high = (uint64_t)number(plan, NULL, "peak_bytes");
    const struct { uint64_t budget; int at_once; bool streams; } cases[] = {
        {low, 1, true}, {low + low / 4, PICTURES, true}, {high, 1, false}};
    uint64_t first = 0;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        double moved;
        int passes = STEPS * 2 * PICTURES / cases[i].at_once;
        uint64_t picture = compare(scope, model, cases[i].budget, passes, &moved);
        assert_true((moved > 0) == cases[i].streams);
        if (!i) first = picture;
        assert_true(picture == first);
        char size[32];
        snprintf(size, sizeof size, "%" PRIu64, cases[i].budget);
        Json *shown = plan_of(scope, model, size);
        assert_int_equal(number(child_of(json_get(shown, "stages"), 3), NULL, "pictures"), cases[i].at_once);
        json_free(shown);
        Result r = kiln(scope, "inspect %s --plan --vram %s", model, size);
        WANT_STATUS(r, 0);
        assert_true((strstr(r.out, "; 2 pictures at once\n") != NULL) == (cases[i].at_once == 2));
    }
    json_free(plan);
    mem_free(scope);
}

// ---- full size ----------------------------------------------------------------------------------

// The quickest of some tries, other programs being busy: 10 to 20 ms on two cores.
static void check_planning_time(void *scope, const char *line) {
    double ms = 1e9;
    for (int i = 0; i < 10 && ms >= 50; i++) {
        Result r = kiln(scope, "%s", line);
        WANT_STATUS(r, 0);
        Json *plan = json_of(r.out);
        ms = MIN(ms, number(plan, NULL, "planning_ms"));
        json_free(plan);
    }
#ifndef __SANITIZE_ADDRESS__
    if (ms >= 50) fail_msg("planned in %.1f ms", ms);
#endif
}

static void test_full_size_plans(void **state) {
    (void)state;
    static const struct { const char *vram; double bytes; bool streams; } budgets[] = {
        {"8G", 8.0 * (1 << 30), true}, {"12G", 12.0 * (1 << 30), false}};
    void *scope = mem_new(NULL, 1);
    for (size_t i = 0; i < COUNT_OF(budgets); i++) {
        Result r = kiln(
            scope, "inspect --dummy=flux-dev --type fp8 --plan --vram %s -W 1024 -H 1024 --json",
            budgets[i].vram);
        WANT_STATUS(r, 0);
        Json *plan = json_of(r.out);
        print_message("    within %s: %.0f bytes at the peak, at least %.0f, planned in %.1f ms\n",
                      budgets[i].vram, number(plan, NULL, "peak_bytes"),
                      number(plan, NULL, "smallest_bytes"), number(plan, NULL, "planning_ms"));
        assert_true(number(plan, NULL, "peak_bytes") <= budgets[i].bytes);
        assert_true(number(plan, NULL, "smallest_bytes") < 0.25 * budgets[i].bytes);
        assert_true(number(plan, NULL, "parameters") == 16870599139.0); // of the four models
        const Json *stages = json_get(plan, "stages");
        assert_int_equal(json_count(stages), STAGES);
        const Json *step = child_of(stages, 3), *t5 = child_of(stages, 1);
        assert_string_equal(json_string(json_get(step, "name"), ""), "transformer");
        assert_int_equal(number(step, NULL, "units"), 19 + 38 + 2);
        assert_true((number(step, NULL, "streamed_bytes") > 0) == budgets[i].streams);
        // 8.65 of 11.9 billion weights: the schedule's, run before, are not there any more.
        const Json *schedule = child_of(stages, 2);
        double blocks = number(step, NULL, "resident_bytes") + number(step, NULL, "streamed_bytes"),
               before = number(schedule, NULL, "resident_bytes") + number(schedule, NULL, "streamed_bytes");
        assert_string_equal(json_string(json_get(schedule, "name"), ""), "schedule");
        assert_true(blocks > 8.0e9 && blocks < 9.0e9 && before > 3.2e9 && before < 3.4e9);
        assert_true(number(t5, NULL, "resident_bytes") > 4.5e9); // T5-XXL without its table
        json_free(plan);
    }
    check_planning_time(scope, "inspect --dummy=flux-dev --type fp8 --plan --vram 8G --json");
    Result r =
        kiln(scope, "inspect --dummy=flux-dev --type fp8 --plan --vram 100M -W 1024 -H 1024");
    WANT_STATUS(r, 1);
    want_one_line(&r);
    r = kiln(scope, "inspect --dummy=flux-dev --type fp8 --plan --vram 8G -W 1024 -H 1024");
    WANT_TEXT(r.out, "52 resident, 7 streamed");
    WANT_TEXT(r.out, "smallest budget that works");
    struct rusage used; // by the largest child so far: 16 GB of weights cost the host little
    assert_int_equal(getrusage(RUSAGE_CHILDREN, &used), 0);
    print_message("    host: %ld KiB at most\n", used.ru_maxrss);
#ifndef __SANITIZE_ADDRESS__
    assert_true(used.ru_maxrss < 256 << 10);
#endif
    mem_free(scope);
}

// The most memory that the command took of the host, in MiB.
static long host_mib(void *scope, const char *line) {
    char *out = at("host.out");
    int status;
    struct rusage used;
    pid_t pid = start(&(Spawn){0}, words(scope, line), out, out);
    assert_int_equal(wait4(pid, &status, 0, &used), pid);
    assert_int_equal(status, 0);
    return used.ru_maxrss >> 10;
}

// 530 MB of synthetic weights pass through a device of 100 MiB: beside that the host holds little, however
// many stream. A device of the CPU lies in the same memory.
static void test_host_memory(void **state) {
    (void)state;
    static const char rest[] = "-W 64 -H 64 --steps 2 -t 2 -p x -s 1 -o";
    void *scope = mem_new(NULL, 1);
    const char *png = at("host.png");
    long small = host_mib(scope, mem_printf(scope, "generate --dummy --dummy-scale 1/16 %s %s", rest, png));
    long large = host_mib(scope, mem_printf(scope, "generate --dummy --dummy-scale 1/4 --vram 100M %s %s",
                                            rest, png));
    print_message("    %ld MiB, a smaller model: %ld MiB\n", large, small);
#ifndef __SANITIZE_ADDRESS__
    assert_true(large < small + 100 + 64);
#endif
    mem_free(scope);
}

// ---- synthetic models end to end ----------------------------------------------------------------

#define SMALL "--dummy --dummy-scale 1/16 -W 32 -H 48 --steps 1 --t5-tokens 16"

// The picture that a line makes: of the size asked for, and not of one colour.
static uint64_t picture(void *scope, const char *line, int width, int height) {
    char *png = at("dummy.png");
    Result r = kiln(scope, "generate %s -o %s", line, png);
    if (r.status) print_message("generate %s\n", line);
    WANT_STATUS(r, 0);
    Error err = {0};
    Image *image = image_load(scope, png, &err);
    assert_non_null(image);
    assert_int_equal(image->width, width);
    assert_int_equal(image->height, height);
    int different = 0;
    for (int i = 3; i < 3 * width * height; i++) different += image->rgb[i] != image->rgb[i % 3];
    assert_true(different > width * height);
    return pixels(png);
}

static void test_dummy(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    uint64_t one = picture(scope, SMALL " -p cat -s 1", 32, 48);
    assert_true(one == picture(scope, SMALL " -p cat -s 1", 32, 48));
    static const char *const others[] = {
        SMALL " -p cat -s 2", SMALL " -p dog -s 1", SMALL " -p cat -s 1 --guidance 1",
        "--dummy=flux-schnell --dummy-scale 1/16 -W 32 -H 48 --steps 1 --t5-tokens 16 -p cat -s 1",
        "--dummy --dummy-scale 1/15 -W 32 -H 48 --steps 1 --t5-tokens 16 -p cat -s 1",
    };
    for (size_t i = 0; i < COUNT_OF(others); i++)
        if (one == picture(scope, others[i], 32, 48)) fail_msg("the same picture: %s", others[i]);
    Result r = kiln(scope, "generate " SMALL " --vram 1M -o %s", at("dummy.png"));
    WANT_STATUS(r, 1);
    want_one_line(&r);
    WANT_TEXT(r.err, "--vram");
    WANT_STATUS(kiln(scope, "generate " SMALL " --clip-l x"), 2);
    mem_free(scope);
}

static void test_dummy_types(void **state) {
    (void)state;
    static const char *const types[] = {"f32",  "f16",  "bf16", "fp8",    "fp8_e5m2", "q8_0",
                                        "q4_0", "q4_1", "q5_0", "q5_1",   "q2_k",     "q3_k",
                                        "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"};
    uint64_t seen[COUNT_OF(types)];
    void *scope = mem_new(NULL, 1);
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        char *line = mem_printf(scope, SMALL " --type %s -p cat -s 1", types[i]);
        seen[i] = picture(scope, line, 32, 48);
        for (size_t k = 0; k < i; k++)
            if (seen[k] == seen[i]) fail_msg("%s and %s: the same picture", types[k], types[i]);
    }
    mem_free(scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_size_plans), cmocka_unit_test(test_small_dummy),
        cmocka_unit_test(test_files),           cmocka_unit_test(test_guided),
        cmocka_unit_test(test_larger_dummy),    cmocka_unit_test(test_dummy),
        cmocka_unit_test(test_dummy_types),     cmocka_unit_test(test_host_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
