// schedule.c: see schedule.h. Compile without floating-point contraction.
#include "engine/schedule.h"


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
static bool check_plain(const ConfigFile *file, const Json *root, Error *err) {
    static const char *const flags[] = {"use_karras_sigmas", "use_exponential_sigmas",
                                        "use_beta_sigmas", "stochastic_sampling", "invert_sigmas"};
    const char *class = "", *type = "exponential";
    double terminal = 0;
    int steps = 1000;
    if (!config_text(file, root, "_class_name", &class, err) ||
        !config_text(file, root, "time_shift_type", &type, err) ||
        !config_number(file, root, "shift_terminal", 0, 1, &terminal, err) ||
        !config_int(file, root, "num_train_timesteps", &steps, err))
        return false;
    if (strcmp(class, "FlowMatchEulerDiscreteScheduler") != 0)
        return err_failed(err, "%s: expected _class_name FlowMatchEulerDiscreteScheduler, found "
                          "\"%.60s\"", file->path, class);
    for (size_t i = 0; i < COUNT_OF(flags); i++) {
        bool on = false;
        if (!config_flag(file, root, flags[i], &on, err)) return false;
        if (on) return err_failed(err, "%s: expected %s false, found true", file->path, flags[i]);
    }
    if (strcmp(type, "exponential") != 0)
        return err_failed(err, "%s: expected time_shift_type exponential, found \"%.60s\"", file->path,
                          type);
    if (terminal != 0)
        return err_failed(err, "%s: expected no shift_terminal, found %g", file->path, terminal);
    return steps == 1000 ||
           err_failed(err, "%s: expected num_train_timesteps 1000, found %d", file->path, steps);
}

bool flow_shift_parse(const ConfigFile *file, FlowShift *out, Error *err) {
    Json *root = config_parse(file, err);
    if (!root) return false;
    FlowShift s = defaults;
    bool ok = check_plain(file, root, err) &&
              config_flag(file, root, "use_dynamic_shifting", &s.dynamic, err) &&
              config_number(file, root, "shift", SHIFT_MIN, SHIFT_MAX, &s.shift, err) &&
              config_number(file, root, "base_shift", -SHIFT_MOST, SHIFT_MOST, &s.base_shift, err) &&
              config_number(file, root, "max_shift", -SHIFT_MOST, SHIFT_MOST, &s.max_shift, err) &&
              config_int(file, root, "base_image_seq_len", &s.base_tokens, err) &&
              config_int(file, root, "max_image_seq_len", &s.max_tokens, err);
    if (ok && (s.base_tokens < 1 || s.max_tokens <= s.base_tokens))
        ok = err_failed(err, "%s: expected 1 <= base_image_seq_len < max_image_seq_len, found %d and %d",
                        file->path, s.base_tokens, s.max_tokens);
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
