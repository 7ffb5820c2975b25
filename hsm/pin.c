/* Where the PIN comes from, which texts cannot be one, and the latch: a refused PIN is remembered
 * on disk, so that no process tries it again. */
#include "hsm/pin.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "hsm/base/file.h"
#include "hsm/base/hex.h"
#include "hsm/base/scope.h"
#include "hsm/wire/uri.h"

/* ---- sources ---- */

void pin_wipe(struct pin *pin)
{
    explicit_bzero(pin, sizeof *pin);
}

static bool drop_last(struct pin *pin, uint8_t byte)
{
    bool is_last = pin->length > 0 && pin->bytes[pin->length - 1] == byte;

    pin->length -= is_last;
    return is_last;
}

static int read_all(int fd, const char *path, struct pin *pin, struct fault *fault)
{
    ssize_t got = file_read(fd, pin->bytes, sizeof pin->bytes);

    if (got < 0)
        return fault_errno(fault, FAULT_UNAVAILABLE, errno, "cannot read PIN file %s", path);
    pin->length = (size_t)got;
    return 0;
}

/* The checks look at the open file: a path may lead elsewhere a moment later, and Kubernetes mounts
 * secrets as symbolic links. O_NONBLOCK: a fifo in the file's place must not block the worker. */
static int read_file(const char *path, struct pin *pin, struct fault *fault)
{
    OWNED(scope_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat file;

    if (fd < 0)
        return fault_errno(fault,
                           errno == ENOENT || errno == ENOTDIR ? FAULT_UNAVAILABLE
                                                               : FAULT_FAILED_PRECONDITION,
                           errno, "cannot open PIN file %s", path);
    if (fstat(fd, &file) != 0)
        return fault_errno(fault, FAULT_UNAVAILABLE, errno, "cannot look at PIN file %s", path);
    if (file_check(FILE_PIN, &file, fault, "PIN file %s", path) != 0)
        return -1;
    file_stamp_of(&file, &pin->stamp);
    return read_all(fd, path, pin, fault);
}

static int take_text(const char *text, struct pin *pin)
{
    pin->length = strnlen(text, sizeof pin->bytes);
    memcpy(pin->bytes, text, pin->length);
    return 0;
}

/* The sentence leaves out the variable's name: with -expandEnv, `pin_env = "${HSM_PIN}"` makes the
 * name the PIN itself. */
static int read_env(const char *name, struct pin *pin, struct fault *fault)
{
    const char *value = getenv(name);

    if (!value)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "pin_env: the environment variable with this name is not set");
    return take_text(value, pin);
}

static int read_source(enum hsm_pin_kind kind, const char *text, struct pin *pin,
                       struct fault *fault)
{
    switch (kind) {
    case HSM_PIN_FILE:
        return read_file(text, pin, fault);
    case HSM_PIN_ENV:
        return read_env(text, pin, fault);
    case HSM_PIN_INLINE:
        return take_text(text, pin);
    case HSM_PIN_NONE:
        break;
    }
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "the token asks for a PIN, and none is configured: pin_file, pin_env or "
                     "pin-source in the URI says where it is");
}

static const char *not_a_pin(const struct pin *pin)
{
    static const char blanks[] = " \t";
    static const char *const marks[] = {"\xef\xbb\xbf", "\xff\xfe", "\xfe\xff"};

    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        if (pin->length >= strlen(marks[i]) && memcmp(pin->bytes, marks[i], strlen(marks[i])) == 0)
            return "begins with a byte order mark";
    if (memchr(pin->bytes, '\0', pin->length))
        return "has a NUL in it";
    if (memchr(pin->bytes, '\n', pin->length) || memchr(pin->bytes, '\r', pin->length))
        return "has more than one line";
    if (strchr(blanks, pin->bytes[0]) || strchr(blanks, pin->bytes[pin->length - 1]))
        return "begins or ends with a blank";
    return NULL;
}

/* A newline of an editor or shell, or a blank from pasting, would cost one try at the token. One
 * end of line is dropped wherever the PIN comes from, also Windows' CR LF. */
static int check_content(enum hsm_pin_kind kind, const char *text, struct pin *pin,
                         struct fault *fault)
{
    static const char *const where[] = {[HSM_PIN_FILE] = "PIN file ",
                                        [HSM_PIN_ENV] =
                                            "pin_env: the environment variable that it names",
                                        [HSM_PIN_INLINE] = "pin"};
    const char *name = kind == HSM_PIN_FILE ? text : "";
    const char *wrong;

