/* Who this server is on a shared token: the content of key_identifier_file (made when
 * absent: a random UUID, 0600, atomically), or key_identifier_value.
 *
 * The file is also the lock that tells two live processes with one identity apart: flock(2), held
 * as long as any process has the descriptor open, the worker included. Only its holder writes the
 * record (record.h), and so decides which keys may be destroyed.
 *
 * A value can be given to servers on many hosts, and no lock reaches that far. Each host has a
 * place for it in memory, a file in /dev/shm that is locked likewise: two processes here are told
 * apart, and its random content marks the keys that are made here (label.h). The holder of its lock
 * may destroy those keys, since the process that made them is gone. If there can be no such file, a
 * process knows only the keys that it made itself. */
#ifndef PLUGIN_KEYS_IDENTITY_H
#define PLUGIN_KEYS_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>

#include "plugin/config/config.h"
#include "plugin/keys/label.h"

enum { IDENTITY_PLACE_TEXT = 160 };

struct identity {
    char bytes[CONFIG_IDENTITY_MAX];
    size_t length;
    struct label_scope scope;
    char path[HSM_PATH_MAX];         /* key_identifier_file, "" with a value */
    int lock;                        /* descriptor that holds the lock; -1 = none */
    bool existed;                    /* key_identifier_file was there before */
    char place[IDENTITY_PLACE_TEXT]; /* of the file that is locked, on this host and in this boot: a
                                        process on another host, or with a copy of the file, has
                                        another */
    struct label_maker maker;        /* of the place; unknown with key_identifier_file */
};

/* Reads or makes the identity and takes the lock, waiting up to 12 s for another process that is
 * ending. `held` is the identity in force, or NULL: the same file is not locked against ourselves,
 * and written back if it has vanished, as a new identity in its place would forget every key. If
 * the record has the identity (config.record_file), a file that vanished is written back from
 * there. A file is never removed, and an existing one is never replaced. On success the caller
 * closes with identity_close. */
int identity_open(const struct config *config, const struct identity *held,
                  struct identity *identity, struct fault *fault);

/* Reads the identity that is there already, and its place, making nothing. FAULT_NOT_FOUND: the
 * file is not there. With `lock` it takes the file's lock too, at once: FAULT_FAILED_PRECONDITION
 * if another process has it. */
int identity_find(const struct config *config, bool lock, struct identity *identity,
                  struct fault *fault);

void identity_close(struct identity *identity);

/* identity_place.c: where a value's place is. */
enum { IDENTITY_PLACE_MAX = 64 };
void identity_place(const struct label_scope *scope, char path[IDENTITY_PLACE_MAX]);

#endif
