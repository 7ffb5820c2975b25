/* The world of model_world.h. */
#include "tests/support/model_world.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hsm/base/clock.h"
#include "plugin/keys/identity.h"
#include "plugin/keys/scribe.h"
#include "plugin/report/log.h"

const char *ids[IDS];

struct world world;
char folder[64];
bool telling;

/* ---- chance and time ---- */

uint64_t chance(void)
{
    uint64_t x = world.random += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

bool one_in(unsigned n)
{
    return !world.calm && chance() % n == 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    *now = (struct timespec){.tv_sec = (time_t)world.seconds};
    return 0;
}

/* Who waits for a while has it go by. */
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                           const struct timespec *until)
{
    (void)condition;
    (void)mutex;
    world.seconds = until->tv_sec + 1;
    return ETIMEDOUT;
}

time_t time(time_t *now)
{
    time_t calendar = (time_t)(INT64_C(1800000000) + world.seconds + world.skew);

    if (now)
        *now = calendar;
    return calendar;
}

/* ---- what is said ---- */

bool take_turns(void)
{
    return world.sharing == ONE_FILE || world.sharing == ONE_PLACE;
}

bool has_values(void)
{
    return world.sharing >= OWN_VALUES;
}

bool is_shared(void)
{
    return world.sharing == ONE_VALUE || world.sharing == COPIES;
}

unsigned index_of(const struct server *server)
{
    return (unsigned)(server - world.servers);
}

void tell(const struct server *server, const char *what, const struct object *object)
{
    if (!telling)
        return;
    print_message("  %4ld  server %u  %s", (long)world.seconds, index_of(server), what);
    if (object)
        print_message(" #%u %s %u", object->number, object->label.key_id, object->label.generation);
    print_message("\n");
}

void violated(const struct server *server, const char *what, const struct object *object)
{
    tell(server, what, object);
    if (world.violation[0] == '\0')
        (void)snprintf(world.violation, sizeof world.violation, "server %u: %s: object %u, %.100s",
                       index_of(server), what, object ? object->number : 0,
                       object ? object->name.label : "");
}

void log_open(const char *module)
{
    (void)module;
}

void log_write(enum log_level level, const char *message, ...)
{
    if (telling)
        print_message("        (%s)\n", message);
    if (strcmp(message, "the loss of keys is accepted") == 0)
        world.starting->told = true;
    world.rivalries += level == LOG_ERROR;
}

void log_fault(enum log_level level, const struct fault *fault, const char *message, ...)
{
    if (telling)
        print_message("        (%s: %s)\n", message, fault->message);
    if (level == LOG_ERROR)
        world.rivalries++;
}

/* ---- files ---- */

void identity_place(const struct label_scope *scope, char path[IDENTITY_PLACE_MAX])
{
    (void)scope;
    (void)snprintf(path, IDENTITY_PLACE_MAX, "%.40s/place-%u", folder, world.opening);
}

/* ---- the token ---- */

struct object *lookup(const struct hsm_key_name *name)
{
    for (unsigned i = 0; i < world.made; i++) {
        struct object *object = &world.objects[i];

        if (object->there && strcmp(object->name.label, name->label) == 0 &&
            memcmp(object->name.id, name->id, sizeof name->id) == 0)
            return object;
    }
    return NULL;
}

/* As one search sees it; NULL: not at all. */
static struct object *search(const struct hsm_key_name *name, enum hsm_state *state)
{
    struct object *object = lookup(name);

    if (!object)
        return NULL;
    *state = object->state;
    if (object->hidden == 0 || world.calm)
        return object;
    object->hidden--;
    *state = HSM_HALF;
    return object->in_halves ? object : NULL;
}

static void show(const struct object *object, enum hsm_state state, struct hsm_reply *reply)
{
    reply->state = state;
    reply->public_key = (struct hsm_public_key){.type = HSM_EC_P256};
    memcpy(reply->public_key.fingerprint, &object->number, sizeof object->number);
}

static void generate(struct server *server, const struct hsm_request *request,
                     struct hsm_reply *reply)
{
    struct object *object = &world.objects[world.made];

    if (one_in(8)) {
        (void)fault_set(&reply->fault, one_in(2) ? FAULT_ABORTED : FAULT_UNAVAILABLE, "no");
        return;
    }
    assert_true(world.made < OBJECTS);
    *object = (struct object){.there = true, .state = HSM_COMPLETE, .number = ++world.made};
    object->maker = server;
    object->life = server->life;
    object->made = world.seconds;
    object->name = request->key;
    assert_true(label_parse(request->key.label, &object->label));
    if (one_in(8))
        object->hidden = 1 + (unsigned)chance() % 6;
    object->in_halves = one_in(2);
    if (one_in(8))
        object->state = one_in(2) ? HSM_HALF : HSM_UNFIT;
    tell(server, "generates", object);
    if (object->state == HSM_HALF || one_in(8))
        (void)fault_set(&reply->fault, FAULT_ABORTED, "who knows");
    else
        show(object, object->state, reply);
}