    if (drop_last(pin, '\n'))
        (void)drop_last(pin, '\r');
    if (pin->length == 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "%s%s is empty", where[kind], name);
    if (pin->length > HSM_PIN_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "%s%s holds more than the %d bytes a PIN may have", where[kind], name,
                         HSM_PIN_MAX);
    wrong = not_a_pin(pin);
    if (!wrong)
        return 0;
    return fault_set(fault, FAULT_FAILED_PRECONDITION, "%s%s %s, so the PIN was not tried",
                     where[kind], name, wrong);
}

int pin_read(enum hsm_pin_kind kind, const char *text, struct pin *pin, struct fault *fault)
{
    memset(pin, 0, sizeof *pin);
    if (read_source(kind, text, pin, fault) == 0 && check_content(kind, text, pin, fault) == 0)
        return 0;
    pin_wipe(pin);
    return -1;
}

/* ---- a look ---- */

/* A network disk may answer from its cache after its server is gone. Only opening the file asks the
 * server. */
static void look_at_file(const char *path, struct file_stamp *stamp)
{
    OWNED(scope_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd >= 0)
        (void)file_stamp_open(fd, stamp);
    else
        (void)file_stamp_path(path, stamp);
}

void pin_look(const struct hsm_settings *settings, struct file_stamp *stamp)
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
        look_at_file(path, stamp);
}

/* ---- the memory of a refusal ---- */

/* Each guess costs 32 MiB and some 0.1 s. */
static const uint64_t scrypt_n = 1 << 15;
static const uint64_t scrypt_r = 8;
static const uint64_t scrypt_p = 1;
static const uint64_t scrypt_memory = 64 * 1024 * 1024;

static int digest_pin(const struct pin *pin, const uint8_t salt[PIN_SALT],
                      uint8_t digest[PIN_DIGEST], struct fault *fault)
{
    if (EVP_PBE_scrypt((const char *)pin->bytes, pin->length, salt, PIN_SALT, scrypt_n, scrypt_r,
                       scrypt_p, scrypt_memory, digest, PIN_DIGEST) == 1)
        return 0;
    ERR_clear_error();
    return fault_set(fault, FAULT_UNAVAILABLE, "no memory to compare the PIN with the refused one");
}

static bool has_look(const struct file_stamp *stamp)
{
    return stamp->inode != 0;
}

/* One line: version, then the token's serial number in hexadecimal, as it is the token's text.
 * Version 1 goes on with the stamp of the file, version 2 with salt and digest. */
static const char look_out[] =
    "1 %s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n";
static const char look_in[] =
    "1 %33s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64;
static const char digest_in[] = "2 %33s %32[0-9a-f] %64[0-9a-f]";
enum {
    LOOK_FIELDS = 8,
    DIGEST_FIELDS = 3,
    RECORD_MAX = 256,
    SERIAL_MAX = 16,
    SERIAL_HEX = 2 * SERIAL_MAX + 2
};

/* A mark in front makes an empty serial number a field, too. */
static void serial_hex(const char *serial, char hex[SERIAL_HEX])
{
    hex[0] = 's';
    hex_encode(serial, strnlen(serial, SERIAL_MAX), hex + 1);
}

static bool serial_of_hex(const char *hex, char serial[SERIAL_MAX + 1])
{
    size_t digits = strlen(hex) - 1;

    if (hex[0] != 's' || digits % 2 != 0)
        return false;
    memset(serial, 0, SERIAL_MAX + 1);
    return hex_decode(hex + 1, digits / 2, serial);
}

static bool parse_look(const char *line, struct pin_latch *latch)
{
    struct file_stamp *stamp = &latch->stamp;
    char hex[SERIAL_HEX] = "";

    return sscanf(line, look_in, hex, &stamp->device, &stamp->inode, &stamp->size,
                  &stamp->modified[0], &stamp->modified[1], &stamp->changed[0],
                  &stamp->changed[1]) == LOOK_FIELDS &&
           serial_of_hex(hex, latch->serial);
}

