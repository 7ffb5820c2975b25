/* What front and worker both do with settings: wiping them, and a look at the PIN's source. */
#include <string.h>

#include "hsm/base/scope.h"
#include "hsm/wire/types.h"
#include "hsm/wire/uri.h"

void hsm_settings_wipe(struct hsm_settings *settings)
{
    explicit_bzero(settings, sizeof *settings);
}

void hsm_pin_stamp(const struct hsm_settings *settings, struct file_stamp *stamp)
{
    OWNED(uri_free) struct p11_kit_uri *uri = NULL;
    char source[HSM_PATH_MAX];
    const char *path = NULL;

    memset(stamp, 0, sizeof *stamp);
    if (settings->pin_kind == HSM_PIN_FILE)
        path = settings->pin_text;
    else if (settings->pin_kind == HSM_PIN_NONE &&
             uri_parse(settings->token, &uri, source, NULL) == 0)
        (void)uri_pin_path(source, &path, NULL);
    if (path)
        (void)file_stamp_path(path, stamp);
}