bool serves(const struct server *server, const struct object *object)
{
    struct catalogue_key *key;
    bool same;

    if (!server->keymanager)
        return false;
    key = catalogue_find(keymanager_catalogue(server->keymanager), object->label.key_id);
    same = key && memcmp(key->name.id, object->name.id, sizeof key->name.id) == 0 &&
           strcmp(key->name.label, object->name.label) == 0;
    if (key)
        keymanager_drop(server->keymanager, key);
    return same;
}

/* Of the X.509 CA's keys: the one last in use and all made after it. The number of an object is its
 * public key here. Nothing of record.c decides this. */
void find_needed(const struct server *server, unsigned numbers[IDS], bool in_use[IDS])
{
    const struct disk *disk = &world.disks[take_turns() ? 0 : index_of(server)];
    const struct record *record = &disk->record;
    const struct record_key *keys[IDS] = {0};
    uint32_t last = 0;

    for (size_t i = 0; disk->there && i < record->count; i++)
        for (unsigned id = 0; id < IDS; id++)
            if (record->keys[i].state == RECORD_SERVED && strncmp(ids[id], "x509-", 5) == 0 &&
                strcmp(record->keys[i].label.key_id, ids[id]) == 0)
                keys[id] = &record->keys[i];
    for (unsigned id = 0; id < IDS; id++)
        if (keys[id] && keys[id]->in_use && keys[id]->label.generation > last)
            last = keys[id]->label.generation;
    for (unsigned id = 0; id < IDS; id++) {
        numbers[id] = 0;
        if (keys[id] && keys[id]->label.generation >= last &&
            label_same_scope(&record->scope, &server->scope))
            memcpy(&numbers[id], keys[id]->public_key.fingerprint, sizeof numbers[id]);
        if (in_use)
            in_use[id] = keys[id] && keys[id]->in_use;
    }
}

void find_displaced(const struct server *server, bool displaced[OBJECTS])
{
    const struct disk *disk = &world.disks[take_turns() ? 0 : index_of(server)];

    memset(displaced, 0, OBJECTS * sizeof *displaced);
    for (size_t i = 0; disk->there && i < disk->record.count; i++) {
        const struct record_key *key = &disk->record.keys[i];
        unsigned number;

        memcpy(&number, key->public_key.fingerprint, sizeof number);
        if (key->state == RECORD_MISSING && key->in_use && number > 0)
            displaced[number - 1] = true;
    }
}

static bool is_recorded(const struct server *server, const struct object *object)
{
    unsigned numbers[IDS];

    find_needed(server, numbers, NULL);
    for (unsigned id = 0; id < IDS; id++)
        if (numbers[id] == object->number)
            return true;
    return false;
}

static bool needed(const struct object *object)
{
    for (unsigned i = 0; i < SERVERS; i++)
        for (unsigned id = 0; id < IDS; id++)
            if (world.servers[i].journal->needed[id] == object->number)
                return true;
    return false;
}

static void check_destroying(const struct server *server, const struct object *object)
{
    if (!label_same_scope(&object->label.scope, &server->scope))
        violated(server, "destroys a key of another server's", object);
    if (serves(server, object))
        violated(server, "destroys the key it serves", object);
    for (unsigned i = 0; i < server->waiting; i++)
        if (server->queue[i].request.op == HSM_SIGN &&
            memcmp(&server->queue[i].request.key, &object->name, sizeof object->name) == 0)
            violated(server, "destroys a key that is about to sign", object);
    if (object->maker != server && !take_turns() && object->state != HSM_HALF &&
        world.sharing != COPIES)
        violated(server, "destroys a key that the other one made", object);
    /* of what a disk has lost half may show for a moment, and be taken for half an attempt by its
     * maker; by a copy it may be another's */
    if (needed(object) &&
        (world.sharing != COPIES || (world.lost == 0 && world.seconds - object->made < DAY_S)))
        violated(server, "destroys a key that another start needs", object);
    if (is_recorded(server, object))
        violated(server, "destroys a key that its record needs", object);
    /* a copy may serve what the original is still making, and gives up: see above for both's
     * journals */
    if (world.roomy && !has_values() && world.sharing != COPIES && object->served > 0 &&
        world.seconds - object->served < DAY_S && world.lost == 0 && !object->restored)
        violated(server, "destroys within a day a key that was served", object);
}

