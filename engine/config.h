// config.h: a part's configuration (config.json and the like): read, and held against its tensors.
//
// Thread-safety: pure functions of their arguments.
#ifndef KILN_ENGINE_CONFIG_H
#define KILN_ENGINE_CONFIG_H

#include "engine/json.h"

typedef struct ConfigFile {
    const char *path; // for messages
    const char *text; // NULL: there is none
} ConfigFile;

// FOLDER/NAME into *out, below `parent`; a missing file leaves out->text NULL. Text of 1 MiB at most.
bool config_read(void *parent, const char *folder, const char *name, ConfigFile *out, Error *err);
// The file's JSON, for json_free; NULL with an error. `file` has text.
Json *config_parse(const ConfigFile *file, Error *err);

// Members: a whole number from 0 to 2^24, a number from `low` to `high`, a text (that lives as long as
// the tree), true or false; another kind is an error. Missing or null they leave *value.
bool config_int(const ConfigFile *file, const Json *root, const char *name, int *value, Error *err);
bool config_number(const ConfigFile *file, const Json *root, const char *name, double low, double high,
                   double *value, Error *err);
bool config_text(const ConfigFile *file, const Json *root, const char *name, const char **value, Error *err);
bool config_flag(const ConfigFile *file, const Json *root, const char *name, bool *value, Error *err);

// What the tensors say and a member repeats: numbers, or true and false as 1 and 0. Members that
// are missing or null agree.
typedef struct ConfigFact {
    const char *name;
    int64_t is;
} ConfigFact;
bool config_agrees(const ConfigFile *file, const Json *root, const ConfigFact *facts, int count,
                   Error *err);
// The same of a member that lists `count` numbers.
bool config_list_agrees(const ConfigFile *file, const Json *root, const char *name, const int *is, int count,
                        Error *err);

// A size, and what it may be.
typedef struct ConfigRange {
    const char *name;
    int value, low, high;
} ConfigRange;
// The error is "MODEL: expected NAME from LOW to HIGH, found VALUE".
bool config_in_ranges(const char *model, const ConfigRange *ranges, int count, Error *err);

#endif
