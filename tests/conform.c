// conform.c: runs the cases: oracle, then each kernel row of the device in turn; asserts coverage.
#include "tests/conform.h"

#include <math.h>

const OpCases *const op_cases[OP_COUNT] = {
#define OP(name, NAME, Name) &name##_cases,
#include "backend/ops.def"
#undef OP
};

// ---- the oracle ---------------------------------------------------------------------------------
static TensorRef contiguous_ref(Buffer *buffer, uint64_t offset, const HostTensor *t) {
    TensorRef r = {.buffer = buffer, .offset = offset, .ndim = t->ndim,
                   .dtype = t->dtype == DT_I32 || t->packed ? t->dtype : DT_F32};
    int64_t stride = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        r.shape[d] = t->shape[d];
        r.stride[d] = stride;
        stride *= t->shape[d];
    }
    return r;
}

static uint64_t oracle_bytes(const HostTensor *t) {
    return t->packed ? dtype_bytes(t->dtype, (uint64_t)t->count) : (uint64_t)t->count * 4;
}

static bool oracle_move(Buffer *buffer, const TensorRef *r, double *v, int64_t n, bool up,
                        Error *err) {
    uint64_t bytes = (uint64_t)n * 4;
    void *data = mem_new(NULL, bytes);
    bool ok = true;
    if (up) {
        for (int64_t i = 0; i < n; i++) dtype_store(r->dtype, data, (size_t)i, (float)v[i]);
        ok = dev_write(buffer, r->offset, data, bytes, err);
    } else {
        ok = dev_read(buffer, r->offset, data, bytes, err);
        for (int64_t i = 0; i < n && ok; i++) v[i] = dtype_load(r->dtype, data, (size_t)i);
    }
    mem_free(data);
    return ok;
}

bool oracle_run(const Oracle *o, OpId op, const OpParams *params, HostTensor *t, Error *err) {
    const OpInfo *info = &op_info[op];
    ProgramStep step = {.call = {.op = op, .params = *params, .label = "oracle"}};
    uint64_t size = 0, align = MAX(dev_info(o->dev)->buffer_align, 64u);
    for (int i = 0; i < info->operand_count; i++)
        if (t[i].present) size += align_up(oracle_bytes(&t[i]), align);
    Buffer *buffer = buf_new(o->dev, size, "oracle", err);
    bool ok = buffer != NULL;
    uint64_t offset = 0;
    for (int i = 0; i < info->operand_count && ok; i++) {
        if (!t[i].present) continue;
        step.call.t[i] = contiguous_ref(buffer, offset, &t[i]);
        offset += align_up(oracle_bytes(&t[i]), align);
        if (t[i].packed)
            ok = dev_write(buffer, step.call.t[i].offset, t[i].packed, oracle_bytes(&t[i]), err);
        else if (role_reads(info->operand[i].role))
            ok = oracle_move(buffer, &step.call.t[i], t[i].v, t[i].count, true, err);
    }
    Program *prog = ok ? prog_new(o->dev, &step, 1, err) : NULL;
    ok = prog && prog_run(prog, NULL, err);
    for (int i = 0; i < info->operand_count && ok; i++)
        if (t[i].present && role_writes(info->operand[i].role))
            ok = oracle_move(buffer, &step.call.t[i], t[i].v, t[i].count, false, err);
    prog_free(prog);
    buf_free(buffer);
    return ok;
}

// ---- one case on the device ---------------------------------------------------------------------
static bool pool_fit(Conform *cf, uint64_t size, Error *err) {
    if (cf->pool && buf_size(cf->pool) >= size) return true;
    buf_free(cf->pool);
    cf->pool = buf_new(cf->dev, MAX(size, (uint64_t)4 << 20), "conformance case", err);
    return cf->pool != NULL;
}