static void destroy(const struct server *server, const struct hsm_request *request)
{
    enum hsm_state state;
    struct object *object = search(&request->key, &state);

    if (!object)
        return;
    tell(server, "destroys", object);
    check_destroying(server, object);
    object->there = false;
}

static void prove(struct server *server, const struct hsm_request *request, struct hsm_reply *reply)
{
    enum hsm_state state;
    struct object *object = search(&request->key, &state);

    if (object)
        show(object, state, reply);
    object = lookup(&request->key);
    if (object)
        server->proven[object->number - 1] = reply->state == HSM_COMPLETE ? 1 : 2;
}

static void scan(struct server *server, const struct hsm_request *request, hsm_item_fn *item,
                 void *context)
{
    if (one_in(8))
        item(context, NULL);
    for (unsigned i = 0; i < world.made; i++) {
        struct object *object = &world.objects[i];
        struct hsm_item found;

        if (!object->there ||
            strncmp(object->name.label, request->prefix, strlen(request->prefix)) != 0 ||
            !search(&object->name, &found.state))
            continue;
        if (found.state == HSM_UNFIT)
            found.state = HSM_COMPLETE; /* only a proof tells */
        found.key = object->name;
        server->seen[i] = server->seen[i] || server->loading;
        item(context, &found);
    }
}

void execute(struct server *server, const struct pending *pending)
{
    const struct hsm_request *request = &pending->request;
    struct hsm_reply reply = {0};
    bool fails = request->op != HSM_GENERATE && one_in(10);

    if (server->dead || fails)
        (void)fault_set(&reply.fault, FAULT_UNAVAILABLE, "no token");
    else if (request->op == HSM_GENERATE)
        generate(server, request, &reply);
    else if (request->op == HSM_DESTROY)
        destroy(server, request);
    else if (request->op == HSM_PROVE)
        prove(server, request, &reply);
    else if (request->op == HSM_SCAN)
        scan(server, request, pending->how.item, pending->how.context);
    pending->how.done(pending->how.context, &reply);
}

/* ---- the scribe ---- */

struct scribe {
    struct server *server;
    struct record record;
    struct disk *disk; /* NULL: no file */
    int64_t opened;
    unsigned holders;
    bool dirty;  /* the disk has not got all of it */
    bool behind; /* nor what somebody waited for */
};

void clear_disks(void)
{
    for (unsigned i = 0; i < SERVERS; i++) {
        record_close(&world.disks[i].record);
        record_close(&world.kept[i].record);
    }
    memset(world.disks, 0, sizeof world.disks);
    memset(world.kept, 0, sizeof world.kept);
}

static void copy(const struct disk *from, struct disk *to)
{
    record_close(&to->record);
    to->there = from->there;
    assert_int_equal(record_copy(&from->record, &to->record), 0);
}

void copy_disk(void)
{
    copy(&world.disks[0], &world.disks[1]);
}

void keep_disk(unsigned i)
{
    copy(&world.disks[i], &world.kept[i]);
}

bool restore_disk(unsigned i, const struct label_scope *scope)
{
    if (!world.kept[i].there || !label_same_scope(&world.kept[i].record.scope, scope))
        return false;
    copy(&world.kept[i], &world.disks[i]);
    return true;
}

static struct server *server_loading(void)
{
    for (unsigned i = 0; i < SERVERS; i++)
        if (world.servers[i].loading && !world.servers[i].options.ended)
            return &world.servers[i];
    abort();
}

int scribe_open(const char *path, const struct label_scope *scope, struct scribe **scribe,
                enum scribe_found *found, struct fault *fault)
{
    struct scribe *made = calloc(1, sizeof *made);
    size_t length = strlen(path);

    (void)fault;
    assert_non_null(made);
    made->server = server_loading();
    made->holders = 1;
    made->opened = world.seconds;
    record_open(scope, &made->record);
    if (length > 6) /* "<folder>/<number>.keys" */
        made->disk = &world.disks[path[length - 6] - '0'];
    *found = SCRIBE_NOTHING;
    if (made->disk && made->disk->there &&
        label_same_scope(&made->disk->record.scope, &made->record.scope)) {
        assert_int_equal(record_copy(&made->disk->record, &made->record), 0);
        *found = SCRIBE_RECORD;
    }
    *scribe = made;
    return 0;
}

bool scribe_is_damaged(const char *path, const struct label_scope *scope,
                       char code[RECORD_CODE + 1])
{
    (void)path;
    (void)scope;
    (void)code;
    return false;
}

int scribe_open_anew(const char *path, const struct label_scope *scope, struct scribe **scribe,
                     struct fault *fault)
{
    enum scribe_found found;

    return scribe_open(path, scope, scribe, &found, fault);
}

