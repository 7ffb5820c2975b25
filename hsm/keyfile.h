/* The file in which SPIRE's disk key manager keeps its keys: JSON, `{"keys": {ID: KEY}}`, where a
 * key is the base 64 of its PKCS #8 (RFC 5208). A server's and an agent's are alike (spire
 * 1.14.5 and 1.15.3, pkg/server/plugin/keymanager/disk and pkg/agent/plugin/keymanager/disk).
 *
 * It is read whole, once, and then closed; nothing of it is ever written. The keys stay in this
 * process's memory; the text that they were read from is wiped. The hsm room is of the worker
 * alone, so no front ever has them.
 *
 * Accepted is a regular file of ours or of root's, of up to KEYFILE_BYTES_MAX bytes, to which
 * others than its group have no access. All its keys are of a type of ours, up to KEYFILE_KEYS_MAX,
 * and each has signed. Like SPIRE, it ignores members beside "keys". It refuses two files that
 * SPIRE accepts but never writes, because the mistake would show too late: a file without keys, and
 * one with a key id twice.
 *
 * Every sentence names "previous: keys_file" and the path. Of the file's content it names a key's
 * id and type at most. */
#ifndef HSM_KEYFILE_H
#define HSM_KEYFILE_H

#include "hsm/wire/types.h"

enum { KEYFILE_BYTES_MAX = 1 << 20, KEYFILE_KEYS_MAX = 256 };

struct keyfile;

/* Blocks for as long as the file's disk does. FAULT_UNAVAILABLE: the file is not there (yet), its
 * disk fails, or memory is short. FAULT_FAILED_PRECONDITION: all else. *keyfile is the caller's to
 * close; its keys are for any number of threads. */
int keyfile_open(const struct hsm_settings *settings, struct keyfile **keyfile,
                 struct hsm_token_info *info, struct fault *fault);

/* Wipes the keys. NULL is fine. */
void keyfile_close(struct keyfile *keyfile);

/* The operations with these keys, as token.h has them. */

#endif