// Places the operand with far steps behind the image, with a guard before and after it.
static uint64_t place_far(const Case *c, int operand, uint64_t room, uint32_t align, Rig *rig) {
    const CaseTensor *t = &c->t[operand];
    TensorRef *r = &rig->call.t[operand];
    uint64_t start = align_up(rig->base + rig->image.size, align) + CONFORM_GUARD;
    uint64_t size = (uint64_t)dtype_size(t->dtype), far = ((uint64_t)4 << 30) + 16 * align;
    rig->far = operand;
    rig->steps = t->shape[t->far - 1];
    rig->step_bytes = (uint64_t)t->stride[t->far - 1] * size;
    uint64_t most =
        (room - MIN(room, start + rig->image.size + CONFORM_GUARD)) / (uint64_t)rig->steps;
    rig->apart = align_up(MAX(MIN(far, most / align * align), rig->step_bytes), align);
    r->offset = align_up(start, align);
    r->stride[t->far - 1] = (int64_t)(rig->apart / size);
    return r->offset + rig->apart * (uint64_t)(rig->steps - 1) + rig->step_bytes + CONFORM_GUARD;
}

// Moves the far operand's steps between the image's bytes and the pool, guards at both ends too.
static bool move_far(Conform *cf, const Rig *rig, uint8_t *bytes, bool up, Error *err) {
    bool ok = true;
    for (int64_t i = 0; i < rig->steps && rig->far >= 0 && ok; i++) {
        uint64_t before = i == 0 ? CONFORM_GUARD : 0,
                 after = i == rig->steps - 1 ? CONFORM_GUARD : 0;
        uint8_t *at = bytes + rig->image.first[rig->far] + (uint64_t)i * rig->step_bytes - before;
        uint64_t to = rig->call.t[rig->far].offset + (uint64_t)i * rig->apart - before;
        uint64_t n = before + rig->step_bytes + after;
        ok = up ? dev_write(cf->pool, to, at, n, err) : dev_read(cf->pool, to, at, n, err);
    }
    return ok;
}

bool rig_new(Conform *cf, void *parent, const Case *c, const HostTensor *in, Rig *rig, Error *err) {
    const DeviceInfo *info = dev_info(cf->dev);
    uint32_t align = MAX(info->buffer_align, 4096u);
    *rig = (Rig){
        .image = case_image_new(parent, c, in, info->buffer_align), .base = c->base, .far = -1};
    MemoryStats m = dev_memory(cf->dev); // the pool may be replaced: its memory counts as free
    uint64_t used = m.used - MIN(m.used, cf->pool ? buf_size(cf->pool) : 0);
    uint64_t room = MIN(info->max_buffer, m.budget - MIN(used, m.budget));
    room = MAX(room, rig->image.size + align);
    rig->base = MIN(rig->base, (room - rig->image.size) / align * align);
    uint64_t size = rig->base + rig->image.size;
    rig->call = (OpCall){.op = c->op, .params = c->params, .label = c->name};
    for (int i = 0; i < op_info[c->op].operand_count; i++) {
        const CaseTensor *t = &c->t[i];
        if (!t->present) continue;
        TensorRef *r = &rig->call.t[i];
        *r = (TensorRef){
            .offset = rig->base + rig->image.first[i], .dtype = t->dtype, .ndim = t->ndim};
        memcpy(r->shape, t->shape, sizeof r->shape);
        memcpy(r->stride, t->stride, sizeof r->stride);
        if (t->far) size = place_far(c, i, room, align, rig);
    }
    if (!pool_fit(cf, size, err)) return false;
    for (int i = 0; i < op_info[c->op].operand_count; i++)
        if (c->t[i].present) rig->call.t[i].buffer = cf->pool;
    return true;
}

static bool run_failed(ConformResult *result, const Error *err) {
    result->status = CONFORM_FAIL;
    snprintf(result->reason, sizeof result->reason, "%.300s", err->text);
    return false;
}

