/* A bundle with an authority of every kind. */
#ifndef TESTS_BUNDLE_SAMPLE_H
#define TESTS_BUNDLE_SAMPLE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "plugin/bundle/bundle.h"
#include "tests/support/authority.h"

static const char *const kinds[] = {"P-256", "P-384", "P-521", "RSA-2048", "RSA-4096", "ED25519"};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static struct authority certificates[KINDS];
static struct authority keys[KINDS];

static struct bundle_bytes x509[KINDS];
static struct bundle_jwt_key jwt[KINDS];
static const char *const ids[KINDS] = {"b", "a", "c/d +", "schl\xc3\xbcssel", "\"q\"\\", "e"};

static inline int make_authorities(void **state)
{
    (void)state;
    for (size_t i = 0; i < KINDS; i++) {
        certificates[i] = authority_new_certificate(kinds[i], (long)i + 1);
        keys[i] = authority_new_pkix(kinds[i]);
        x509[i] = (struct bundle_bytes){certificates[i].bytes, certificates[i].length};
        jwt[i] = (struct bundle_jwt_key){{keys[i].bytes, keys[i].length}, ids[i]};
    }
    return 0;
}

static inline struct bundle whole_bundle(void)
{
    return (struct bundle){"example.org", x509, KINDS, jwt, KINDS, 300, 42};
}

/* gcc 12, when it inlines this, takes what it returns for a pointer to a local. */
__attribute__((noinline, unused)) static char *encode(const struct bundle *bundle,
                                                      enum bundle_format format, size_t *length)
{
    struct fault fault = {.message = "none"};
    char *bytes = NULL;

    if (bundle_encode(bundle, format, &bytes, length, &fault) != 0)
        fail_msg("not encoded: %s", fault.message);
    assert_int_equal(bytes[*length], '\0');
    return bytes;
}

#endif
