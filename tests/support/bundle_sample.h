/* A bundle with an authority of every kind: six certificates and six JWT keys.
 *
 * Call make_authorities() first, as the group's setup; then whole_bundle() as often as
 * wanted. The arrays below are what the bundle points to. A test may copy the struct and
 * change the copy; the arrays are shared by all tests of the program. */
#ifndef TESTS_BUNDLE_SAMPLE_H
#define TESTS_BUNDLE_SAMPLE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plugin/bundle/bundle.h"
#include "tests/support/authority.h"

enum { KINDS = 6 };

extern const char *const kinds[KINDS]; /* for authority.h */
extern const char *const ids[KINDS];   /* of the JWT keys; some need escapes in JSON */
extern struct authority certificates[KINDS];
extern struct authority keys[KINDS];
extern struct bundle_bytes x509[KINDS];  /* the certificates again, .. */
extern struct bundle_jwt_key jwt[KINDS]; /* .. and the keys, as a bundle has them */

int make_authorities(void **state);
struct bundle whole_bundle(void); /* example.org, refresh hint 300, sequence number 42 */

/* The bundle as a file. The caller frees it. Fails the test if it cannot be encoded. */
char *encode(const struct bundle *bundle, enum bundle_format format, size_t *length);

#endif