bool rig_run(Conform *cf, void *parent, const Case *c, const Rig *rig, bool replay, Image *after,
             ConformResult *result) {
    Error err = {0};
    ProgramStep step = {.call = rig->call};
    Program *prog = prog_new(cf->dev, &step, 1, &err);
    if (!prog) return run_failed(result, &err);
    *after = rig->image;
    after->bytes = mem_new(parent, after->size);
    uint8_t *again = replay ? mem_new(parent, after->size) : NULL;
    bool ok = true;
    for (int pass = 0; pass < 1 + replay && ok; pass++) {
        ok = dev_write(cf->pool, rig->base, rig->image.bytes, rig->image.size, &err) &&
             move_far(cf, rig, rig->image.bytes, true, &err);
        if (ok && cf->o->kernel)
            cf->o->kernel(&rig->call);
        else
            ok = ok && prog_run(prog, NULL, &err);
        uint8_t *to = pass ? again : after->bytes;
        ok = ok && dev_read(cf->pool, rig->base, to, after->size, &err) &&
             move_far(cf, rig, to, false, &err);
    }
    prog_free(prog);
    if (!ok) return run_failed(result, &err);
    if (replay && memcmp(after->bytes, again, after->size)) {
        result->status = CONFORM_FAIL;
        snprintf(result->reason, sizeof result->reason, "replaying the program changed its result");
        return false;
    }
    if (!image_intact(after, &rig->image, c, result->reason, sizeof result->reason)) {
        result->status = CONFORM_FAIL;
        return false;
    }
    return true;
}

void conform_report(Conform *cf, const Case *c, const char *types, const char *row,
                    ConformResult *r) {
    r->device = dev_info(cf->dev)->id;
    r->op = op_info[c->op].name;
    r->name = c->name;
    r->row = row ? row : "";
    r->types = types ? types : "";
    if (r->status == CONFORM_OK) cf->totals.passed++;
    if (r->status == CONFORM_FAIL) cf->totals.failed++;
    if (r->status == CONFORM_SKIP) cf->totals.skipped++;
    if (cf->o->report) cf->o->report(cf->o->user, r);
}

// ---- coverage -----------------------------------------------------------------------------------
enum { MAX_ROWS = 64, MAX_FIELDS = 16, MAX_VALUES = 32 };
typedef struct Coverage {
    int ran[MAX_ROWS]; // cases per kernel row
    char why[MAX_ROWS][128];
    uint32_t value[MAX_FIELDS][MAX_VALUES]; // distinct values of each parameter, in cases that ran
    int values[MAX_FIELDS];
    int present[MAX_OPERANDS], absent[MAX_OPERANDS];
    int cases;
} Coverage;

static void cover_case(Coverage *cov, const Case *c) {
    cov->cases++;
    for (int i = 0; i < MAX_FIELDS && (size_t)i * 4 < op_info[c->op].params_size; i++) {
        uint32_t v;
        memcpy(&v, (const char *)&c->params + i * 4, 4);
        int k = 0;
        while (k < cov->values[i] && cov->value[i][k] != v) k++;
        if (k == cov->values[i] && k < MAX_VALUES) cov->value[i][cov->values[i]++] = v;
    }
    for (int i = 0; i < op_info[c->op].operand_count; i++)
        c->t[i].present ? cov->present[i]++ : cov->absent[i]++;
}

static void uncovered(Conform *cf, OpId op, const char *row, const char *name, const char *format,
                      ...) PRINTF_LIKE(5, 6);
static void uncovered(Conform *cf, OpId op, const char *row, const char *name, const char *format,
                      ...) {
    Case c = {.op = op};
    ConformResult r = {.status = CONFORM_FAIL};
    va_list args;
    va_start(args, format);
    vsnprintf(r.reason, sizeof r.reason, format, args);
    va_end(args);
    snprintf(c.name, sizeof c.name, "coverage %s", name);
    // A row that this device has no hardware for answers "... needs ..." to every case.
    if (row && strstr(r.reason, "needs ") && strncmp(r.reason, "no case", 7))
        r.status = CONFORM_SKIP;
    conform_report(cf, &c, NULL, row, &r);
}

