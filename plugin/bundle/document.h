/* A JSON document as the bytes of a file. */
#ifndef PLUGIN_BUNDLE_DOCUMENT_H
#define PLUGIN_BUNDLE_DOCUMENT_H

#include <stddef.h>

#include <jansson.h>

#include "hsm/base/fault.h"

/* Into malloc'd *bytes (the caller's to free): indented, its members in the order they were
 * set in, with a line feed at its end and a NUL behind *length. */
int document_bytes(const json_t *document, char **bytes, size_t *length, struct fault *fault);

/* For OWNED locals. */
void document_free(json_t **json);

#endif
