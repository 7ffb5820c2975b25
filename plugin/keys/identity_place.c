/* In a file of its own, so that tests can put another place in. */
#include "plugin/keys/identity.h"

#include <stdio.h>

/* In memory, because a value is for hosts without a disk. TMPDIR may differ between two servers. */
void identity_place(const struct label_scope *scope, char path[IDENTITY_PLACE_MAX])
{
    (void)snprintf(path, IDENTITY_PLACE_MAX, "/dev/shm/spire-hsm-%s%s", scope->trust_domain,
                   scope->server);
}
