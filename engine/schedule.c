// schedule.c: see schedule.h. Compile without floating-point contraction.
#include "engine/schedule.h"

#include "engine/json.h"

#include <math.h>

// Rectified flow from noise (0) to picture (1) in equal steps.
static void fill_uniform(double *points, int steps) {
    for (int i = 0; i <= steps; i++) points[i] = (double)i / steps;
}

// The same as sigmas: numpy's linspace(1, 1 / steps, steps), in its order of roundings.
static void sigmas_uniform(double *points, int steps) {
    double last = 1.0 / steps, step = steps > 1 ? (last - 1) / (steps - 1) : 0;
    for (int i = 0; i < steps; i++) points[i] = i * step + 1;
    points[steps - 1] = last;
}

static const ScheduleKind kinds[] = {
    {"uniform", fill_uniform, sigmas_uniform},
};

const ScheduleKind *schedule_at(int i) {
    return i >= 0 && i < (int)COUNT_OF(kinds) ? &kinds[i] : NULL;
}

const ScheduleKind *schedule_find(const char *name) {
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (!strcmp(kinds[i].name, name)) return &kinds[i];
    return NULL;
}

static Schedule *schedule_alloc(void *parent, int steps, double end, Error *err) {
    if (steps < 1 || steps > SCHEDULE_MAX_STEPS) {
        err_failed(err, "steps: expected 1 to %d, found %d", SCHEDULE_MAX_STEPS, steps);
        return NULL;
    }
    Schedule *s = MEM_NEW(parent, Schedule);
    *s = (Schedule){.steps = steps, .time = MEM_ARRAY(s, double, steps + 1), .end = end};
    return s;
}

Schedule *schedule_new(void *parent, const ScheduleKind *kind, int steps, Error *err) {
    Schedule *s = schedule_alloc(parent, steps, 1, err);
    if (s) kind->fill(s->time, steps);
    return s;
}

// ---- shift --------------------------------------------------------------------------------------

static const FlowShift defaults = {.shift = 1, .base_shift = 0.5, .max_shift = 1.15,
                                   .base_tokens = 256, .max_tokens = 4096};

// Members that would change the sigmas in a way that is not written here.
static bool check_plain(const Json *root, const char *what, Error *err) {
    static const char *const flags[] = {"use_karras_sigmas", "use_exponential_sigmas",
                                        "use_beta_sigmas", "stochastic_sampling", "invert_sigmas"};
    const char *class = json_string(json_get(root, "_class_name"), "");
    if (strcmp(class, "FlowMatchEulerDiscreteScheduler") != 0)
        return err_failed(err, "%s: expected _class_name FlowMatchEulerDiscreteScheduler, found "
                          "\"%.60s\"", what, class);
    for (size_t i = 0; i < COUNT_OF(flags); i++)
        if (json_bool(json_get(root, flags[i]), false))
            return err_failed(err, "%s: expected %s false, found true", what, flags[i]);
    const char *type = json_string(json_get(root, "time_shift_type"), "exponential");
    if (strcmp(type, "exponential") != 0)
        return err_failed(err, "%s: expected time_shift_type exponential, found \"%.60s\"", what,
                          type);
    double terminal = json_number(json_get(root, "shift_terminal"), 0);
    if (terminal != 0)
        return err_failed(err, "%s: expected no shift_terminal, found %g", what, terminal);
    return true;
}

static bool check_shift(const FlowShift *s, const char *what, Error *err) {
    if (!(s->shift >= SHIFT_MIN && s->shift <= SHIFT_MAX))
        return err_failed(err, "%s: expected a shift from %g to %g, found %g", what, SHIFT_MIN,
                          SHIFT_MAX, s->shift);
    if (!(fabs(s->base_shift) <= 20 && fabs(s->max_shift) <= 20))
        return err_failed(err, "%s: expected base_shift and max_shift from -20 to 20, found %g and "
                          "%g", what, s->base_shift, s->max_shift);
    if (s->base_tokens < 1 || s->max_tokens <= s->base_tokens)
        return err_failed(err, "%s: expected 1 <= base_image_seq_len < max_image_seq_len, found %d "
                          "and %d", what, s->base_tokens, s->max_tokens);
    return true;
}

