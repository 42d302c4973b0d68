// conform.h: the conformance driver: every case of every op on every kernel row of a device,
// against the oracle (device `ref`, one f32 tensor per operand, contiguous, f64 sums).
//
// A case describes one call: shapes, strides, types, parameters and how inputs are filled. The
// driver builds the tensors between guard zones of NaN, poisons outputs with NaN, forces each
// kernel row in turn, and compares every element. docs/conformance.md explains the rules.
#ifndef KILN_CONFORM_H
#define KILN_CONFORM_H

#include "backend/backend.h"

// ---- what the caller asks for, and gets ---------------------------------------------------------
typedef enum { CONFORM_OK, CONFORM_FAIL, CONFORM_SKIP } ConformStatus;
typedef struct ConformResult {
    const char *device, *op, *name, *row, *types; // name: the case
    ConformStatus status;
    double max_error, limit; // of the worst element (error beyond its own limit the furthest)
    double nmse;             // sum (d - ref)^2 / sum ref^2, the worst output
    char reason[320];        // empty where ok
} ConformResult;
typedef void (*ConformReport)(void *user, const ConformResult *result);

typedef struct ConformOptions {
    const char *device;    // what dev_open takes; NULL: "cpu"
    const char *op;        // only this op; NULL: all
    const char *type;      // only cases where some operand has this type
    const char *row;       // only this kernel row
    const char *name;      // only this case
    bool grad;             // gradient mode instead of values
    bool list;             // report each case as ok without running it
    // A software Vulkan driver compiles for seconds where others take milliseconds, so by default
    // it runs f32 in all cases on every row, and every fourth of the others on one row each, in
    // turn; `all`: every case on every row.
    bool all;
    uint64_t seed;         // 0: CONFORM_SEED
    DeviceOptions options; // for the device under test
    ConformReport report;
    void *user;
    const Cancel *cancel; // asked between cases: STATUS_CANCELLED; may be NULL
    // Tests of the driver: run this instead of the device's own kernel (device must be `ref`).
    void (*kernel)(const OpCall *call);
} ConformOptions;
enum { CONFORM_SEED = 20240607 };

typedef struct ConformTotals { int passed, failed, skipped; } ConformTotals;

// Returns false where nothing could be run at all (unknown op, no such device): see err. Failing
// cases are in `totals` and the reports, not an error.
bool conform_run(const ConformOptions *options, ConformTotals *totals, Error *err);

// ---- what tests/cases_<op>.c gives --------------------------------------------------------------
// EXACT: small dyadic numbers, so that sums are exact in any order and compare with ==.
// RANDOM: shift + amp * uniform(-1, 1). OUTLIERS: the same, one element in 61 times 200.
// Packed types: random blocks with sane scales, whatever the fill; contiguous, whole blocks apart.
// IDS: whole numbers 0..range-1. ZERO: zeros. DERIVED: made by OpCases.derive. POISON: NaN.
typedef enum {
    FILL_EXACT, FILL_RANDOM, FILL_OUTLIERS, FILL_IDS, FILL_ZERO, FILL_DERIVED, FILL_POISON
} Fill;

typedef struct Case Case;
typedef struct CaseTensor {
    bool present;
    DType dtype;
    int ndim;
    int64_t shape[MAX_DIMS], stride[MAX_DIMS];
    int64_t lead;  // elements between the alignment point and the first element (sliced views)
    Fill fill;
    double amp, shift;
    int64_t range;
    // Overrides `fill`: element `index` (row-major) from 64 random bits.
    double (*value)(const Case *c, int operand, int64_t index, uint64_t random);
    // 1 + the operand of the same type inside whose block this one lies, `lead` elements after its
    // first (in place: lead 0; q, k, v packed in one tensor: lead > 0); 0: memory of its own.
    int alias;
    // 1 + the dimension (all before it of length 1) whose steps are over 4 GiB apart on the device,
    // or as far as fits; 0: none. At most one operand of a case.
    int far;
} CaseTensor;

struct Case {
    char name[80];
    OpId op;
    CaseTensor t[MAX_OPERANDS];
    OpParams params;
    unsigned exact; // bit i: output i compares with ==
    double c;     // factor of the rounding bound; 0: 4
    double nmse;  // limit; 0: by the output's type
    uint64_t base; // bytes of untouched memory in front (64-bit addressing), cut to what fits
    int64_t knob;  // for the op's own use
};

// A tensor as the oracle sees it: row-major, f64 values that its type can represent.
typedef struct HostTensor {
    bool present;
    DType dtype;
    int ndim;
    int64_t shape[MAX_DIMS], count;
    double *v;
    uint8_t *packed; // packed types: the bytes that v was decoded from
} HostTensor;

