#include "plugin/keys/identity.h"

#include <stdio.h>

/* In memory, since there is no disk; not TMPDIR, which may differ between two servers. */
void identity_place(const struct label_scope *scope, char path[IDENTITY_PLACE_MAX])
{
    (void)snprintf(path, IDENTITY_PLACE_MAX, "/dev/shm/spire-hsm-%s%s", scope->trust_domain,
                   scope->server);
}
