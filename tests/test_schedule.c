// Sigmas of flow models (engine/schedule.h) against diffusers' schedulers and pipelines, recorded
// by tools/ref/make_sampling_golden.py.
#include "engine/schedule.h"
#include "tests/golden.h"

static const char GOLDEN[] = "tests/golden/sampling.safetensors";

static StFile *open_golden(void) {
    Error err = {0};
    StFile *f = st_open(NULL, GOLDEN, &err);
    CHECK(f);
    return f;
}

static const struct {
    const char *name;
    FlowShift shift;
    int tokens[5], steps[4];
} models[] = {
    {"dev", FLOW_SHIFT_FLUX_DEV, {16, 256, 1536, 4096, 9216}, {1, 4, 20, 28}},
    {"schnell", FLOW_SHIFT_FLUX_SCHNELL, {4096}, {1, 2, 4, 7}},
    {"fixed", FLOW_SHIFT_FIXED(3), {4096}, {1, 10, 28}},
};

// Every sigma and every embedded timestep is the very float that diffusers has.
static void sigmas_are_those_of_diffusers(void **state) {
    (void)state;
    Error err = {0};
    StFile *f = open_golden();
    int cases = 0;
    for (size_t m = 0; m < COUNT_OF(models); m++) {
        for (int k = 0; k < 20; k++) {
            int tokens = models[m].tokens[k / 4], steps = models[m].steps[k % 4];
            if (!tokens || !steps) continue;
            Schedule *s = schedule_flow(f, NULL, &models[m].shift, tokens, steps, &err);
            CHECK(s);
            char *key = mem_printf(s, "sigmas.%s.%d.%d", models[m].name, tokens, steps);
            size_t n;
            const float *want = golden(f, key, &n);
            assert_int_equal(n, steps + 1);
            assert_true(s->end == 0 && s->time[steps] == 0);
            for (int i = 0; i <= steps; i++)
                if (s->time[i] != (double)want[i])
                    fail_msg("%s[%d]: expected %.9g, found %.9g", key, i, (double)want[i],
                             s->time[i]);
            key = mem_printf(s, "embedded.%s.%d.%d", models[m].name, tokens, steps);
            want = golden(f, key, &n);
            for (int i = 0; i < steps; i++) {
                assert_true(flow_timestep(s->time[i]) == want[i]);
                assert_int_equal(schedule_step(s, s->time[i]), i);
            }
            assert_int_equal(schedule_step(s, 0.123456), -1);
            cases++;
        }
    }
    assert_int_equal(cases, 27);
    st_close(f);
}

static void strength_drops_the_first_steps(void **state) {
    (void)state;
    static const int counts[] = {4, 20, 28}, percents[] = {1, 5, 25, 30, 60, 75, 99, 100};
    StFile *f = open_golden();
    for (size_t c = 0; c < COUNT_OF(counts); c++) {
        for (size_t p = 0; p < COUNT_OF(percents); p++) {
            Error err = {0};
            Schedule *s = schedule_flow(f, NULL, &FLOW_SHIFT_FLUX_DEV, 4096, counts[c], &err);
            char *key = mem_printf(s, "kept.%d.%d", counts[c], percents[p]);
            const float *want = golden(f, key, NULL);
            bool ok = schedule_keep(s, percents[p] / 100.0, &err);
            assert_int_equal(ok, want[0] < (float)counts[c]);
            if (!ok) {
                assert_non_null(strstr(err.text, "--strength"));
                continue;
            }
            assert_int_equal(s->steps, counts[c] - (int)want[0]);
            assert_true(s->time[0] == (double)want[1] && s->time[s->steps] == 0);
        }
    }
    Error err = {0};
    Schedule *s = schedule_flow(f, NULL, &FLOW_SHIFT_NONE, 0, 4, &err);
    static const double wrong[] = {-0.1, 1.1, NAN};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        assert_false(schedule_keep(s, wrong[i], &err));
        assert_non_null(strstr(err.text, "0 to 1"));
    }
    st_close(f);
}

static void mix_is_scale_noise(void **state) {
    (void)state;
    StFile *f = open_golden();
    const float *sigmas = golden(f, "mix.sigmas", NULL), *picture = golden(f, "mix.picture", NULL);
    float *noise = golden(f, "mix.noise", NULL), got[64];
    flow_mix(got, picture, noise, (double)sigmas[2], 64);
    expect_near("mix", got, golden(f, "mix", NULL), 64, 0);
    flow_mix(noise, picture, noise, (double)sigmas[2], 64); // in place
    assert_memory_equal(noise, got, sizeof got);
    st_close(f);
}

