/* A file of keys in a token's place: SPIRE's keys.json, from which a server moves. It is read once
 * and never written. */
#include "hsm/token.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "hsm/base/base64.h"
#include "hsm/base/clock.h"
#include "hsm/base/file.h"
#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"
#include "hsm/base/wipe.h"
#include "hsm/softkey.h"

/* Every sentence begins with this, and the path follows. */
#define SUBJECT "previous: keys_file %s"

struct entry {
    char *id; /* its own; at most HSM_LABEL_MAX bytes */
    struct softkey key;
};

struct keyfile {
    char path[HSM_PATH_MAX];
    struct entry entries[KEYFILE_KEYS_MAX]; /* in the order of their ids */
    size_t count;
};

static int no_memory(const struct keyfile *keyfile, struct fault *fault)
{
    return fault_set(fault, FAULT_UNAVAILABLE, SUBJECT " cannot be read: out of memory",
                     keyfile->path);
}

/* ---- the file ---- */

/* The checks look at the open file, as for a PIN's. O_NONBLOCK: a fifo must not block the
 * worker. */
static int open_file(const char *path, struct fault *fault)
{
    OWNED(scope_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat file;
    int checked;

    if (fd < 0) {
        bool missing = errno == ENOENT || errno == ENOTDIR;

        (void)file_fault(fault, errno, "previous: keys_file cannot be opened:", path);
        fault->code = missing ? FAULT_UNAVAILABLE : fault->code;
        return -1;
    }
    if (fstat(fd, &file) != 0)
        return file_fault(fault, errno, "previous: keys_file cannot be looked at:", path);
    if (file_check(FILE_KEYS, &file, fault, SUBJECT, path) != 0)
        return -1;
    checked = fd;
    fd = -1;
    return checked;
}

/* `bytes` has room for one byte more than a file may have, to see that it is too long. */
static int read_file(const char *path, char *bytes, size_t *length, struct fault *fault)
{
    OWNED(scope_close) int fd = open_file(path, fault);
    ssize_t got = fd >= 0 ? file_read(fd, bytes, KEYFILE_BYTES_MAX + 1) : 0;

    if (fd < 0)
        return -1;
    if (got < 0)
        return file_fault(fault, errno, "previous: keys_file cannot be read:", path);
    if (got == 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, SUBJECT " is empty", path);
    if (got > KEYFILE_BYTES_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         SUBJECT " is longer than %d bytes, so it is not what SPIRE wrote", path,
                         KEYFILE_BYTES_MAX);
    *length = (size_t)got;
    return 0;
}

/* ---- its JSON ---- */

static void free_json(json_t **json)
{
    json_decref(*json);
}

/* jansson's own message quotes the text around an error, and that may be a key. */
static int not_json(const struct keyfile *keyfile, const json_error_t *error, struct fault *fault)
{
    switch (json_error_code(error)) {
    case json_error_out_of_memory:
        return no_memory(keyfile, fault);
    case json_error_duplicate_key:
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         SUBJECT " has a name twice (line %d), so it is not what SPIRE wrote",
                         keyfile->path, error->line);
    default:
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         SUBJECT " is damaged, or is not JSON (line %d, column %d)", keyfile->path,
                         error->line, error->column);
    }
}

static json_t *parse(const struct keyfile *keyfile, const char *bytes, size_t length,
                     struct fault *fault)
{
    json_error_t error;
    json_t *document;

    json_set_alloc_funcs(malloc, wipe_free); /* the tree and the parser's buffers hold keys too */
    document = json_loadb(bytes, length, JSON_REJECT_DUPLICATES, &error);
    if (!document)
        (void)not_json(keyfile, &error, fault);
    explicit_bzero(&error, sizeof error);
    return document;
}

/* ---- its keys ---- */

/* This much of an id is enough in a sentence. */
enum { ID_SHOWN = 64 };

static int wrong_key(const struct keyfile *keyfile, const char *id, const struct fault *why,
                     struct fault *fault)
{
    char shown[ID_SHOWN + 1];

