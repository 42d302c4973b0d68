// options.c: see options.h.
#include "tools/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

// ---- ranges, as messages and the help show them -----------------------------------------------

static char *size_text(void *parent, double bytes) {
    static const char *const units = "KMGTP";
    int unit = -1;
    while (bytes >= 1024 && fmod(bytes, 1024) == 0 && unit < 3) bytes /= 1024, unit++;
    return unit < 0 ? mem_printf(parent, "%.0f byte%s", bytes, bytes == 1 ? "" : "s")
                    : mem_printf(parent, "%.0f%c", bytes, units[unit]);
}

static const char *choice_name(const Option *o, int i, char *out, size_t size) {
    if (o->choice_at) return o->choice_at(i);
    const char *at = o->choices;
    for (; i > 0 && at; i--) at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL;
    if (!at) return NULL;
    snprintf(out, size, "%.*s", (int)strcspn(at, ","), at);
    return out;
}

char *option_range(void *parent, const Option *o) {
    switch (o->kind) {
    case OPT_INT: return mem_printf(parent, "a whole number from %.0f to %.0f", o->min, o->max);
    case OPT_SEED: return mem_printf(parent, "a whole number from 0 to 18446744073709551615");
    case OPT_NUMBER: return mem_printf(parent, "a number from %.15g to %.15g", o->min, o->max);
    case OPT_SIZE: {
        char *lo = size_text(parent, o->min), *hi = size_text(parent, o->max);
        return mem_printf(parent, "a size from %s to %s, such as 512M or 8G", lo, hi);
    }
    case OPT_DEVICE: return mem_printf(parent, "auto, ref, cpu, vulkan[:N] or cuda[:N]");
    case OPT_CHOICE: {
        char *text = mem_strdup(parent, ""), name[64];
        const char *next;
        for (int i = 0; (next = choice_name(o, i, name, sizeof name)); i++) {
            char after[64];
            bool last = !choice_name(o, i + 1, after, sizeof after);
            text = mem_printf(parent, "%s%s%s", text, i == 0 ? "" : last ? " or " : ", ", next);
        }
        return text;
    }
    default: return mem_strdup(parent, "");
    }
}

// ---- values -----------------------------------------------------------------------------------

// Decimal digits only, so that " 1", "+1", "0x10" and "1e9" are not whole numbers.
static bool parse_whole(const char *text, bool sign, bool *negative, uint64_t *out) {
    *negative = sign && *text == '-';
    if (*negative) text++;
    if (!*text) return false;
    uint64_t n = 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9') return false;
        if (!mul_size(n, 10, &n) || !add_size(n, (uint64_t)(*text - '0'), &n)) return false;
    }
    *out = n;
    return true;
}

static bool parse_int(const Option *o, const char *text, int64_t *out) {
    bool negative;
    uint64_t n;
    if (!parse_whole(text, true, &negative, &n) || n > (uint64_t)1 << 53) return false;
    *out = negative ? -(int64_t)n : (int64_t)n;
    return (double)*out >= o->min && (double)*out <= o->max;
}

