/* Settings of a token: what both front and worker do with them. */
#include <string.h>

#include "hsm/wire/types.h"
#include "hsm/wire/uri.h"

void hsm_settings_wipe(struct hsm_settings *settings)
{
    explicit_bzero(settings, sizeof *settings);
}

bool hsm_pin_is_filed(const struct hsm_settings *settings)
{
    return settings->pin_kind == HSM_PIN_FILE ||
           (settings->pin_kind == HSM_PIN_NONE && uri_has_pin_source(settings->token));
}