    utf8_clean(id, false, shown, sizeof shown);
    return fault_set(fault, why->code, SUBJECT ": key '%s' %s", keyfile->path, shown, why->message);
}

static int refuse_key(const struct keyfile *keyfile, const char *id, const char *why,
                      struct fault *fault)
{
    struct fault refusal;

    (void)fault_set(&refusal, FAULT_FAILED_PRECONDITION, "%s", why);
    return wrong_key(keyfile, id, &refusal, fault);
}

/* The entry counts as soon as it holds anything that must be wiped. */
static int add(struct keyfile *keyfile, const char *id, const json_t *value, struct fault *fault)
{
    const char *text = json_string_value(value);
    OWNED(scope_wipe) uint8_t *der = NULL;
    struct entry *entry = &keyfile->entries[keyfile->count];
    struct fault why = {.code = FAULT_NONE};
    size_t length;

    if (id[0] == '\0' || strlen(id) > HSM_LABEL_MAX)
        return refuse_key(keyfile, id, "has an id that is empty or too long", fault);
    if (!text)
        return refuse_key(keyfile, id, "is not a string", fault);
    der = base64_decode(BASE64_STANDARD, text, &length);
    if (!der)
        return refuse_key(keyfile, id, "is not in base 64", fault);
    entry->id = strdup(id);
    if (!entry->id)
        return no_memory(keyfile, fault);
    keyfile->count++;
    if (softkey_read(der, length, &entry->key, &why) != 0)
        return wrong_key(keyfile, id, &why, fault);
    return 0;
}

static int by_id(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->id, ((const struct entry *)b)->id);
}

/* A server that started without its old keys would end all its agents: a refused start is
 * better. */
static int take_keys(struct keyfile *keyfile, json_t *document, struct fault *fault)
{
    json_t *keys = json_object_get(document, "keys");
    const char *id;
    json_t *value;

    if (!json_is_object(keys))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         SUBJECT " has no object \"keys\", so it is not what SPIRE wrote",
                         keyfile->path);
    if (json_object_size(keys) == 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         SUBJECT " holds no key: name the file that SPIRE used, or take the "
                                 "block out",
                         keyfile->path);
    if (json_object_size(keys) > KEYFILE_KEYS_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         SUBJECT " holds %zu keys, %d are the most", keyfile->path,
                         json_object_size(keys), KEYFILE_KEYS_MAX);
    json_object_foreach (keys, id, value)
        if (add(keyfile, id, value, fault) != 0)
            return -1;
    qsort(keyfile->entries, keyfile->count, sizeof keyfile->entries[0], by_id);
    return 0;
}

/* ---- opening and closing ---- */

static int read_keys(struct keyfile *keyfile, struct fault *fault)
{
    OWNED(scope_wipe) char *bytes = malloc(KEYFILE_BYTES_MAX + 1);
    OWNED(free_json) json_t *document = NULL;
    size_t length = 0;

    if (!bytes)
        return no_memory(keyfile, fault);
    if (read_file(keyfile->path, bytes, &length, fault) != 0)
        return -1;
    document = parse(keyfile, bytes, length, fault);
    return document ? take_keys(keyfile, document, fault) : -1;
}

int keyfile_open(const struct hsm_settings *settings, struct keyfile **keyfile,
                 struct hsm_token_info *info, struct fault *fault)
{
    struct keyfile *made = calloc(1, sizeof *made);

    if (!made)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    (void)snprintf(made->path, sizeof made->path, "%s", settings->keys_file);
    if (read_keys(made, fault) != 0) {
        keyfile_close(made);
        return -1;
    }
    *info = (struct hsm_token_info){
        .label = "keys_file", .write_protected = true, .sessions = settings->sessions};
    *keyfile = made;
    return 0;
}