// Every row must have run, every field and optional operand varied.
static void assert_coverage(Conform *cf, OpId op, const Coverage *cov) {
    const OpInfo *info = &op_info[op];
    const OpCases *cases = op_cases[op];
    char field[32];
    if (cf->o->type || cf->o->name) return; // narrowed: rows of other types cannot have run
    for (int row = 0; row < dev_row_count(cf->dev, op) && row < MAX_ROWS; row++) {
        const char *name = dev_row_name(cf->dev, op, row);
        if (cov->ran[row] || (cf->o->row && strcmp(cf->o->row, name))) continue;
        if (strstr(cov->why[row], "needs "))
            uncovered(cf, op, name, name, "%s", cov->why[row]);
        else
            uncovered(cf, op, name, name, "no case ran on this row; the last answer was: %s",
                      cov->why[row]);
    }
    if (cf->o->row) return;
    for (int i = 0; params_field(op, i, field); i++) {
        int want = strcmp(field, "unused") ? 2 : 0;
        for (const FieldRange *r = cases->ranges; r && r->name; r++)
            if (!strcmp(r->name, field)) want = r->values;
        if (cov->values[i] < want)
            uncovered(cf, op, NULL, field, "parameter %s took %d values, expected at least %d",
                      field, cov->values[i], want);
    }
    for (int i = 0; i < info->operand_count; i++) {
        bool optional = info->operand[i].role & ROLE_OPTIONAL;
        if (!cov->present[i] || (optional && !cov->absent[i]))
            uncovered(cf, op, NULL, info->operand[i].name, "operand %s was %s in every case",
                      info->operand[i].name, cov->present[i] ? "present" : "absent");
    }
}

// ---- one case -----------------------------------------------------------------------------------
typedef struct Truth { // a case's inputs and the oracle's outputs
    HostTensor t[MAX_OPERANDS];
    double *mag[MAX_OPERANDS];
} Truth;

static bool truth_new(Conform *cf, void *parent, const Case *c, Truth *truth, HostTensor *in,
                      Error *err) {
    const OpCases *cases = op_cases[c->op];
    const OpInfo *info = &op_info[c->op];
    conform_fill(parent, c, cf->seed, in);
    if (cases->derive) {
        if (!cases->derive(&cf->oracle, c, in, err)) return false;
        for (int i = 0; i < info->operand_count; i++) {
            if (c->t[i].fill != FILL_DERIVED || !in[i].present) continue;
            for (int64_t k = 0; k < in[i].count; k++) { // as its type holds it
                uint64_t cell = 0;
                dtype_store(in[i].dtype, &cell, 0, (float)in[i].v[k]);
                in[i].v[k] = dtype_load(in[i].dtype, &cell, 0);
            }
        }
    }
    for (int i = 0; i < info->operand_count; i++) {
        truth->t[i] = in[i];
        if (!in[i].present || !role_writes(info->operand[i].role)) continue;
        truth->t[i] = host_like(parent, &in[i]);
        memcpy(truth->t[i].v, in[i].v, (size_t)in[i].count * sizeof *in[i].v);
    }
    if (!oracle_run(&cf->oracle, c->op, &c->params, truth->t, err)) return false;
    for (int i = 0; i < info->operand_count; i++) {
        if ((c->exact >> i & 1) || !in[i].present || !role_writes(info->operand[i].role) ||
            !cases->magnitude)
            continue;
        HostTensor given[MAX_OPERANDS]; // inputs as given; pure outputs from the oracle
        for (int k = 0; k < MAX_OPERANDS; k++)
            given[k] = k < info->operand_count && role_reads(info->operand[k].role) ? in[k]
                                                                                    : truth->t[k];
        truth->mag[i] = MEM_ARRAY(parent, double, in[i].count);
        if (!cases->magnitude(&cf->oracle, c, given, i, truth->mag[i], err)) return false;
    }
    return true;
}