int scribe_identity(const char *path, const char *trust_domain,
                    uint8_t identity[CONFIG_IDENTITY_MAX], size_t *length, struct fault *fault)
{
    (void)path;
    (void)trust_domain;
    (void)identity;
    (void)length;
    return fault_set(fault, FAULT_NOT_FOUND, "none");
}

struct scribe *scribe_hold(struct scribe *scribe)
{
    scribe->holders++;
    return scribe;
}

void scribe_release(struct scribe *scribe)
{
    if (--scribe->holders > 0)
        return;
    record_close(&scribe->record);
    free(scribe);
}

const char *scribe_path(const struct scribe *scribe)
{
    (void)scribe;
    return "";
}

struct record *scribe_edit(struct scribe *scribe)
{
    return &scribe->record;
}

void scribe_leave(struct scribe *scribe)
{
    (void)scribe;
}

int64_t scribe_ran(struct scribe *scribe)
{
    return scribe->record.ran + world.seconds - scribe->opened;
}

static void put_on_disk(struct scribe *scribe)
{
    struct disk *disk = scribe->disk;

    if (disk && !scribe->server->dead) {
        record_close(&disk->record);
        assert_int_equal(record_copy(&scribe->record, &disk->record), 0);
        disk->record.ran = scribe_ran(scribe);
        disk->there = true;
    }
    scribe->dirty = scribe->behind = false;
}

void scribe_commit(struct scribe *scribe, scribe_done *done, void *context)
{
    bool written = !scribe->disk || (!scribe->server->dead && !one_in(20));

    if (!done) {
        scribe->dirty = true;
        return;
    }
    if (written)
        put_on_disk(scribe);
    world.lost += !written && !scribe->server->dead;
    scribe->dirty = scribe->behind = !written;
    done(context, written);
}

bool scribe_is_written(struct scribe *scribe)
{
    return !scribe->behind;
}

void scribe_tick(struct scribe *scribe)
{
    if (scribe->dirty && !one_in(3))
        put_on_disk(scribe);
}

/* ---- the supervisor ---- */

static struct server *server_of(struct supervisor *supervisor)
{
    for (unsigned i = 0; i < SERVERS; i++)
        if ((void *)&world.servers[i] == (void *)supervisor)
            return &world.servers[i];
    abort();
}

int supervisor_start(const struct supervisor_options *options, struct supervisor **supervisor,
                     struct fault *fault)
{
    struct server *server = server_loading();

    (void)fault;
    server->options = *options;
    *supervisor = (struct supervisor *)server;
    return 0;
}

void supervisor_renew(struct supervisor *supervisor)
{
    (void)supervisor;
}

int supervisor_wait(struct supervisor *supervisor, int64_t deadline, const atomic_bool *cancel,
                    struct hsm_token_info *info, struct fault *fault)
{
    (void)supervisor;
    (void)deadline;
    (void)cancel;
    (void)fault;
    *info = (struct hsm_token_info){.can_generate = {false, true, true, true, true}};
    return 0;
}

/* A start is answered at once, the other server doing what it likes in between; everything
 * else waits for its turn. */
void supervisor_submit(struct supervisor *supervisor, const struct supervisor_request *how)
{
    struct server *server = server_of(supervisor);
    struct pending pending = {.request = *how->request, .how = *how};

    if (server->loading && !world.calm) {
        world.meanwhile(&world.servers[1 - index_of(server)], 3);
        if (server->dies_in > 0 && --server->dies_in == 0)
            server->dead = true;
    }
    if (server->loading || server->dead || server->waiting == QUEUE)
        execute(server, &pending);
    else
        server->queue[server->waiting++] = pending;
}

void drain(struct server *server)
{
    while (server->waiting > 0) {
        struct pending first = server->queue[0];

        memmove(server->queue, server->queue + 1, --server->waiting * sizeof first);
        execute(server, &first);
    }
}

void supervisor_retire(struct supervisor *supervisor)
{
    server_of(supervisor)->retired = true;
}

void supervisor_abandon(struct supervisor *supervisor)
{
    (void)supervisor;
}

bool supervisor_away(struct supervisor *supervisor, struct fault *fault)
{
    (void)supervisor;
    (void)fault;
    return false;
}

bool supervisor_trouble(struct supervisor *supervisor, struct fault *fault)
{
    return supervisor_away(supervisor, fault);
}

void supervisor_measure(struct supervisor *supervisor, struct supervisor_figures *figures)
{
    (void)supervisor;
    *figures = (struct supervisor_figures){.away = 0};
}

void supervisor_info(struct supervisor *supervisor, struct hsm_token_info *info)
{
    (void)supervisor_wait(supervisor, 0, NULL, info, NULL);
}
