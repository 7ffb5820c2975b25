/* The life of a plugin process: from the handshake to the last socket file. */
#ifndef PLUGIN_SERVE_H
#define PLUGIN_SERVE_H

#include "plugin/service/role.h"

/* Serves `role` on a socket of its own until the host asks to stop, or has died, or 5 s
 * after SIGTERM (systemd sends it to the whole group, and SPIRE still needs its keys to
 * end in order). SIGINT is ignored, as in every go-plugin plugin, and so is SIGHUP. Returns
 * the process's exit status. Once, from main. */
int serve(const struct role *role);

#endif
