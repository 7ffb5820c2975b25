/* The bundle of bundle_sample.h. */
#include "tests/support/bundle_sample.h"

const char *const kinds[KINDS] = {"P-256", "P-384", "P-521", "RSA-2048", "RSA-4096", "ED25519"};
const char *const ids[KINDS] = {"b", "a", "c/d +", "schl\xc3\xbcssel", "\"q\"\\", "e"};

struct authority certificates[KINDS];
struct authority keys[KINDS];
struct bundle_bytes x509[KINDS];
struct bundle_jwt_key jwt[KINDS];

int make_authorities(void **state)
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

struct bundle whole_bundle(void)
{
    return (struct bundle){"example.org", x509, KINDS, jwt, KINDS, 300, 42};
}

char *encode(const struct bundle *bundle, enum bundle_format format, size_t *length)
{
    struct fault fault = {.message = "none"};
    char *bytes = NULL;

    if (bundle_encode(bundle, format, &bytes, length, &fault) != 0)
        fail_msg("not encoded: %s", fault.message);
    assert_int_equal(bytes[*length], '\0');
    return bytes;
}
