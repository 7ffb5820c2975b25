/* Labels of other people's objects, and key ids. A label that is ours has one spelling;
 * a key id that may be on a token comes back from its label. */
#include "plugin/keys/label.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_label(const char *text)
{
    char again[HSM_LABEL_MAX + 1];
    struct label label;

    if (!label_parse(text, &label))
        return;
    label_format(&label, again);
    if (strcmp(again, text) != 0 || label_check_key_id(label.key_id, 0, NULL) != 0)
        abort();
}

static void try_key_id(const char *key_id)
{
    struct label label = {.generation = 1};
    struct label again;
    char text[HSM_LABEL_MAX + 1];
    struct fault fault;

    (void)label_check_key_id(key_id, 40, &fault);
    if (label_check_key_id(key_id, 0, &fault) != 0)
        return;
    label_scope("example.org", key_id, strlen(key_id), &label.scope);
    (void)strcpy(label.key_id, key_id);
    label_format(&label, text);
    if (!label_parse(text, &again) || strcmp(again.key_id, key_id) != 0 ||
        !label_same_scope(&again.scope, &label.scope))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);

    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    try_label(text);
    try_key_id(text);
    free(text);
    return 0;
}
