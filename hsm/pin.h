/* Where the PIN comes from, and the memory of one that was refused.
 *
 * A PIN is read when a login needs it and wiped when the login is done. A refused PIN is never
 * tried again from an unchanged source, or a restart loop would lock the token for everybody. The
 * latch remembers which token refused, and the file's stamp (device, inode, size, times). The
 * environment and an inline PIN have no stamp, so the latch keeps scrypt of the refused PIN (32
 * MiB, a salt of its own; RFC 7914). A fast hash would not do: a disk may be stolen, and a wrong
 * PIN is often nearly right. Nothing is kept of an accepted PIN. */
#ifndef HSM_PIN_H
#define HSM_PIN_H

#include "hsm/base/file_stamp.h"
#include "hsm/wire/types.h"

struct pin {
    /* Room for the end of its line, and to see that there is more. */
    uint8_t bytes[HSM_PIN_MAX + 3];
    size_t length;
    struct file_stamp stamp; /* of its file; all zero for the environment and an inline PIN */
};

enum { PIN_SALT = 16, PIN_DIGEST = 32 };

/* Reads the PIN, without the end of its line. FAULT_UNAVAILABLE: the file is not there (yet).
 * FAULT_FAILED_PRECONDITION: it is, but others can read or change it, or it is no regular file;
 * or what it holds is plainly no PIN: empty, too long, of two lines, with a byte order mark, a
 * NUL, or a blank at either end. Messages name the source, never its content. On failure *pin is
 * wiped; on success it is the caller's to wipe. */
int pin_read(enum hsm_pin_kind kind, const char *text, struct pin *pin, struct fault *fault);

void pin_wipe(struct pin *pin);

/* The stamp of the PIN's file, which pin_file or the URI's pin-source names. All zero if there is
 * no file. Blocks for as long as its file system does. */
void pin_look(const struct hsm_settings *settings, struct file_stamp *stamp);

/* The memory, of one refusal: the latest. `file` is the copy of it that outlives the
 * process, "" = there is none. All zero but `file` to begin with. */
struct pin_latch {
    char file[HSM_PATH_MAX];
    bool set;
    char serial[HSM_TOKEN_SERIAL_MAX + 1];
    struct file_stamp stamp; /* all zero: go by these two */
    uint8_t salt[PIN_SALT];
    uint8_t digest[PIN_DIGEST];
};

/* Has the latch recorded a refusal? A record that is unreadable, or another user's, does not
 * count. */
void pin_latch_load(struct pin_latch *latch);

/* FAULT_FAILED_PRECONDITION if this token refused the PIN from this very source; takes some 0.1 s
 * where there is a digest to compare. FAULT_UNAVAILABLE: no memory to compare. */
int pin_latch_check(const struct pin_latch *latch, const char *serial, const struct pin *pin,
                    struct fault *fault);

/* Remembers, in memory in any case. `fault` is the refusal, and is told when the file
 * could not be written. */
void pin_latch_set(struct pin_latch *latch, const char *serial, const struct pin *pin,
                   struct fault *fault);

/* This token accepted the PIN, so its refusal is forgotten. Another token's refusal stays. */
void pin_latch_clear(struct pin_latch *latch, const char *serial);

#endif
