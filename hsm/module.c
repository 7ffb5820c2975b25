/* One PKCS#11 library: which file may be loaded, how it is initialized, and which of its slots has
 * the token. */
#include "hsm/module.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <p11-kit/p11-kit.h>
#include <p11-kit/uri.h>

#include "hsm/base/file.h"
#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"
#include "hsm/wire/rv.h"
#include "hsm/wire/uri.h"

/* p11-kit does not tell its module folder, so the Makefile asks pkg-config. */
#ifndef MODULE_FOLDER
#define MODULE_FOLDER "/usr/lib/x86_64-linux-gnu/pkcs11"
#endif

enum {
    SLOTS_MAX = 1024, /* a count from a module is only a claim */
    SEEN_MAX = 256,
};

/* ---- loading ---- */

/* The file is checked before it is loaded, because loading runs its code. */
static int check_file(const char *path, struct fault *fault)
{
    struct stat file;

    if (stat(path, &file) != 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno, "module: %s", path);
    return file_check(FILE_MODULE, &file, fault, "module: %s", path);
}

/* Who may write to a folder may replace a library in it. A sticky folder (/tmp) and a read-only
 * mount (an image, a volume of Kubernetes) prevent that. */
static int check_folder(const char *folder, struct fault *fault)
{
    struct stat about;
    struct statvfs mount;

    if (stat(folder, &about) != 0 || statvfs(folder, &mount) != 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno, "module: %s", folder);
    if ((mount.f_flag & ST_RDONLY) != 0)
        return 0;
    return file_check(FILE_MODULE_FOLDER, &about, fault, "module: its folder %s", folder);
}

/* All the folders that lead there; `path` is absolute and has no links in it. */
static int check_folders(const char *path, struct fault *fault)
{
    char folder[HSM_PATH_MAX];
    char *end;

    (void)snprintf(folder, sizeof folder, "%s", path);
    while ((end = strrchr(folder, '/')) != NULL && end != folder) {
        *end = '\0';
        if (check_folder(folder, fault) != 0)
            return -1;
    }
    return check_folder("/", fault);
}

/* Links are followed once, here: the path that was checked is the path that is loaded. */
static int resolve(char path[HSM_PATH_MAX], struct fault *fault)
{
    OWNED(scope_free) char *real = realpath(path, NULL);

    if (!real)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno, "module: %s", path);
    if (strlen(real) >= HSM_PATH_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "module: the path is too long");
    memcpy(path, real, strlen(real) + 1);
    return 0;
}

/* The proxy shows the tokens of all modules of the host, and this process exists to run one module
 * alone. Its slots change whenever a token comes or goes. Both the name and the file that it leads
 * to are asked: otherwise the user of a wrong name would hear about a folder of modules instead. */
static int check_proxy(const char *path, struct fault *fault)
{
    static const char *const names[] = {"p11-kit-proxy.so", "libp11-kit.so"};
    const char *name = strrchr(path, '/') + 1;

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strncmp(name, names[i], strlen(names[i])) == 0)
            return fault_set(fault, FAULT_FAILED_PRECONDITION,
                             "module: %s is p11-kit's proxy for all modules of this host: name the "
                             "token's own library, which `p11-kit list-modules` shows",
                             path);
    return 0;
}

static int full_path(const char *setting, char path[HSM_PATH_MAX], struct fault *fault)
{
    int length;

    if (setting[0] == '\0')
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "module: no module is named");
    if (setting[0] != '/' && strchr(setting, '/'))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "module: %s is neither an absolute path nor a plain file name", setting);
    length =
        snprintf(path, HSM_PATH_MAX, "%s%s", setting[0] == '/' ? "" : MODULE_FOLDER "/", setting);
    if (length < 0 || length >= HSM_PATH_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "module: the path is too long");
    return 0;
}

/* Only these functions are needed. The plugin can do without the others it calls: they describe or
 * tidy up. */
