/* Any bytes as plugin_data. The first one says for which plugin; what is accepted must keep
 * what config.h promises. */
#include "plugin/config/config.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "hsm/base/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool promise)
{
    if (!promise)
        abort();
}

static void check_keymanager(const struct config_keymanager *c)
{
    check(c->place.module[0] != '\0' && strncasecmp(c->place.token, "pkcs11:", 7) == 0);
    check((c->place.key_identifier_file[0] == '/') != (c->place.key_identifier_value[0] != '\0'));
    check((c->place.pin_file[0] != '\0') + (c->place.pin_env[0] != '\0') +
              (c->place.pin[0] != '\0') <=
          1);
    check(c->max_sessions >= 1 && c->max_sessions <= HSM_SESSIONS_MAX);
    check(c->cka_id_length == 16 || c->cka_id_length == 2);
    check(c->label_max == 0 || (c->label_max >= 40 && c->label_max <= HSM_LABEL_MAX));
    check(c->call_timeout >= INT64_C(1000000000) && c->call_timeout <= INT64_C(29000000000));
}

static void check_bundle(const struct config_bundle *c)
{
    check(c->path[0] == '/' && c->format <= BUNDLE_OIDC);
    check((c->format == BUNDLE_OIDC) == (strncmp(c->issuer, "https://", 8) == 0));
    check(c->refresh_hint >= 0 && c->refresh_hint % INT64_C(1000000000) == 0);
    check((c->mode & ~UINT32_C(0775)) == 0 && (c->mode & 0600) == 0600);
}

static void check_notes(const struct config_notes *notes)
{
    size_t count = notes->errors + notes->warnings;
    struct fault fault = {0};

    for (size_t i = 0; i < count && i < CONFIG_NOTES_MAX; i++) {
        const char *text = notes->notes[i].text;

        check(utf8_is_text(text, strlen(text)) && text[0] != '\0');
    }
    (void)config_fault(notes, &fault);
    check(notes->errors == 0 || fault.code == FAULT_INVALID_ARGUMENT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum config_kind kind = size > 0 ? data[0] % 3 : CONFIG_KEYMANAGER;
    const char *text = (const char *)data + (size > 0);
    struct config config;
    struct config_notes notes;
    bool valid = config_read(kind, "example.org", text, size - (size > 0), &config, &notes) == 0;

    check(valid == (notes.errors == 0));
    check_notes(&notes);
    if (!valid)
        return 0;
    if (kind == CONFIG_KEYMANAGER)
        check_keymanager(&config.keymanager);
    else
        check_bundle(&config.bundle);
    config_wipe(&config);
    return 0;
}