void keyfile_close(struct keyfile *keyfile)
{
    if (!keyfile)
        return;
    for (size_t i = 0; i < keyfile->count; i++) {
        softkey_clear(&keyfile->entries[i].key);
        free(keyfile->entries[i].id);
    }
    wipe_free(keyfile);
}

/* ---- operations ---- */

static struct entry *find(const struct call *call)
{
    struct keyfile *keyfile = call->token->keyfile;

    for (size_t i = 0; i < keyfile->count; i++)
        if (strcmp(keyfile->entries[i].id, call->request->key.label) == 0)
            return &keyfile->entries[i];
    return NULL;
}

int keyfile_scan(const struct call *call, struct fault *fault)
{
    const struct keyfile *keyfile = call->token->keyfile;

    (void)fault;
    for (size_t i = 0; i < keyfile->count; i++) {
        struct hsm_item item = {.state = HSM_COMPLETE};

        (void)snprintf(item.key.label, sizeof item.key.label, "%s", keyfile->entries[i].id);
        item.public_key = keyfile->entries[i].key.public_key;
        call->item(call->item_context, &item);
        call->reply->items++;
    }
    return 0;
}

static int unfit(const struct call *call, const char *why)
{
    call->reply->state = HSM_UNFIT;
    (void)snprintf(call->reply->why, sizeof call->reply->why, "%.*s",
                   (int)sizeof call->reply->why - 1, why);
    return 0;
}

int keyfile_prove(const struct call *call, struct fault *fault)
{
    const struct entry *entry = find(call);
    enum hsm_key_type wanted = call->request->type;

    if (!entry)
        return 0; /* HSM_ABSENT */
    if (wanted != HSM_KEY_NONE && wanted != entry->key.public_key.type)
        return unfit(call, "it is of another type");
    if (softkey_try(&entry->key, fault) != 0)
        return fault->code == FAULT_INTERNAL ? unfit(call, fault->message) : -1;
    call->reply->state = HSM_COMPLETE;
    call->reply->public_key = entry->key.public_key;
    return 0;
}

/* Failing memory may spoil a signature in software, too. */
static int verify(const struct call *call, const struct entry *entry,
                  const struct verify_signing *signing, struct fault *fault)
{
    struct verify *verify = &call->token->verify;

    if (!verify_is_due(verify, entry->key.verifier, signing) ||
        verify_signature(verify, entry->key.verifier, signing, call->request, call->reply, fault) ==
            0)
        return 0;
    explicit_bzero(call->reply->signature, sizeof call->reply->signature);
    call->reply->signature_length = 0;
    fault->code = FAULT_UNAVAILABLE;
    return fault_prefix(fault, SUBJECT ": signature of key '%s' is not handed out",
                        call->token->keyfile->path, entry->id);
}

int keyfile_sign(const struct call *call, struct fault *fault)
{
    const struct hsm_request *request = call->request;
    const char *path = call->token->keyfile->path;
    const struct entry *entry = find(call);
    struct verify_signing signing = {.took = clock_now()};

    if (!entry)
        return fault_set(fault, FAULT_NOT_FOUND, SUBJECT " has no key '%s'", path,
                         request->key.label);
    if (memcmp(entry->key.public_key.fingerprint, request->fingerprint, HSM_FINGERPRINT) != 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         SUBJECT " has another key in the place of '%s'", path, entry->id);
    if (softkey_sign(&entry->key, request, call->reply, fault) != 0) {
        if (fault->code == FAULT_INTERNAL)
            fault->code = FAULT_UNAVAILABLE;
        return fault_prefix(fault, SUBJECT ": key '%s'", path, entry->id);
    }
    signing.took = clock_now() - signing.took;
    return verify(call, entry, &signing, fault);
}

int keyfile_ping(const struct call *call, struct fault *fault)
{
    (void)call;
    (void)fault;
    return 0;
}

int keyfile_refuse(const struct call *call, struct fault *fault)
{
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     SUBJECT " is only read: no key is made or destroyed there",
                     call->token->keyfile->path);
}
