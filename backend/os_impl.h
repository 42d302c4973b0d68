// os_impl.h: the inside of os.h: what os_common.c (the same on every system) takes from the system's own
// file, and what both systems' files say alike.
#ifndef KILN_OS_IMPL_H
#define KILN_OS_IMPL_H

#include "backend/os.h"

#define READABLE "a readable file"
#define CHECK_PATH "check the path and its permissions"
#define ROOM "room to write it"
#define FREE_SPACE "free space or choose another disk"
#define OTHER_PLACE "choose another place"

// `raw_*`: files as the system sees them; they set `err` with `path` named.
#ifdef _WIN32
typedef void *RawFile; // HANDLE
#else
typedef int RawFile;
#endif
typedef enum { TEMP_OPENED, TEMP_TAKEN, TEMP_FAILED } TempResult;

bool raw_open_read(RawFile *f, const char *path, uint64_t *size, Error *err);
// Reads up to n bytes; -1 after an error (err set), 0 at the end.
int64_t raw_read(RawFile f, void *data, size_t n, const char *path, Error *err);
TempResult raw_create(RawFile *f, const char *temp, const char *target, Error *err);
bool raw_open_device(RawFile *f, const char *path, bool *is_device, Error *err);
bool raw_is_pipe(const char *path);
bool raw_write(RawFile f, const void *data, size_t n, const char *path, Error *err);
bool raw_seek(RawFile f, uint64_t offset, const char *path, Error *err);
bool raw_sync(RawFile f, const char *path, Error *err);
bool raw_close(RawFile f, const char *path, Error *err);
bool raw_rename(const char *from, const char *to, Error *err);
void raw_remove(const char *path);
void raw_remove_if_stale(const char *path); // not what a living writer holds
char *raw_resolve(void *parent, const char *path); // of a link: what it leads to

int os_compare_names(const void *a, const void *b); // of char *, for qsort

#endif