static void judge(const Case *c, const Truth *truth, const Image *after, ConformResult *r) {
    const OpInfo *info = &op_info[c->op];
    for (int i = 0; i < info->operand_count; i++) {
        if (!c->t[i].present || !role_writes(info->operand[i].role)) continue;
        double *got = MEM_ARRAY(NULL, double, truth->t[i].count);
        image_get(after, c, i, got);
        host_compare(c, i, &truth->t[i], truth->mag[i], got, r);
        mem_free(got);
    }
}

static bool wants_type(const ConformOptions *o, const Case *c) {
    if (!o->type) return true;
    for (int i = 0; i < op_info[c->op].operand_count; i++)
        if (c->t[i].present && !strcmp(dtype_name(c->t[i].dtype), o->type)) return true;
    return false;
}

static void run_rows(Conform *cf, void *parent, const Case *c, const char *types, int number,
                     bool thick, const Truth *truth, Rig *rig, Coverage *cov) {
    int ran = 0, rows = MIN(dev_row_count(cf->dev, c->op), (int)MAX_ROWS), fit = 0;
    char why[128] = "no kernel row of this device";
    for (int row = 0; row < rows; row++) fit += dev_row_fits(cf->dev, row, &rig->call, NULL);
    // A thinned case takes one of the rows that fit, another one each time.
    int only = cf->thin && !thick && fit > 0 ? number % fit : -1;
    for (int row = 0; row < rows; row++) {
        const char *name = dev_row_name(cf->dev, c->op, row);
        if (cf->o->row && strcmp(cf->o->row, name)) continue;
        ConformResult result = {.status = CONFORM_OK};
        rig->call.row = name;
        if (!dev_row_fits(cf->dev, row, &rig->call, why)) {
            if (!cov->ran[row]) memcpy(cov->why[row], why, sizeof why);
            continue;
        }
        if (only >= 0 && ran++ != only) continue;
        ran += only < 0;
        cov->ran[row]++;
        Image after;
        if (rig_run(cf, parent, c, rig, number % 8 == 0, &after, &result))
            judge(c, truth, &after, &result);
        conform_report(cf, c, types, name, &result);
    }
    if (ran) {
        cover_case(cov, c);
    } else if (!cf->o->row) {
        ConformResult result = {.status = CONFORM_SKIP};
        snprintf(result.reason, sizeof result.reason, "%s", why);
        conform_report(cf, c, types, NULL, &result);
    }
}

// thick: on every row even where ConformOptions.all would have to ask for it.
static void run_case(Conform *cf, const Case *c, const char *types, int number, bool thick,
                     Coverage *cov) {
    void *parent = mem_new(cf->mem, 1);
    Error err = {0};
    HostTensor in[MAX_OPERANDS] = {{0}};
    Truth truth = {0};
    Rig rig;
    if (truth_new(cf, parent, c, &truth, in, &err) && rig_new(cf, parent, c, in, &rig, &err)) {
        if (op_check(&rig.call, &err)) {
            run_rows(cf, parent, c, types, number, thick, &truth, &rig, cov);
            mem_free(parent);
            return;
        }
    }
    ConformResult result = {.status = CONFORM_FAIL};
    run_failed(&result, &err);
    conform_report(cf, c, types, NULL, &result);
    mem_free(parent);
}

enum { THIN = 4 };