static bool is_whole(const CK_FUNCTION_LIST *calls)
{
    return (calls->version.major == 2 || calls->version.major == 3) && calls->C_Initialize &&
           calls->C_Finalize && calls->C_GetSlotList && calls->C_GetTokenInfo &&
           calls->C_OpenSession && calls->C_CloseSession && calls->C_Login &&
           calls->C_FindObjectsInit && calls->C_FindObjects && calls->C_FindObjectsFinal &&
           calls->C_GetAttributeValue && calls->C_DestroyObject && calls->C_GenerateKeyPair &&
           calls->C_SignInit && calls->C_Sign;
}

static int load(const char *path, struct module *module, struct fault *fault)
{
    const char *why;

    p11_kit_be_quiet(); /* it would write to stderr; what it says goes into the fault */
    module->calls = p11_kit_module_load(path, P11_KIT_MODULE_UNMANAGED | P11_KIT_MODULE_CRITICAL);
    if (!module->calls) {
        why = p11_kit_message();
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "module: %s is not a PKCS#11 module that can be loaded (%s)", path,
                         why ? why : "no reason given");
    }
    if (!is_whole(module->calls))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "module: %s lacks functions of PKCS#11 2 and 3", path);
    return 0;
}

/* p11_kit_module_initialize cannot pass the reserved argument, which NSS needs. */
static int initialize(const struct hsm_settings *settings, const char *path, struct module *module,
                      struct fault *fault)
{
    char reserved[HSM_ARGS_MAX]; /* modules may write to it */
    CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK};
    CK_RV rv;

    memcpy(reserved, settings->module_args, sizeof reserved);
    if (reserved[0] != '\0')
        args.pReserved = reserved;
    rv = module->calls->C_Initialize(&args);
    if (rv == CKR_CANT_LOCK || rv == CKR_ARGUMENTS_BAD) {
        module->plain_start = !args.pReserved;
        args.flags = 0;
        rv = module->calls->C_Initialize(args.pReserved ? &args : NULL);
        module->one_at_a_time = rv == CKR_OK;
    }
    if (rv != CKR_OK) {
        (void)rv_fault(rv, "C_Initialize", fault);
        return fault_prefix(fault, "module: %s", path);
    }
    module->initialized = true;
    return 0;
}

int module_open(const struct hsm_settings *settings, struct module *module, struct fault *fault)
{
    char path[HSM_PATH_MAX];

    memset(module, 0, sizeof *module);
    (void)pthread_mutex_init(&module->entered, NULL);
    if (full_path(settings->module, path, fault) == 0 && check_proxy(path, fault) == 0 &&
        resolve(path, fault) == 0 && check_proxy(path, fault) == 0 &&
        check_file(path, fault) == 0 && check_folders(path, fault) == 0 &&
        load(path, module, fault) == 0 && initialize(settings, path, module, fault) == 0)
        return 0;
    module_close(module);
    return -1;
}

void module_close(struct module *module)
{
    if (!module->calls)
        return;
    if (module->initialized)
        (void)module->calls->C_Finalize(NULL);
    p11_kit_module_release(module->calls);
    (void)pthread_mutex_destroy(&module->entered);
    memset(module, 0, sizeof *module);
}

/* ---- texts ---- */

void module_text(const uint8_t *padded, size_t length, char *text)
{
    size_t used = 0;

    while (length > 0 && (padded[length - 1] == ' ' || padded[length - 1] == '\0'))
        length--;
    while (used < length) {
        size_t wide = utf8_character((const char *)padded + used, length - used);

        if (wide > 1) {
            memcpy(text + used, padded + used, wide);
            used += wide;
            continue;
        }
        text[used] = padded[used] >= 0x20 && padded[used] < 0x7f ? (char)padded[used] : '?';
        used++;
    }
    text[used] = '\0';
}

