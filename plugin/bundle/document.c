/* JSON documents as the bytes of a file. */
#include "plugin/bundle/document.h"

#include <stdlib.h>
#include <string.h>

void document_free(json_t **json)
{
    json_decref(*json);
}

int document_bytes(const json_t *document, char **bytes, size_t *length, struct fault *fault)
{
    size_t size = json_dumpb(document, NULL, 0, JSON_INDENT(4));
    char *text = size > 0 ? malloc(size + 2) : NULL;

    if (!text)
        return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
    (void)json_dumpb(document, text, size, JSON_INDENT(4));
    memcpy(text + size, "\n", 2);
    *bytes = text;
    *length = size + 1;
    return 0;
}
