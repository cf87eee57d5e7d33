// Four lines of test framework: a failed check says where and what, and the program ends with status 1.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                 \
        }                                                                                 \
    } while (false)

// The call must throw pfdiff::Error whose one line contains `part`.
#define CHECK_REFUSED(expression, part)                                                                                \
    do {                                                                                                               \
        const std::string expected = part;                                                                             \
        std::string said = "nothing";                                                                                  \
        try {                                                                                                          \
            static_cast<void>(expression);                                                                             \
        } catch (const pfdiff::Error& error) {                                                                         \
            said = error.what();                                                                                       \
        }                                                                                                              \
        if (said.find(expected) == std::string::npos || said.find('\n') != std::string::npos) {                        \
            std::fprintf(stderr, "%s:%d: said %s, expected %s\n", __FILE__, __LINE__, said.c_str(), expected.c_str()); \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (false)
