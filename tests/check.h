// check.h: CHECK(call) in a cmocka test: fails it with the text of the local `Error err`.
#ifndef KILN_TESTS_CHECK_H
#define KILN_TESTS_CHECK_H

#include "backend/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#define CHECK(expression)                      \
    do {                                       \
        if (!(expression)) {                   \
            err_print(&err, stderr);           \
            fail_msg("%s", #expression);       \
        }                                      \
    } while (0)

#endif
