/* Finds the process that holds a lock which we cannot get, for the error's sentence. The kernel
 * tells (proc(5), /proc/locks), except for processes of other containers. */
#ifndef PLUGIN_KEYS_HOLDER_H
#define PLUGIN_KEYS_HOLDER_H

enum { HOLDER_TEXT = 128 };

/* " (process 123, spire-hsm)", or that its program's child still holds it, or "" where nothing
 * can be told. `fd` is the locked file, opened by us. */
void holder_of(int fd, char text[HOLDER_TEXT]);

#endif
