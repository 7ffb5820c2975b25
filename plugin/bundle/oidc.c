/* The OIDC discovery document, and which issuers it can name. */
#include "plugin/bundle/oidc.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "plugin/bundle/document.h"

#define DIGITS "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyz"
#define CAPITALS "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

static const char scheme[] = "https://";

/* ---- the issuer ---- */

/* Steps over a name, or an IPv6 address in brackets; returns NULL if there is neither. */
static const char *skip_host(const char *at)
{
    size_t length;

    if (*at == '[') {
        length = strspn(at + 1, DIGITS "abcdef:.");
        return length > 0 && at[1 + length] == ']' ? at + length + 2 : NULL;
    }
    length = strspn(at, LETTERS DIGITS ".-_");
    return length > 0 ? at + length : NULL;
}

static const char *skip_port(const char *at)
{
    char *end;
    long port;

    if (*at != ':')
        return at;
    if (strspn(at + 1, DIGITS) == 0 || at[1] == '0')
        return NULL;
    port = strtol(at + 1, &end, 10);
    return port <= 65535 && port != 443 ? end : NULL;
}

static bool is_dots(const char *part, size_t length)
{
    return (length == 1 && part[0] == '.') || (length == 2 && part[0] == '.' && part[1] == '.');
}

/* Segments of unreserved characters (RFC 3986, 2.3). Some readers would remove empty segments and
 * dots. */
static bool is_path(const char *at)
{
    while (*at == '/') {
        size_t length = strspn(at + 1, LETTERS CAPITALS DIGITS "-._~");

        if (length == 0 || is_dots(at + 1, length))
            return false;
        at += 1 + length;
    }
    return *at == '\0';
}

const char *oidc_issuer_wrong(const char *url)
{
    size_t length = strlen(url);
    const char *at;

    if (strncmp(url, scheme, sizeof scheme - 1) != 0)
        return "expected a URL that begins with https://";
    if (url[length - 1] == '/')
        return "the URL must not end with / (here and in jwt_issuer of server.conf)";
    if (strpbrk(url, "?#@"))
        return "expected a URL without user, query and fragment";
    at = skip_host(url + sizeof scheme - 1);
    if (!at)
        return "expected a lower-case host name after https://";
    at = skip_port(at);
    if (!at)
        return "expected a port from 1 to 65535 after the host, but not 443";
    if (!is_path(at))
        return "expected letters, digits and -._~ between single slashes";
    return NULL;
}

/* ---- the document ---- */

/* SPIRE's own provider answers the same, whichever keys there are. */
int oidc_document(const char *issuer, char **bytes, size_t *length, struct fault *fault)
{
    OWNED(document_free)
    json_t *document =
        json_pack("{s:s, s:s+, s:s, s:[s], s:[s], s:[s, s, s]}", "issuer", issuer, "jwks_uri",
                  issuer, "/" OIDC_KEYS, "authorization_endpoint", "", "response_types_supported",
                  "id_token", "subject_types_supported", "public",
                  "id_token_signing_alg_values_supported", "RS256", "ES256", "ES384");

    if (!document)
        return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
    return document_bytes(document, bytes, length, fault);
}