bool flow_shift_parse(const char *json, size_t n, const char *what, FlowShift *out, Error *err) {
    Json *root = json_parse(json, n, what, err);
    if (!root) return false;
    bool ok = check_plain(root, what, err);
    FlowShift s = defaults;
    s.dynamic = json_bool(json_get(root, "use_dynamic_shifting"), false);
    s.shift = json_number(json_get(root, "shift"), s.shift);
    s.base_shift = json_number(json_get(root, "base_shift"), s.base_shift);
    s.max_shift = json_number(json_get(root, "max_shift"), s.max_shift);
    int64_t tokens = s.base_tokens;
    if (json_int_in(json_get(root, "base_image_seq_len"), INT32_MIN, INT32_MAX, &tokens))
        s.base_tokens = (int)tokens;
    if (json_int_in(json_get(root, "max_image_seq_len"), INT32_MIN, INT32_MAX, &tokens))
        s.max_tokens = (int)tokens;
    ok = ok && check_shift(&s, what, err);
    json_free(root);
    if (ok) *out = s;
    return ok;
}

double flow_shift_mu(const FlowShift *s, int tokens) {
    double m = (s->max_shift - s->base_shift) / (s->max_tokens - s->base_tokens);
    double b = s->base_shift - m * s->base_tokens;
    return tokens * m + b;
}

// In float32 throughout: numpy computes so where the array is float32.
static float shifted(const FlowShift *s, double mu, float sigma) {
    if (s->dynamic) {
        float e = (float)exp(mu);
        return e / (e + (1 / sigma - 1));
    }
    float above = (float)s->shift * sigma, below = 1 + (float)(s->shift - 1) * sigma;
    return above / below;
}

Schedule *schedule_flow(void *parent, const ScheduleKind *kind, const FlowShift *shift, int tokens,
                        int steps, Error *err) {
    Schedule *s = schedule_alloc(parent, steps, 0, err);
    if (!s) return NULL;
    double mu = shift->dynamic ? flow_shift_mu(shift, tokens) : 0;
    (kind ? kind : &kinds[0])->sigmas(s->time, steps);
    for (int i = 0; i < steps; i++) s->time[i] = (double)shifted(shift, mu, (float)s->time[i]);
    s->time[steps] = 0;
    return s;
}

Schedule *schedule_given(void *parent, const double *sigmas, int count, Error *err) {
    for (int i = 0; i < count; i++) {
        bool ok = sigmas[i] >= 0 && sigmas[i] <= 1 && (i == 0 || sigmas[i] < sigmas[i - 1]);
        if (ok) continue;
        err_failed(err, "sigmas: expected numbers that fall from at most 1 to at least 0, found %g "
                   "at %d", sigmas[i], i);
        return NULL;
    }
    Schedule *s = schedule_alloc(parent, count - 1, 0, err);
    if (s) memcpy(s->time, sigmas, (size_t)count * sizeof *sigmas);
    return s;
}

// ---- image to image -----------------------------------------------------------------------------

bool schedule_keep(Schedule *s, double strength, Error *err) {
    if (!(strength >= 0 && strength <= 1))
        return err_failed(err, "strength: expected 0 to 1, found %g", strength);
    double kept = MIN(s->steps * strength, (double)s->steps);
    int first = (int)(s->steps - kept);
    if (first >= s->steps)
        return err_failed(err, "strength: expected at least one step of %d to be left, found none "
                          "at %g; raise --strength or --steps", s->steps, strength);
    s->time += first;
    s->steps -= first;
    return true;
}

void flow_mix(float *out, const float *picture, const float *noise, double sigma, size_t n) {
    float s = (float)sigma, rest = 1 - s;
    for (size_t i = 0; i < n; i++) {
        float from_noise = s * noise[i], from_picture = rest * picture[i];
        out[i] = from_noise + from_picture;
    }
}

int schedule_step(const Schedule *s, double t) {
    for (int i = 0; i < s->steps; i++)
        if (s->time[i] == t) return i;
    return -1;
}

float flow_timestep(double sigma) {
    volatile float scheduled = (float)sigma * 1000.0f; // volatile: no compiler may fold the three
    volatile float given = scheduled / 1000.0f;
    return given * 1000.0f;
}