static bool parse(const char *json, FlowShift *out, Error *err) {
    return flow_shift_parse(&(const ConfigFile){"scheduler_config.json", json}, out, err);
}

#define CLASS "\"_class_name\": \"FlowMatchEulerDiscreteScheduler\""

static void configurations(void **state) {
    (void)state;
    Error err = {0};
    FlowShift s;
    CHECK(parse("{" CLASS ", \"_diffusers_version\": \"0.30.0.dev0\", \"base_image_seq_len\": 256,"
                "\"base_shift\": 0.5, \"max_image_seq_len\": 4096, \"max_shift\": 1.15,"
                "\"num_train_timesteps\": 1000, \"shift\": 3.0, \"use_dynamic_shifting\": true}",
                &s, &err));
    assert_true(s.dynamic && s.shift == 3 && s.base_shift == 0.5 && s.max_shift == 1.15 &&
                s.base_tokens == 256 && s.max_tokens == 4096);
    assert_true(flow_shift_mu(&s, 256) == 0.5 && fabs(flow_shift_mu(&s, 4096) - 1.15) < 1e-15);
    CHECK(parse("{" CLASS ", \"shift\": 3.0}", &s, &err)); // SD3's
    assert_true(!s.dynamic && s.shift == 3);
    CHECK(parse("{" CLASS "}", &s, &err));
    assert_true(!s.dynamic && s.shift == 1);
    static const char *const wrong[][2] = {
        {"{}", "_class_name"},
        {"{\"_class_name\": \"PNDMScheduler\"}", "PNDMScheduler"},
        {"{" CLASS ", \"use_karras_sigmas\": true}", "use_karras_sigmas"},
        {"{" CLASS ", \"invert_sigmas\": true}", "invert_sigmas"},
        {"{" CLASS ", \"time_shift_type\": \"linear\"}", "time_shift_type"},
        {"{" CLASS ", \"shift_terminal\": 0.1}", "shift_terminal"},
        {"{" CLASS ", \"shift\": 0}", "`shift` to be a number from 0.001 to 1000, found 0"},
        {"{" CLASS ", \"shift\": 1e9}", "`shift` to be"},
        {"{" CLASS ", \"shift\": \"3\"}", "`shift` to be a number from 0.001 to 1000, found \"3\""},
        {"{" CLASS ", \"max_shift\": 800}", "-20 to 20"},
        {"{" CLASS ", \"use_dynamic_shifting\": 1}", "`use_dynamic_shifting` to be true or false, found 1"},
        {"{" CLASS ", \"use_beta_sigmas\": []}", "`use_beta_sigmas` to be true or false"},
        {"{" CLASS ", \"time_shift_type\": true}", "`time_shift_type` to be a text, found true"},
        {"{" CLASS ", \"num_train_timesteps\": 500}", "num_train_timesteps 1000, found 500"},
        {"{" CLASS ", \"base_image_seq_len\": 4096}", "base_image_seq_len"},
        {"{" CLASS ", \"max_image_seq_len\": -1}", "`max_image_seq_len`"},
        {"[1", "scheduler_config.json"},
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        err = (Error){0};
        assert_false(parse(wrong[i][0], &s, &err));
        if (!strstr(err.text, wrong[i][1])) fail_msg("%s: %s", wrong[i][0], err.text);
    }
}

static void given_sigmas(void **state) {
    (void)state;
    Error err = {0};
    static const double good[] = {1, 0.7, 0.2, 0};
    Schedule *s = schedule_given(NULL, good, COUNT_OF(good), &err);
    CHECK(s);
    assert_int_equal(s->steps, 3);
    assert_memory_equal(s->time, good, sizeof good);
    mem_free(s);
    static const double wrong[][3] = {{1.1, 0.5, 0}, {1, 1, 0}, {0.5, 0.6, 0}, {1, NAN, 0},
                                      {1, 0, -0.1}};
    for (size_t i = 0; i < COUNT_OF(wrong); i++)
        assert_null(schedule_given(NULL, wrong[i], 3, &err));
    assert_null(schedule_given(NULL, good, 1, &err)); // no step
    assert_null(schedule_flow(NULL, NULL, &FLOW_SHIFT_NONE, 1, 0, &err));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sigmas_are_those_of_diffusers),
        cmocka_unit_test(strength_drops_the_first_steps),
        cmocka_unit_test(mix_is_scale_noise),
        cmocka_unit_test(configurations),
        cmocka_unit_test(given_sigmas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
