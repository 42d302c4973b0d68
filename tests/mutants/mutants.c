// mutants.c: can the conformance driver fail? Each mutant of this program's set must be caught by
// the case that tests/mutants/mutants.txt names for it. MUTANT_SET is "ref", "cpu" or "vulkan".
#include "tests/conform.h"

typedef struct Mutant {
    const char *name, *op, *where;
    bool applied;
    void (*kernel)(const OpCall *call); // set ref only
} Mutant;

#ifdef MUTANT_KERNELS
#define MUTANT(name, op, where, applied) void mutant_##name(const OpCall *call);
#include MUTANT_TABLE
#undef MUTANT
#define KERNEL(name) mutant_##name
#else
#define KERNEL(name) NULL
#endif

static const Mutant mutants[] = {
#define MUTANT(name, op, where, applied) {#name, op, where, applied, KERNEL(name)},
#include MUTANT_TABLE
#undef MUTANT
    {0},
};

enum { TILE = 64 * 64 };

typedef struct Caught { int cases; long long wrong; char reason[320]; } Caught;

static void report(void *user, const ConformResult *r) {
    Caught *caught = user;
    if (r->status != CONFORM_FAIL || !strncmp(r->name, "coverage", 8)) return;
    long long wrong = 0;
    const char *count = strchr(r->reason, ':');
    if (count && sscanf(count, ": %lld of", &wrong) == 1 && wrong > caught->wrong)
        caught->wrong = wrong;
    if (!caught->cases++) snprintf(caught->reason, sizeof caught->reason, "%s", r->reason);
}

static bool run(const Mutant *m) {
    Error err = {0};
    Caught caught = {0};
    ConformTotals totals;
    ConformOptions o = {.device = MUTANT_SET, .op = m->op, .name = m->where, .kernel = m->kernel,
                        .report = report, .user = &caught};
    if (!m->applied) {
        printf("FAIL %s: its line was not found in the source exactly once\n", m->name);
        return false;
    }
    if (!conform_run(&o, &totals, &err)) {
        printf("FAIL %s: %s\n", m->name, err.text);
        return false;
    }
    if (caught.wrong > TILE) {
        printf("FAIL %s: spoils %lld elements, more than a tile: too easy to notice\n", m->name,
               caught.wrong);
        return false;
    }
    if (!caught.cases) printf("FAIL %s: %s '%s' did not notice\n", m->name, m->op, m->where);
    else printf("ok   %s: caught by %s '%s': %s\n", m->name, m->op, m->where, caught.reason);
    return caught.cases > 0;
}

int main(void) {
    Error err = {0};
    Device *dev = dev_open(NULL, MUTANT_SET, NULL, &err);
    if (!dev) {
        printf("SKIP: no device " MUTANT_SET ": %s\n", err.text);
        return 77;
    }
    dev_close(dev);
    int failed = 0, count = 0;
    for (; mutants[count].name; count++) failed += !run(&mutants[count]);
    printf("%d mutants, %d not caught\n", count, failed);
    return failed > 0 || count == 0;
}
