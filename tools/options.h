// options.h: one table per subcommand, from which the command line is parsed and checked, and
// `kiln help SUBCOMMAND` and the manual page are made.
//
// Thread-safety: no state.
#ifndef KILN_TOOLS_OPTIONS_H
#define KILN_TOOLS_OPTIONS_H

#include "backend/base.h"

// What a value must look like, and the C type of the field that receives it.
typedef enum {
    OPT_FLAG,   // bool; takes no value
    OPT_TEXT,   // const char *
    OPT_MAYBE,  // const char *: a text that may be left out ("" then); never spelled like an option
    OPT_LIST,   // OptList: may be given several times
    OPT_INT,    // int64_t in min..max
    OPT_SEED,   // uint64_t, 0 to 2^64-1
    OPT_NUMBER, // double in min..max
    OPT_SIZE,   // uint64_t bytes in min..max: 512M, 8G, 1.5G
    OPT_CHOICE, // const char *: one of `choices` or of the names that `choice_at` gives
    OPT_DEVICE, // const char *: auto, ref, cpu, vulkan[:N], cuda[:N]
    OPT_LATER,  // known, but not there yet: refused with `help`, a sentence that says what to do
} OptionKind;

typedef struct OptList { const char **v; int n, cap; } OptList;

typedef struct Option {
    const char *name;  // long name without dashes; of an operand: as shown, "PATH"
    char letter;       // 0: none
    OptionKind kind;
    size_t offset;     // of the field in the subcommand's struct: FIELD(T, f)
    const char *value; // what the help calls the value: "FILE"
    const char *help;  // sentences; the range and default follow by themselves
    const char *fallback; // the default, written as a user would; parsed first. NULL: zero or NULL
    const char *says;  // shown as default in place of `fallback` ("random, and printed")
    double min, max;   // OPT_INT (whole numbers to 2^53), OPT_NUMBER, OPT_SIZE
    const char *choices;               // "torch,cuda"
    const char *(*choice_at)(int i);   // NULL past the last
    const char *alias; // a second long name
    const char *group; // heading in the help; NULL: that of the row above
    bool operand;      // taken by position, not by name
    bool required;     // operands only: must be given
} Option;

#define FIELD(T, f) .offset = offsetof(T, f)

// Parses argv[0..argc) into `values` (zeroed by the caller, laid out as the table says). `what`
// names the subcommand in messages. given[i] becomes true for rows found (may be NULL; `count`
// bytes). Anything wrong: STATUS_USAGE with the allowed range or names. Texts point into argv or
// the table; lists hang on `parent`.
bool options_parse(void *parent, const char *what, const Option *table, int count, int argc,
                   char **argv, void *values, bool *given, Error *err);
// One value as a row of a table would take it (environment variables); `name` begins the message.
bool option_value(const Option *o, const char *name, const char *text, void *field, Error *err);
// "0 to 100", "torch, cuda"; empty where any text will do.
char *option_range(void *parent, const Option *o);
// The candidate nearest to `text` in spelling, NULL when none is near.
const char *nearest_name(const char *text, const char *(*at)(const void *user, int i),
                         const void *user);

#endif