/* Some modules end a text with a NUL, as C does, and leave old bytes behind it. */
static void pad(struct module *module, uint8_t *text, size_t size)
{
    uint8_t *end = memchr(text, '\0', size);

    if (!end)
        return;
    memset(end, ' ', size - (size_t)(end - text));
    module->unpadded = true;
}

CK_RV module_token_info(struct module *module, CK_SLOT_ID slot, CK_TOKEN_INFO *info)
{
    CK_RV rv;

    memset(info, 0, sizeof *info);
    rv = MODULE_CALL(module, C_GetTokenInfo, slot, info);
    if (rv != CKR_OK)
        return rv;
    pad(module, info->label, sizeof info->label);
    pad(module, info->manufacturerID, sizeof info->manufacturerID);
    pad(module, info->model, sizeof info->model);
    pad(module, info->serialNumber, sizeof info->serialNumber);
    return rv;
}

static void slot_info(struct module *module, CK_SLOT_ID slot, CK_SLOT_INFO *info)
{
    memset(info, 0, sizeof *info); /* no slot attribute of a URI matches this */
    if (MODULE_CALL(module, C_GetSlotInfo, slot, info) != CKR_OK)
        return;
    pad(module, info->slotDescription, sizeof info->slotDescription);
    pad(module, info->manufacturerID, sizeof info->manufacturerID);
}

void module_library(struct module *module, char text[HSM_TOKEN_TEXT_MAX + 1])
{
    CK_INFO info;

    text[0] = '\0';
    memset(&info, 0, sizeof info);
    if (MODULE_CALL(module, C_GetInfo, &info) != CKR_OK)
        return;
    pad(module, info.libraryDescription, sizeof info.libraryDescription);
    module_text(info.libraryDescription, sizeof info.libraryDescription, text);
}

/* ---- the token ---- */

struct search {
    struct module *module;
    P11KitUri *uri;
    bool empty_slots;   /* look into slots that are said to be empty, too */
    const char *serial; /* serial number of the token that was open before */
    uint32_t found;
    uint32_t known; /* how many of them have this serial number */
    uint32_t uninitialized;
    struct module_token *token; /* the first one found, or better the one with that serial number */
    struct module_token *raw;   /* the first one that says it is not initialized */
    char matching[SEEN_MAX];
    char uninitialized_ones[SEEN_MAX];
    char others[SEEN_MAX];
};

static void note_token(char seen[SEEN_MAX], const CK_TOKEN_INFO *info, CK_SLOT_ID slot)
{
    char label[sizeof info->label + 1];
    char serial[sizeof info->serialNumber + 1];
    size_t used = strlen(seen);
    int length;

    module_text(info->label, sizeof info->label, label);
    module_text(info->serialNumber, sizeof info->serialNumber, serial);
    length = snprintf(seen + used, SEEN_MAX - used, "%s'%s' (serial %s, slot %lu)",
                      used > 0 ? ", " : "", label, serial, slot);
    if (length < 0 || (size_t)length >= SEEN_MAX - used)
        seen[used] = '\0'; /* a part of a name would mislead, and might end inside a character */
}

static bool matches(const struct search *search, CK_SLOT_ID slot, const CK_TOKEN_INFO *info)
{
    CK_SLOT_ID wanted = p11_kit_uri_get_slot_id(search->uri);
    CK_SLOT_INFO about;

    slot_info(search->module, slot, &about);
    return (wanted == (CK_SLOT_ID)-1 || wanted == slot) &&
           p11_kit_uri_match_token_info(search->uri, info) == 1 &&
           p11_kit_uri_match_slot_info(search->uri, &about) == 1;
}

static void take(const struct search *search, CK_SLOT_ID slot, const CK_TOKEN_INFO *info,
                 struct module_token *token)
{
    token->slot = slot;
    token->info = *info;
    token->empty_slot = search->empty_slots;
}