static void run_op(Conform *cf, OpId op) {
    const OpCases *cases = op_cases[op];
    Coverage *cov = MEM_NEW(cf->mem, Coverage);
    int built = 0;
    for (int i = 0; i < cases->count; i++)
        for (int types = 0; types < cases->type_count; types++) {
            Case c = {.op = op};
            if (!cases->build(i, types, &c) || !wants_type(cf->o, &c)) continue;
            if (cf->o->name && strcmp(cf->o->name, c.name)) continue;
            if (cf->thin && types > 0 && (i + types) % THIN != 0) continue;
            if (conform_cancelled(cf->o, NULL)) {
                mem_free(cov);
                return;
            }
            built++;
            if (cf->o->list) {
                ConformResult r = {.status = CONFORM_OK};
                conform_report(cf, &c, cases->types[types], NULL, &r);
            } else {
                run_case(cf, &c, cases->types[types], built, types == 0, cov);
            }
        }
    // A device that supports nothing must not pass by skipping everything.
    bool narrowed = cf->o->type || cf->o->name || cf->o->row;
    if (!cf->o->list && !narrowed && cov->cases == 0)
        uncovered(cf, op, NULL, "op", "no kernel row of %s ran any case of %s",
                  dev_info(cf->dev)->id, op_info[op].name);
    else if (!cf->o->list && cov->cases > 0)
        assert_coverage(cf, op, cov);
    mem_free(cov);
}

bool conform_cancelled(const ConformOptions *o, Error *err) {
    if (!o->cancel || !o->cancel->asked(o->cancel->user)) return false;
    err_set(err, STATUS_CANCELLED, "conform: interrupted");
    return true;
}

bool conform_wants(const Conform *cf, OpId op) {
    return !cf->o->op || !strcmp(cf->o->op, op_info[op].name);
}

static bool check_options(Conform *cf, Error *err) {
    const ConformOptions *o = cf->o;
    bool op_known = !o->op, row_known = !o->row;
    DType type;
    for (OpId op = 0; op < OP_COUNT; op++) {
        if (!conform_wants(cf, op)) continue;
        op_known = true;
        for (int row = 0; row < dev_row_count(cf->dev, op); row++)
            if (o->row && !strcmp(o->row, dev_row_name(cf->dev, op, row))) row_known = true;
    }
    if (!op_known)
        return err_set(err, STATUS_USAGE, "--op: expected an op's name, found '%s'; "
                       "`kiln conform --list` names them", o->op);
    if (!row_known)
        return err_set(err, STATUS_USAGE, "--row: expected a kernel row of %s, found '%s'; "
                       "`kiln devices -v` names them", dev_info(cf->dev)->id, o->row);
    if (o->type && !dtype_parse(o->type, &type))
        return err_set(err, STATUS_USAGE, "--type: expected f32, f16 or bf16, found '%s'", o->type);
    return true;
}

bool conform_run(const ConformOptions *options, ConformTotals *totals, Error *err) {
    Conform cf = {.o = options, .mem = mem_new(NULL, 1)};
    cf.seed = options->seed ? options->seed : CONFORM_SEED;
    cf.dev = dev_open(cf.mem, options->device ? options->device : "cpu", &options->options, err);
    DeviceOptions plain = {.threads = 1};
    cf.oracle.dev = cf.dev ? dev_open(cf.mem, "ref", &plain, err) : NULL;
    bool ok = cf.oracle.dev && check_options(&cf, err);
    cf.thin = ok && dev_info(cf.dev)->kind == DEV_SOFTWARE && !options->all && !options->list &&
              !options->type && !options->name;
    if (ok && options->grad) {
        ok = conform_gradients(&cf, err);
    } else if (ok) {
        for (OpId op = 0; op < OP_COUNT; op++)
            if (conform_wants(&cf, op)) run_op(&cf, op);
    }
    ok = ok && !conform_cancelled(options, err);
    if (ok && cf.totals.passed + cf.totals.failed + cf.totals.skipped == 0)
        ok = err_set(err, STATUS_USAGE, "conform: expected options that some case meets, found "
                     "none; `kiln conform --list` shows all cases");
    buf_free(cf.pool);
    if (cf.oracle.dev) dev_close(cf.oracle.dev);
    if (cf.dev) dev_close(cf.dev);
    mem_free(cf.mem);
    *totals = cf.totals;
    return ok;
}
