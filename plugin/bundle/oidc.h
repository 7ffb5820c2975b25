/* The documents that a verifier of a JWT-SVID looks up at its issuer (OpenID Connect Discovery 1.0,
 * section 4), as files in a folder that any web server can serve: the document, and the key set
 * that it names. SPIRE's discovery provider serves the same content. Pure. */
#ifndef PLUGIN_BUNDLE_OIDC_H
#define PLUGIN_BUNDLE_OIDC_H

#include <stddef.h>

#include "hsm/base/fault.h"

/* Their places in the folder, which stands for the issuer's URL. */
#define OIDC_KEYS "keys"
#define OIDC_DOCUMENT_FOLDER ".well-known"
#define OIDC_DOCUMENT OIDC_DOCUMENT_FOLDER "/openid-configuration"

/* Returns what is wrong with the URL of an issuer, as a clause (a constant), or NULL. Readers
 * compare issuers byte for byte, so only URLs that have one spelling pass. */
const char *oidc_issuer_wrong(const char *url);

/* The document of an issuer that passed, as malloc'd *bytes (the caller's to free).
 * It does not depend on the keys. */
int oidc_document(const char *issuer, char **bytes, size_t *length, struct fault *fault);

#endif