static void take_found(struct search *search, CK_SLOT_ID slot, const CK_TOKEN_INFO *info)
{
    char serial[sizeof info->serialNumber + 1];
    bool known;

    module_text(info->serialNumber, sizeof info->serialNumber, serial);
    known = search->serial[0] != '\0' && strcmp(serial, search->serial) == 0;
    if (search->found == 0 || (known && search->known == 0))
        take(search, slot, info, search->token);
    search->found++;
    search->known += known;
}

/* A slot that fails says nothing about the others. */
static void probe_slot(struct search *search, CK_SLOT_ID slot)
{
    CK_TOKEN_INFO info;
    bool ready;

    if (module_token_info(search->module, slot, &info) != CKR_OK)
        return;
    ready = (info.flags & CKF_TOKEN_INITIALIZED) != 0;
    if (!matches(search, slot, &info)) {
        if (ready)
            note_token(search->others, &info, slot);
    } else if (ready) {
        note_token(search->matching, &info, slot);
        take_found(search, slot, &info);
    } else {
        note_token(search->uninitialized_ones, &info, slot);
        if (search->uninitialized++ == 0)
            take(search, slot, &info, search->raw);
    }
}

/* Only the question for the number makes a module look at its readers again. */
static int probe_slots(struct search *search, CK_BBOOL present, struct fault *fault)
{
    OWNED(scope_free) CK_SLOT_ID *slots = calloc(SLOTS_MAX, sizeof *slots);
    CK_ULONG count = 0;
    CK_RV rv;

    if (!slots)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    (void)MODULE_CALL(search->module, C_GetSlotList, present, NULL, &count);
    count = SLOTS_MAX;
    rv = MODULE_CALL(search->module, C_GetSlotList, present, slots, &count);
    if (rv != CKR_OK)
        return rv_fault(rv, "C_GetSlotList", fault);
    for (CK_ULONG i = 0; i < count && i < SLOTS_MAX; i++)
        probe_slot(search, slots[i]);
    return 0;
}

/* A module may call a slot empty although a token is in it. */
static int probe_all(struct search *search, struct fault *fault)
{
    if (probe_slots(search, CK_TRUE, fault) != 0)
        return -1;
    if (search->found + search->uninitialized > 0)
        return 0;
    search->empty_slots = true;
    search->others[0] = '\0';
    return probe_slots(search, CK_FALSE, fault);
}

static int judge_found(const struct search *search, struct fault *fault)
{
    OWNED(scope_free) char *text = uri_printable(search->uri);
    const char *uri = text ? text : "the URI";

    if (search->found == 1 || search->known == 1 ||
        (search->found == 0 && search->uninitialized == 1))
        return 0;
    if (search->found > 1)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "token: %s is ambiguous, it names %u tokens. Add the serial of one of "
                         "them, as in pkcs11:token=T;serial=S: %s",
                         uri, search->found, search->matching);
    if (search->uninitialized > 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "token: %s is ambiguous, it names %u tokens, which say that they have not "
                         "been initialized: %s",
                         uri, search->uninitialized, search->uninitialized_ones);
    return fault_set(fault, FAULT_UNAVAILABLE, "token: %s is not there; tokens seen: %s", uri,
                     search->others[0] != '\0' ? search->others : "none");
}

int module_find_token(struct module *module, const struct hsm_settings *settings,
                      struct module_token *token, struct fault *fault)
{
    OWNED(uri_free) P11KitUri *parsed = NULL;
    struct module_token found = {.slot = 0};
    struct module_token raw = {.slot = 0};
    struct search search = {
        .module = module, .serial = settings->serial, .token = &found, .raw = &raw};

    if (uri_parse(settings->token, &parsed, found.pin_source, fault) != 0)
        return -1;
    search.uri = parsed;
    if (probe_all(&search, fault) != 0 || judge_found(&search, fault) != 0)
        return -1;
    memcpy(raw.pin_source, found.pin_source, sizeof raw.pin_source);
    *token = search.found > 0 ? found : raw;
    return 0;
}
