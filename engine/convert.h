// convert.h: weights into a new file: other names, other types, safetensors or GGUF. Tensor by
// tensor and span by span: a conversion holds the names, and a few megabytes per thread.
//
//   Conversion *c = conversion_new(parent, CONVERT_GGUF, DT_Q8_0);
//   conversion_add(c, "img_in.weight", &bound, keep, &err) for every tensor;
//   conversion_write(c, path, &options, &err);
//
// Which type a tensor gets when a type is asked for:
//  - f32, f16, bf16: every tensor of real numbers. In GGUF those of one dimension are f32 whatever
//    is asked, as readers of GGUF expect.
//  - blocks and fp8: matrices (two dimensions) that are not marked `keep` and whose rows are whole
//    blocks. fp8 is a plain cast where that loses no range. Else (numbers past fp8's largest, or
//    a root mean square below twice its smallest normal number, 1/32 for e4m3, under which
//    mantissa bits are lost) the part gets ComfyUI's scaled layout: a number "NAME.scale_weight"
//    beside each "NAME.weight", and the marker `scaled_fp8`. The scale maps the largest magnitude
//    to fp8's largest number; it is 1 where the cast does.
//  - what keeps its type, but has one that the file's format lacks, gets f16 where it is plain
//    fp8 (which f16 holds exactly), else f32.
//  - pieces that become one tensor: of several types, f32; of fp8 with several scales, rounded anew
//    for a common one.
// With no type asked for, types stay; bytes are copied as they are.
//
// Thread-safety: a Conversion belongs to one thread; writing starts others.
#ifndef KILN_ENGINE_CONVERT_H
#define KILN_ENGINE_CONVERT_H

#include "backend/backend.h" // Cancel
#include "engine/bind.h"

typedef enum { CONVERT_SAFETENSORS, CONVERT_GGUF } ConvertFormat;
// By the ending of a file's name; STATUS_USAGE.
bool convert_format(const char *path, ConvertFormat *out, Error *err);
// Can files of this format hold the type (DT_COUNT: always)? STATUS_USAGE, with what to do.
bool convert_check_type(ConvertFormat format, DType type, Error *err);

typedef struct Conversion Conversion;
// type: DT_COUNT: as they are.
Conversion *conversion_new(void *parent, ConvertFormat format, DType type); // freed by mem_free
// Metadata: texts, copied. GGUF's own entries (architecture, file type, version) come by
// themselves; safetensors' "format" too.
void conversion_meta(Conversion *c, const char *key, const char *value);
void conversion_architecture(Conversion *c, const char *name); // GGUF's general.architecture

typedef struct ConvertRules {
    DType type;  // that is asked for of this tensor; DT_COUNT: as it is
    bool keep;   // no packed type, if it is not packed already
    // Types that the format lacks become plain numbers (f16, f32); else they are an error that says
    // which types there are.
    bool widen;
} ConvertRules;

// Copies *from (a weight of engine/bind.h in BIND_PLAIN layout; what it stands on must live until
// the file is written). Absent optional weights (no pieces) are skipped.
bool conversion_add(Conversion *c, const char *name, const BoundWeight *from,
                    const ConvertRules *rules, Error *err);
// A tensor as it is, of any type that the format has (whole numbers).
bool conversion_copy(Conversion *c, const char *name, const Weights *w, const WeightTensor *t,
                     Error *err);
// All of a set of weights, under `prefix` and their own names: fp8's scales are understood, its
// marks and numbers that are no weights kept out of the way.
bool conversion_add_all(Conversion *c, const char *prefix, const Weights *w,
                        const ConvertRules *rules, Error *err);
// The tensors under `prefix` are a part: where one of its fp8 matrices needs a scale, all of them
// have one, and the marker `scaled_fp8` tells it. Once per part; prefixes that begin others do not
// mix with these.
void conversion_mark(Conversion *c, const char *prefix);

typedef struct ConvertOptions {
    int threads; // 0: all cores
    const Cancel *cancel; // may be NULL
    // stage: "measure" (fp8's scales) or "write"; bytes of the stage. May be NULL.
    void (*progress)(void *user, const char *stage, uint64_t done, uint64_t total);
    void *user;
} ConvertOptions;

typedef struct ConvertReport {
    int tensors, by_type[DT_COUNT];
    uint64_t bytes, type_bytes[DT_COUNT];
    // Matrices that kept a wider type than the packed one asked for: `kept` because they are marked
    // so, `odd` because their rows are not whole blocks.
    int kept, odd;
    const char *odd_name;  // the first of these; NULL: none
    int64_t odd_row;
    double seconds;
} ConvertReport;

// Whole or not at all (backend/os.h). Numbers that the new type cannot hold (past f16's range; NaN
// and infinities in anything but copies) are an error that names the tensor.
bool conversion_write(Conversion *c, const char *path, const ConvertOptions *options,
                      ConvertReport *report, Error *err);

#endif
