/* PKCS#11 URIs (RFC 7512) as the setting `token` has them, read by p11-kit. Pure: no module is
 * loaded and no file is opened. Every fault is FAULT_FAILED_PRECONDITION and names the setting;
 * no message repeats the URI's text, which may hold a PIN. */
#ifndef HSM_WIRE_URI_H
#define HSM_WIRE_URI_H

#include "hsm/wire/types.h"

struct p11_kit_uri; /* P11KitUri of p11-kit/uri.h */

/* For OWNED of scope.h. */
void uri_free(struct p11_kit_uri **uri);

/* Returns what is wrong with the text, as a clause (a constant), or NULL. Wrong are: text that
 * p11-kit cannot read; a PIN in the URI; and text that p11-kit ignores, or reads otherwise than a
 * person would. */
const char *uri_wrong(const char *text);

/* For a URI in which uri_wrong finds no mistake. */
bool uri_has_pin_source(const char *text);

/* Refuses the URIs in which uri_wrong finds a mistake. On success *uri is the caller's until
 * uri_free, and pin_source is the URI's, "" if it has none. */
int uri_parse(const char *text, struct p11_kit_uri **uri, char pin_source[HSM_PATH_MAX],
              struct fault *fault);

/* The URI as a message may show it: without pin-source. The caller frees it; NULL when memory
 * runs out. Takes pin-source out of *uri. */
char *uri_printable(struct p11_kit_uri *uri);

/* The path inside a pin-source: "/path", "file:/path" or "file:///path". A command
 * ("|program") is refused, as is everything else. *path points into `source`. */
int uri_pin_path(const char *source, const char **path, struct fault *fault);

#endif