static bool parse_digest(const char *line, struct pin_latch *latch)
{
    char hex[SERIAL_HEX] = "";
    char salt[2 * PIN_SALT + 1] = "";
    char digest[2 * PIN_DIGEST + 1] = "";

    return sscanf(line, digest_in, hex, salt, digest) == DIGEST_FIELDS &&
           serial_of_hex(hex, latch->serial) && hex_decode(salt, PIN_SALT, latch->salt) &&
           hex_decode(digest, PIN_DIGEST, latch->digest);
}

static bool parse(const char *line, struct pin_latch *latch)
{
    struct pin_latch read = {.set = true};

    memcpy(read.file, latch->file, sizeof read.file);
    if (!parse_look(line, &read)) {
        memset(&read.stamp, 0, sizeof read.stamp);
        if (!parse_digest(line, &read))
            return false;
    }
    *latch = read;
    return true;
}

void pin_latch_load(struct pin_latch *latch)
{
    char line[RECORD_MAX] = "";
    OWNED(scope_close) int fd = -1;
    struct stat about;

    if (latch->file[0] == '\0')
        return;
    fd = open(latch->file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &about) != 0 || (about.st_uid != 0 && about.st_uid != geteuid()))
        return;
    if (read(fd, line, sizeof line - 1) > 0)
        (void)parse(line, latch);
}

/* COUNT_LOW needs no rule here. It says that somebody mistyped the PIN, and the latch knows whether
 * that was this source. */
int pin_latch_check(const struct pin_latch *latch, const char *serial, const struct pin *pin,
                    struct fault *fault)
{
    uint8_t digest[PIN_DIGEST];

    if (!latch->set || strcmp(latch->serial, serial) != 0 ||
        !file_stamp_untouched(&latch->stamp, &pin->stamp))
        return 0;
    if (!has_look(&pin->stamp)) {
        if (digest_pin(pin, latch->salt, digest, fault) != 0)
            return -1;
        if (memcmp(digest, latch->digest, sizeof digest) != 0)
            return 0;
    }
    if (latch->file[0] == '\0')
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the token said so before (remembered until this process ends)");
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "the token said so before (remembered in %s; remove it if this PIN is right "
                     "by now)",
                     latch->file);
}

static int write_record(const struct pin_latch *latch, struct fault *fault)
{
    const struct file_stamp *stamp = &latch->stamp;
    char line[RECORD_MAX];
    char hex[SERIAL_HEX];
    char salt[2 * PIN_SALT + 1];
    char digest[2 * PIN_DIGEST + 1];
    int length;

    serial_hex(latch->serial, hex);
    hex_encode(latch->salt, PIN_SALT, salt);
    hex_encode(latch->digest, PIN_DIGEST, digest);
    if (has_look(stamp))
        length =
            snprintf(line, sizeof line, look_out, hex, stamp->device, stamp->inode, stamp->size,
                     stamp->modified[0], stamp->modified[1], stamp->changed[0], stamp->changed[1]);
    else
        length = snprintf(line, sizeof line, "2 %s %s %s\n", hex, salt, digest);
    return file_replace(latch->file, line, (size_t)length, S_IRUSR | S_IWUSR, fault);
}

static int remember(struct pin_latch *latch, const struct pin *pin, struct fault *fault)
{
    if (!has_look(&pin->stamp)) {
        if (RAND_bytes(latch->salt, PIN_SALT) != 1)
            return fault_set(fault, FAULT_INTERNAL, "no random numbers");
        if (digest_pin(pin, latch->salt, latch->digest, fault) != 0)
            return -1;
    }
    return latch->file[0] != '\0' ? write_record(latch, fault) : 0;
}

void pin_latch_set(struct pin_latch *latch, const char *serial, const struct pin *pin,
                   struct fault *fault)
{
    struct fault why;

    latch->set = true;
    latch->stamp = pin->stamp;
    memset(latch->serial, 0, sizeof latch->serial);
    memcpy(latch->serial, serial, strnlen(serial, sizeof latch->serial - 1));
    if (remember(latch, pin, &why) != 0)
        (void)fault_prefix(fault, "cannot remember this (%s)", why.message);
}

void pin_latch_clear(struct pin_latch *latch, const char *serial)
{
    if (!latch->set || strcmp(latch->serial, serial) != 0)
        return;
    if (latch->file[0] != '\0')
        (void)unlink(latch->file);
    latch->set = false;
}