// strtod would take "nan", "inf", hexadecimal and leading blanks too.
static bool parse_decimal(const char *text, char **end, double *out) {
    const char *digits = text + (*text == '-');
    if (!isdigit((unsigned char)digits[0]) &&
        !(digits[0] == '.' && isdigit((unsigned char)digits[1])))
        return false;
    if (digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X')) return false;
    *out = strtod(text, end);
    return isfinite(*out);
}

static bool parse_number(const Option *o, const char *text, double *out) {
    char *end;
    return parse_decimal(text, &end, out) && !*end && *out >= o->min && *out <= o->max;
}

static bool parse_size(const Option *o, const char *text, uint64_t *out) {
    char *end;
    double n;
    if (!parse_decimal(text, &end, &n) || strpbrk(text, "eE")) return false;
    static const char units[] = "KMGT";
    if (*end) {
        const char *unit = strchr(units, toupper((unsigned char)*end));
        if (!unit) return false;
        n = ldexp(n, 10 * (int)(unit - units + 1));
        end++;
        if (strcmp(end, "iB") != 0 && strcmp(end, "B") != 0 && *end) return false;
    }
    if (!(n >= o->min && n <= o->max)) return false;
    *out = (uint64_t)n;
    return true;
}

static bool parse_device(const char *text) {
    if (strcmp(text, "auto") == 0 || strcmp(text, "ref") == 0 || strcmp(text, "cpu") == 0)
        return true;
    size_t n = strcspn(text, ":");
    if (!(n == 6 && memcmp(text, "vulkan", 6) == 0) && !(n == 4 && memcmp(text, "cuda", 4) == 0))
        return false;
    bool negative;
    uint64_t index;
    if (!text[n]) return true;
    return strlen(text + n + 1) <= 3 && parse_whole(text + n + 1, false, &negative, &index);
}

static bool parse_choice(const Option *o, const char *text, const char **out) {
    char name[64];
    const char *next;
    for (int i = 0; (next = choice_name(o, i, name, sizeof name)); i++)
        if (strcmp(next, text) == 0) return *out = text, true;
    return false;
}

bool option_value(const Option *o, const char *name, const char *text, void *field, Error *err) {
    bool ok = true, negative;
    switch (o->kind) {
    case OPT_TEXT: case OPT_MAYBE: *(const char **)field = text; break;
    case OPT_INT: ok = parse_int(o, text, field); break;
    case OPT_SEED: ok = parse_whole(text, false, &negative, field); break;
    case OPT_NUMBER: ok = parse_number(o, text, field); break;
    case OPT_SIZE: ok = parse_size(o, text, field); break;
    case OPT_CHOICE: ok = parse_choice(o, text, field); break;
    case OPT_DEVICE: ok = parse_device(text), *(const char **)field = text; break;
    case OPT_FLAG: case OPT_LIST: case OPT_LATER: ok = false; break; // not single values
    }
    if (ok) return true;
    void *scope = mem_new(NULL, 1);
    char *range = option_range(scope, o);
    err_set(err, STATUS_USAGE, "%s: expected %s, found \"%.100s\"", name, range, text);
    mem_free(scope);
    return false;
}

// ---- nearest name -----------------------------------------------------------------------------

enum { NAME_MAX_LENGTH = 40 };

// Levenshtein's distance; names longer than NAME_MAX_LENGTH are far from everything.
static int spelling_distance(const char *a, const char *b) {
    int row[NAME_MAX_LENGTH + 1], na = (int)strlen(a), nb = (int)strlen(b);
    if (na > NAME_MAX_LENGTH || nb > NAME_MAX_LENGTH) return NAME_MAX_LENGTH;
    for (int j = 0; j <= nb; j++) row[j] = j;
    for (int i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= nb; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = MIN(change, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[nb];
}

const char *nearest_name(const char *text, const char *(*at)(const void *user, int i),
                         const void *user) {
    const char *best = NULL, *name;
    int least = (int)(strlen(text) + 2) / 3 + 1; // "stpes" is near "steps", "xyz" near nothing
    for (int i = 0; (name = at(user, i)); i++) {
        int d = spelling_distance(text, name);
        if (d < least) least = d, best = name;
    }
    return best;
}

// ---- the command line -------------------------------------------------------------------------

typedef struct Parse {
    void *parent;
    const char *what;
    const Option *table;
    int count, argc;
    char **argv, *values;
    bool *given;
    Error *err;
} Parse;

static const char *long_name_at(const void *user, int i) {
    const Parse *p = user;
    for (int k = 0; k < p->count; k++)
        if (!p->table[k].operand && i-- == 0) return p->table[k].name;
    return NULL;
}

static const Option *find_long(const Parse *p, const char *name, size_t n) {
    for (int k = 0; k < p->count; k++) {
        const Option *o = &p->table[k];
        if (o->operand) continue;
        if (strlen(o->name) == n && memcmp(o->name, name, n) == 0) return o;
        if (o->alias && strlen(o->alias) == n && memcmp(o->alias, name, n) == 0) return o;
    }
    return NULL;
}

static const Option *find_letter(const Parse *p, char letter) {
    for (int k = 0; k < p->count; k++)
        if (letter && !p->table[k].operand && p->table[k].letter == letter) return &p->table[k];
    return NULL;
}

static bool take(Parse *p, const Option *o, const char *shown, const char *text) {
    if (o->kind == OPT_LATER)
        return err_set(p->err, STATUS_USAGE, "%s: %s: not available in this version; %s", p->what,
                       shown, o->help);
    if (p->given) p->given[o - p->table] = true;
    void *field = p->values + o->offset;
    if (o->kind == OPT_FLAG) return *(bool *)field = true;
    if (o->kind == OPT_LIST) {
        ARR_PUSH(p->parent, (OptList *)field, text);
        return true;
    }
    return option_value(o, shown, text, field, p->err) || err_prefix(p->err, "%s", p->what);
}

// The value of `o` as the next argument. One that is spelled like an option of this subcommand is
// taken for a forgotten value.
static const char *next_value(Parse *p, const Option *o, const char *shown, int *i) {
    const char *next = *i + 1 < p->argc ? p->argv[*i + 1] : NULL;
    bool option = next && next[0] == '-' && next[1] == '-' && next[2] &&
                  find_long(p, next + 2, strcspn(next + 2, "="));
    if (next && !option) return p->argv[++*i];
    void *scope = mem_new(NULL, 1);
    char *range = option_range(scope, o);
    const char *wanted = *range ? range : o->value ? o->value : "a value";
    err_set(p->err, STATUS_USAGE, "%s: %s: expected %s after it, found %s%s", p->what, shown,
            wanted, next ? "the option " : "nothing", next ? next : "");
    mem_free(scope);
    return NULL;
}

static bool unknown(Parse *p, const char *shown, const char *name) {
    const char *near = name ? nearest_name(name, long_name_at, p) : NULL;
    if (near)
        return err_set(p->err, STATUS_USAGE, "%s: unknown option %.100s; did you mean --%s?",
                       p->what,
                       shown, near);
    return err_set(p->err, STATUS_USAGE, "%s: unknown option %.100s; `kiln help %s` lists them",
                   p->what, shown, p->what);
}

static bool parse_long(Parse *p, int *i) {
    const char *arg = p->argv[*i], *equals = strchr(arg, '=');
    size_t n = equals ? (size_t)(equals - arg) : strlen(arg);
    char shown[128], name[128];
    snprintf(shown, sizeof shown, "%.*s", (int)MIN(n, sizeof shown - 1), arg);
    snprintf(name, sizeof name, "%s", shown + 2);
    const Option *o = find_long(p, arg + 2, n - 2);
    if (!o) return unknown(p, shown, name);
    if (o->kind == OPT_FLAG && equals)
        return err_set(p->err, STATUS_USAGE, "%s: %s: expected no value, found \"%.100s\"", p->what,
                       shown, equals + 1);
    if (o->kind == OPT_FLAG || o->kind == OPT_LATER) return take(p, o, shown, NULL);
    const char *next = *i + 1 < p->argc ? p->argv[*i + 1] : NULL;
    if (o->kind == OPT_MAYBE && !equals && (!next || next[0] == '-')) return take(p, o, shown, "");
    const char *text = equals ? equals + 1 : next_value(p, o, shown, i);
    return text && take(p, o, shown, text);
}

static bool parse_letters(Parse *p, int *i) { // -v, -W 32, -W32, -qv
    const char *arg = p->argv[*i];
    for (int k = 1; arg[k]; k++) {
        char shown[3] = {'-', arg[k], 0};
        const Option *o = find_letter(p, arg[k]);
        if (!o) return unknown(p, k == 1 ? arg : shown, NULL);
        if (o->kind == OPT_FLAG || o->kind == OPT_LATER) {
            if (!take(p, o, shown, NULL)) return false;
            continue;
        }
        const char *text = arg[k + 1] ? arg + k + 1 : next_value(p, o, shown, i);
        return text && take(p, o, shown, text);
    }
    return true;
}

static bool parse_operand(Parse *p, const char *text, bool *taken) {
    for (int k = 0; k < p->count; k++) {
        const Option *o = &p->table[k];
        if (!o->operand || (taken[k] && o->kind != OPT_LIST)) continue;
        taken[k] = true;
        return take(p, o, o->name, text);
    }
    return err_set(p->err, STATUS_USAGE, "%s: expected an option, found \"%.100s\"; `kiln help %s` "
                   "lists them", p->what, text, p->what);
}

static bool fill_defaults(Parse *p) {
    for (int k = 0; k < p->count; k++) {
        const Option *o = &p->table[k];
        if (o->fallback && !option_value(o, o->name, o->fallback, p->values + o->offset, p->err))
            return err_prefix(p->err, "%s: default", p->what);
    }
    return true;
}

bool options_parse(void *parent, const char *what, const Option *table, int count, int argc,
                   char **argv, void *values, bool *given, Error *err) {
    Parse p = {parent, what, table, count, argc, argv, values, given, err};
    if (!fill_defaults(&p)) return false;
    bool *taken = MEM_ARRAY(NULL, bool, count + 1), ok = true, only_operands = false;
    for (int i = 0; i < argc && ok; i++) {
        const char *arg = argv[i];
        if (only_operands || arg[0] != '-' || !arg[1]) ok = parse_operand(&p, arg, taken);
        else if (strcmp(arg, "--") == 0) only_operands = true;
        else if (arg[1] == '-') ok = parse_long(&p, &i);
        else ok = parse_letters(&p, &i);
    }
    for (int k = 0; k < count && ok; k++) {
        const Option *o = &table[k];
        if (!o->operand || !o->required || taken[k]) continue;
        void *scope = mem_new(NULL, 1);
        char *range = option_range(scope, o);
        ok = err_set(err, STATUS_USAGE, "%s: expected %s%s%s%s, found nothing; try `kiln help %s`",
                     what, o->name, *range ? " (" : "", range, *range ? ")" : "", what);
        mem_free(scope);
    }
    mem_free(taken);
    return ok;
}