// Runs op on the oracle: reads inputs (and read-write operands) from t, fills outputs in t (whose
// shapes must be set and v allocated).
typedef struct Oracle { Device *dev; } Oracle;
bool oracle_run(const Oracle *o, OpId op, const OpParams *params, HostTensor *t, Error *err);

typedef struct FieldRange { const char *name; int values; } FieldRange; // distinct values required
typedef struct OpCases {
    const char *const *types; // names of the type combinations
    int type_count, count;
    // Fills *c (zeroed, op set). False: this case does not exist in these types.
    bool (*build)(int index, int types, Case *c);
    // What the rounding bound is relative to, per element of `output`: NULL: |ref|. `t` holds the
    // inputs as given and the oracle's outputs.
    bool (*magnitude)(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err);
    // Computes inputs marked FILL_DERIVED.
    bool (*derive)(const Oracle *o, const Case *c, HostTensor *t, Error *err);
    const FieldRange *ranges; // ended by a NULL name; other fields need 2 distinct values
} OpCases;

#define OP(name, NAME, Name) extern const OpCases name##_cases;
#include "backend/ops.def"
#undef OP
extern const OpCases *const op_cases[OP_COUNT];

// ---- for build functions ------------------------------------------------------------------------
enum { CASE_EXACT = 0xffff }; // all outputs
#define SHAPE(...) (const int64_t[]){__VA_ARGS__}
// Sets operand i: contiguous, of the given shape. Returns it for further changes.
CaseTensor *case_tensor(Case *c, int i, DType dtype, Fill fill, int ndim, const int64_t *shape);
// Widens the outer strides: each dimension d < ndim - 1 gets `gap` elements more than it needs.
void case_gap(CaseTensor *t, int64_t gap);
void case_transpose(CaseTensor *t, int a, int b); // swaps two dimensions of the view
double case_uniform(uint64_t random);             // -1..1
double case_exact(uint64_t random);               // one of -1, -0.5, -0.25, 0, 0.25, 0.5, 1
HostTensor host_abs(void *parent, const HostTensor *t); // |t|
HostTensor host_like(void *parent, const HostTensor *t);
HostTensor host_new(void *parent, DType dtype, int ndim, const int64_t *shape);

// ---- between the driver's files -----------------------------------------------------------------
// All operands of a case as bytes, in one buffer: guard, tensor, guard, tensor, ..., guard.
enum { CONFORM_GUARD = 2048 };
typedef struct Image {
    uint8_t *bytes;
    size_t size, first[MAX_OPERANDS]; // first: bytes to each operand's first element
} Image;
void conform_fill(void *parent, const Case *c, uint64_t seed, HostTensor t[MAX_OPERANDS]);
Image case_image_new(void *parent, const Case *c, const HostTensor *t, uint32_t align);
void image_get(const Image *image, const Case *c, int operand, double *v);
// True where only elements of outputs differ between the two; else says where.
bool image_intact(const Image *after, const Image *before, const Case *c, char *why, size_t n);
uint64_t conform_hash(uint64_t seed, const char *text);
uint64_t conform_mix(uint64_t x);
double dtype_rounding(DType dtype); // unit roundoff of an output's type: 2^-24, 2^-11, 2^-8
// Judges one output, lowers result->status, raises its figures.
void host_compare(const Case *c, int output, const HostTensor *ref, const double *mag,
                  const double *got, ConformResult *result);
// The name of field i (32 bits each) of an op's parameters; false past the last.
bool params_field(OpId op, int i, char name[32]);

typedef struct Conform {
    const ConformOptions *o;
    void *mem;
    Oracle oracle;
    Device *dev;
    Buffer *pool; // grows to the largest case
    uint64_t seed;
    bool thin; // see ConformOptions.all
    ConformTotals totals;
} Conform;
// A case's tensors on the device.
typedef struct Rig {
    Image image; // as uploaded
    OpCall call;
    uint64_t base; // bytes of the pool in front of the image
    int far;       // the operand with far steps, -1: none; it lies behind the image
    int64_t steps;
    uint64_t step_bytes, apart; // in the image, and on the device
} Rig;
bool rig_new(Conform *cf, void *parent, const Case *c, const HostTensor *in, Rig *rig, Error *err);
// Uploads, runs call->row (twice where `replay`, which must agree to the bit), reads back.
bool rig_run(Conform *cf, void *parent, const Case *c, const Rig *rig, bool replay, Image *after,
             ConformResult *result);
void conform_report(Conform *cf, const Case *c, const char *types, const char *row,
                    ConformResult *result);
bool conform_wants(const Conform *cf, OpId op);
bool conform_cancelled(const ConformOptions *o, Error *err); // true, with err, once asked to stop
bool conform_gradients(Conform *cf, Error *err);

#endif
