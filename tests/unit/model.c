/* Random histories of two servers on one token: crashes at any step, searches that do not
 * find what is there, a token restored from a backup, keys and journals that are lost, a clock
 * that goes back; and of an operator who brings lost keys back, accepts their loss, or waits.
 *
 * All that decides is the real thing: keymanager, loading, rotation, attempts, disposal and
 * identity run here, one step at a time, on a supervisor and a token that are made up. What
 * must hold in every history:
 *
 *   - no key that a server's journal needs is destroyed, nor one of another server;
 *   - a start serves every key that SPIRE's journal needs and the token has; without a record,
 *     the newest generation that was seen and proven;
 *   - no start does without an X.509 CA key that the record needs, unless the operator was asked
 *     for exactly this key and gave the code of it; none is refused for a key that is there;
 *   - what was served is destroyed after a day at the soonest, if there is room for it;
 *   - a history that ends well leaves nothing but served keys, if the clock was not set back:
 *     it is what tells generations apart that a lagging token does not show.
 *
 * UNIT_MODEL_SEED repeats one history, and tells it. UNIT_MODEL_HISTORIES is how many there are,
 * and makes them others each time; without it they are always the same. */
#include "plugin/keys/keymanager.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "plugin/keys/identity.h"
#include "tests/support/model_world.h"

enum { STARTUP_WAIT_S = 60 };

/* ---- SPIRE ---- */

static unsigned number_of(const struct hsm_key_name *name)
{
    const struct object *object = lookup(name);

    return object ? object->number : 0;
}

struct call {
    struct server *server;
    unsigned id;
};

static void generated(void *context, const struct catalogue_key *key, const struct fault *fault)
{
    struct call call = *(struct call *)context;

    (void)fault;
    free(context);
    call.server->asked[call.id] = false;
    if (!key || call.server->dead || one_in(12)) /* a crash before it is written down */
        return;
    call.server->journal->needed[call.id] = number_of(&key->name);
    tell(call.server, "journals", lookup(&key->name));
}

static const struct object *served_of(const struct server *server, unsigned id)
{
    struct catalogue_key *key = catalogue_find(keymanager_catalogue(server->keymanager), ids[id]);
    const struct object *object = NULL;

    if (!key)
        return NULL;
    for (unsigned i = world.made; !object && i-- > 0;)
        if (strcmp(world.objects[i].name.label, key->name.label) == 0 &&
            memcmp(world.objects[i].name.id, key->name.id, sizeof key->name.id) == 0)
            object = &world.objects[i];
    keymanager_drop(server->keymanager, key);
    return object;
}

static void note_served(const struct server *server)
{
    for (unsigned id = 0; id < IDS; id++) {
        const struct object *object = served_of(server, id);

        if (object)
            world.objects[object->number - 1].served = world.seconds;
    }
}

/* SPIRE has given up what a slot held when it asks for a new key in it. */
static void rotate(struct server *server, unsigned id)
{
    struct call *call = malloc(sizeof *call);

    assert_non_null(call);
    *call = (struct call){.server = server, .id = id};
    tell(server, ids[id], NULL);
    note_served(server);
    server->asked[id] = true;
    server->journal->needed[id] = 0;
    keymanager_generate(server->keymanager, ids[id], HSM_EC_P256, clock_now() + 5 * CLOCK_SECOND,
                        generated, call);
}

static bool is_twin(const struct object *object)
{
    for (unsigned i = 0; i < world.made; i++) {
        const struct object *other = &world.objects[i];

        if (other != object && strcmp(other->name.label, object->name.label) == 0)
            return true;
    }
    return false;
}

/* With a record: what SPIRE has in its journal, and the token has whole, is served, unless the disk
 * lost what was to be written down, or the other server took all of this start's time. After an
 * accepted loss a start goes by the token. */
static void check_remembered(const struct server *server, unsigned id)
{
    unsigned needed = server->journal->needed[id];
    const struct object *object = needed > 0 ? &world.objects[needed - 1] : NULL;

    if (!server->hurried && !server->copied && !server->told && object && object->there &&
        object->state == HSM_COMPLETE && world.lost == 0 &&
        label_same_scope(&object->label.scope, &server->scope) && !serves(server, object))
        violated(server, "forgets a key", object);
}

/* Without one: proven, and nothing newer of its id both seen and whole. */
static void check_newest(const struct server *server, unsigned id)
{
    const struct object *served = NULL;

    for (unsigned i = 0; i < world.made; i++)
        if (strcmp(world.objects[i].label.key_id, ids[id]) == 0 &&
            serves(server, &world.objects[i]))
            served = &world.objects[i];
    if (served && server->proven[served->number - 1] != 1)
        violated(server, "serves what was not proven", served);
    for (unsigned i = 0; i < world.made; i++) {
        const struct object *object = &world.objects[i];

        if (object != served && object->there && server->seen[i] && server->proven[i] != 2 &&
            label_same_scope(&object->label.scope, &server->scope) &&
            strcmp(object->label.key_id, ids[id]) == 0 && object->state == HSM_COMPLETE &&
            !is_twin(object) && (!served || object->label.generation > served->label.generation))
            violated(server, "passes over a newer key", object);
    }
}

/* A slot whose key is not the one that is served is of no use to SPIRE. */
static void read_journal(struct server *server)
{
    for (unsigned id = 0; id < IDS; id++) {
        unsigned needed = server->journal->needed[id];

        if (has_values())
            check_newest(server, id);
        else
            check_remembered(server, id);
        if (needed != 0 && !serves(server, &world.objects[needed - 1]))
            server->journal->needed[id] = 0;
    }
    server->copied = false;
}

static void end(struct server *server)
{
    struct keymanager *keymanager = server->keymanager;

    tell(server, "is gone", NULL);
    server->dead = true;
    server->keymanager = NULL;
    if (keymanager) {
        keymanager_abandon(keymanager);
        drain(server);
        keymanager_release(keymanager);
    }
    drain(server);
    while (!server->retired && server->options.tick) { /* an attempt that waits for it */
        world.seconds++;
        server->options.tick(server->options.context);
        drain(server);
    }
    if (server->options.ended)
        server->options.ended(server->options.context);
    server->options = (struct supervisor_options){.lock = -1};
}

static bool may_start(const struct server *server)
{
    const struct server *other = &world.servers[1 - index_of(server)];

    return !server->loading && (!take_turns() || (!other->keymanager && !other->loading));
}

/* ---- a loss, and the operator ---- */

/* What a start must answer with, as it begins. */
struct demand {
    unsigned needed[IDS];
    bool in_use[IDS]; /* so the record says */
    bool shown[IDS];  /* it is there, and no search misses it */
    bool displaced[OBJECTS];
};

static void see_demand(const struct server *server, struct demand *demand)
{
    find_needed(server, demand->needed, demand->in_use);
    find_displaced(server, demand->displaced);
    for (unsigned id = 0; id < IDS; id++) {
        unsigned number = demand->needed[id];

        demand->shown[id] =
            number > 0 && world.objects[number - 1].there && world.objects[number - 1].hidden == 0;
    }
}

/* By the key, by a newer one, or by one that was displaced and is back before its successor was in
 * use. */
static bool is_answered(const struct server *server, const struct demand *demand, unsigned id)
{
    const struct object *needed = &world.objects[demand->needed[id] - 1];
    const struct object *served = served_of(server, id);

    return served && (served == needed || served->label.generation > needed->label.generation ||
                      (demand->displaced[served->number - 1] && !demand->in_use[id]));
}

static void check_demand(const struct server *server, const struct demand *demand)
{
    for (unsigned id = 0; id < IDS; id++) {
        unsigned number = demand->needed[id];
        struct object *object = number > 0 ? &world.objects[number - 1] : NULL;

        if (object && server->told && server->accepted.lost[id] == number)
            object->restored = true;
        if (!object || is_answered(server, demand, id))
            continue;
        tell(server, "has for a needed key", served_of(server, id));
        if (!server->told)
            violated(server, "answers with less than its record", object);
        else if (server->accepted.lost[id] != number)
            violated(server, "lets go a key that nobody gave up", object);
    }
    world.acceptances += server->told;
}

/* The sentence has the names of the lost keys, and the code of exactly these. */
static void hear_refusal(struct server *server, const struct demand *demand, const char *sentence)
{
    static const char before[] = "accept_loss = \"";
    const char *code = strstr(sentence, before);
    struct loss loss = {.code = ""};
    bool named = false;

    server->refused = loss;
    if (!code || server->dead)
        return;
    (void)snprintf(loss.code, sizeof loss.code, "%s", code + strlen(before));
    for (unsigned id = 0; id < IDS; id++) {
        unsigned number = demand->needed[id];
        const struct object *object = number > 0 ? &world.objects[number - 1] : NULL;

        if (!object || !strstr(sentence, object->name.label))
            continue;
        named = true;
        loss.lost[id] = number;
        if (demand->shown[id] && object->there)
            violated(server, "is refused for a key that is there", object);
    }
    if (!named)
        violated(server, "is refused for no key that its record needs", NULL);
    if (strcmp(loss.code, server->accepted.code) == 0)
        violated(server, "is refused though the code was given, or another loss has it", NULL);
    server->refused = loss;
    world.refusals++;
}

static void accept_loss(struct server *server)
{
    struct config_keymanager *config = &server->config.keymanager;

    tell(server, "is told to go on without lost keys", NULL);
    server->accepted = server->refused;
    (void)snprintf(config->accept_loss, sizeof config->accept_loss, "%s", server->accepted.code);
}

static void bring_back(const struct server *server)
{
    for (unsigned id = 0; id < IDS; id++) {
        unsigned number = server->refused.lost[id];
        struct object *object = number > 0 ? &world.objects[number - 1] : NULL;

        if (!object || object->there)
            continue;
        tell(server, "has a lost key again", object);
        object->there = object->restored = true;
    }
}

/* Of a refused start; or he waits, while all goes on. */
static void operate(struct server *server)
{
    if (server->refused.code[0] == '\0' || one_in(3))
        return;
    if (chance() % 2 == 0)
        accept_loss(server);
    else
        bring_back(server);
    server->refused = (struct loss){.code = ""};
}

static void begin(struct server *server)
{
    struct server *outer = world.starting;
    struct demand demand;
    const atomic_bool cancel = false;
    struct keymanager *keymanager = NULL;
    struct fault fault;
    int64_t began;

    tell(server, "starts", NULL);
    see_demand(server, &demand);
    world.starting = server;
    world.opening = take_turns() ? 0 : index_of(server);
    world.seconds += 20; /* generations run ahead of the clock where they are made in a rush */
    server->loading = true;
    server->dead = server->retired = server->told = false;
    began = world.seconds;
    server->life++;
    server->dies_in = one_in(4) ? 1 + (unsigned)chance() % 6 : 0;
    memset(server->seen, 0, sizeof server->seen);
    memset(server->proven, 0, sizeof server->proven);
    if (keymanager_open(&server->config, NULL, &cancel, &keymanager, &fault) != 0) {
        world.starting = outer;
        tell(server, fault.message, NULL);
        hear_refusal(server, &demand, fault.message);
        if (world.calm && server->refused.code[0] == '\0')
            violated(server, "does not start though all is well", NULL);
        end(server);
        server->loading = false;
        return;
    }
    world.starting = outer;
    server->refused = (struct loss){.code = ""};
    server->keymanager = keymanager;
    server->loading = false;
    server->hurried = world.seconds - began >= STARTUP_WAIT_S;
    if (server->dead) {
        end(server);
        return;
    }
    keymanager_succeed(keymanager, NULL);
    check_demand(server, &demand);
    note_served(server);
    read_journal(server);
}

/* ---- histories ---- */

static void ignore_signature(void *context, const struct catalogue_key *key,
                             const struct hsm_reply *reply)
{
    (void)context;
    (void)key;
    (void)reply;
}

static void execute_one(struct server *server)
{
    unsigned which = (unsigned)chance() % server->waiting;
    struct pending pending = server->queue[which];

    server->queue[which] = server->queue[--server->waiting];
    execute(server, &pending);
}

static void tick(struct server *server)
{
    world.seconds += (int64_t)(chance() % 3);
    if (world.patient && one_in(10))
        world.seconds += (int64_t)(chance() % (8 * 3600));
    if (world.moody && one_in(30)) {
        world.skew -= (int64_t)(chance() % 100);
        world.set_back++;
    }
    server->options.tick(server->options.context);
}

static void call(struct server *server)
{
    const struct hsm_request sign = {.scheme = HSM_PLAIN, .hash = HSM_SHA256};
    unsigned id = (unsigned)chance() % IDS;

    if (one_in(2))
        keymanager_sign(server->keymanager, ids[id], &sign, CLOCK_NEVER, ignore_signature, NULL);
    else if (!server->asked[id])
        rotate(server, id);
}

static void identify(struct server *server)
{
    struct config_keymanager *config = &server->config.keymanager;
    const char *bytes = config->place.key_identifier_value;
    char uuid[40];

    if (config->place.key_identifier_file[0] != '\0') {
        FILE *file = fopen(config->place.key_identifier_file, "w");

        (void)snprintf(uuid, sizeof uuid, "%016llx-%u", (unsigned long long)chance(),
                       index_of(server));
        assert_non_null(file);
        assert_true(fputs(uuid, file) >= 0);
        assert_int_equal(fclose(file), 0);
        assert_int_equal(chmod(config->place.key_identifier_file, 0600), 0);
        bytes = uuid;
    }
    label_scope(server->config.trust_domain, bytes, strlen(bytes), &server->scope);
}

/* Not by a link: a copy is another file. */
static void copy_identity(void)
{
    char bytes[64] = "";
    FILE *from = fopen(world.servers[0].config.keymanager.place.key_identifier_file, "r");
    FILE *to = fopen(world.servers[1].config.keymanager.place.key_identifier_file, "w");

    assert_non_null(from);
    assert_non_null(to);
    assert_true(fread(bytes, 1, sizeof bytes, from) > 0);
    assert_true(fputs(bytes, to) >= 0);
    assert_int_equal(fclose(from), 0);
    assert_int_equal(fclose(to), 0);
}

static void forget_place(unsigned index)
{
    char path[IDENTITY_PLACE_MAX];

    world.opening = index;
    identity_place(&world.servers[index].scope, path);
    (void)unlink(path);
}

/* Of the disk that a server reads, while nobody writes to it. An older record does not say that a
 * newer key must be waited for, so the next start may pass over one that does not show. */
static void keep_or_restore_record(struct server *server)
{
    unsigned disk = take_turns() ? 0 : index_of(server);

    if (one_in(10))
        keep_disk(disk);
    if (!one_in(40) || !restore_disk(disk, &server->scope))
        return;
    tell(server, "has an older record again", NULL);
    for (unsigned i = 0; i < SERVERS; i++)
        world.servers[i].copied |= take_turns() || &world.servers[i] == server;
}

/* What may happen while a server does not run. */
static void idle(struct server *server)
{
    if (one_in(40)) {
        tell(server, "has lost its journal", NULL);
        memset(server->journal, 0, sizeof *server->journal);
    }
    if (world.sharing == OWN_FILES && one_in(60)) {
        tell(server, "has lost its identity", NULL);
        identify(server);
    }
    if (world.sharing == COPIES && server == &world.servers[1] && one_in(20)) {
        tell(server, "is a copy", NULL);
        copy_disk();
        server->copied = true;
        *server->journal = world.journals[0];
    }
    if ((world.sharing == OWN_FILES || world.sharing == ONE_FILE) && may_start(server))
        keep_or_restore_record(server);
    if (has_values() && may_start(server) && one_in(60)) {
        tell(server, "has moved to another host", NULL);
        forget_place(take_turns() ? 0 : index_of(server));
        for (unsigned i = 0; i < SERVERS; i++)
            world.servers[i].moved |= take_turns() || &world.servers[i] == server;
    }
    if (may_start(server) && chance() % 3 == 0) {
        operate(server);
        begin(server);
    }
}

static void step(struct server *server)
{
    if (server->loading)
        return;
    if (!server->keymanager)
        idle(server);
    else if (server->waiting > 0 && chance() % 2 == 0)
        execute_one(server);
    else if (chance() % 2 == 0)
        tick(server);
    else if (one_in(12))
        end(server);
    else
        call(server);
}

static void some_steps(struct server *server, unsigned most)
{
    for (uint64_t n = chance() % (most + 1); n > 0; n--)
        step(server);
}

static void keep_or_restore(void)
{
    if (one_in(80))
        memcpy(world.backup, world.objects, sizeof world.objects);
    if (one_in(120)) {
        if (telling)
            print_message("  the token is restored\n");
        for (unsigned i = 0; i < world.made; i++) {
            world.objects[i].restored |= world.backup[i].there && !world.objects[i].there;
            world.objects[i].there = world.backup[i].there;
        }
    }
}

static void lose_object(void)
{
    struct object *object;

    if (world.made == 0 || !one_in(150))
        return;
    object = &world.objects[chance() % world.made];
    if (telling && object->there)
        print_message("  object #%u is lost\n", object->number);
    object->restored |= object->there;
    object->there = false;
}

static void settle(struct server *server)
{
    for (unsigned i = 0; i < 40 && server->keymanager; i++) {
        drain(server);
        world.seconds += world.patient ? 3700 : 700;
        server->options.tick(server->options.context);
        drain(server); /* a census, after which what is condemned may go */
        server->options.tick(server->options.context);
    }
    drain(server);
}

static void restart(struct server *server)
{
    if (server->keymanager)
        end(server);
    begin(server);
    if (server->refused.code[0] != '\0') {
        operate(server);
        begin(server);
        if (!server->keymanager)
            violated(server, "does not start though the operator saw to it", NULL);
    }
    settle(server);
}

/* All is well again: after new keys and one more start, what is on the token is what is
 * served. After a move with a value, whole keys of before are left for a person to prune. */
static void check_tidy(struct server *server)
{
    restart(server);
    for (unsigned id = 0; id < IDS && server->keymanager; id++) {
        rotate(server, id);
        settle(server);
    }
    restart(server);
    for (unsigned i = 0; i < world.made; i++) {
        const struct object *object = &world.objects[i];

        if (object->there && label_same_scope(&object->label.scope, &server->scope) &&
            !server->moved && world.lost == 0 && !object->restored && !serves(server, object))
            violated(server, "leaves a key behind", object);
    }
    for (unsigned id = 0; id < IDS; id++)
        if (server->journal->needed[id] == 0)
            violated(server, "cannot make a key", NULL);
}

static void populate(void)
{
    for (unsigned i = 0; i < SERVERS; i++) {
        struct server *server = &world.servers[i];
        struct config_keymanager *config = &server->config.keymanager;
        unsigned identity = take_turns() || world.sharing == ONE_VALUE ? 0 : i;

        config->destroy_superseded = true;
        config->keep_condemned = world.roomy ? 64 : 4; /* more would go within a day */
        config->destroy_superseded_after = world.patient ? DAY_S * CLOCK_SECOND : 0;
        config->cka_id_length = HSM_ID_MAX;
        config->startup_wait = STARTUP_WAIT_S * CLOCK_SECOND;
        server->options.lock = -1;
        server->journal = &world.journals[take_turns() ? 0 : i];
        (void)snprintf(server->config.trust_domain, sizeof server->config.trust_domain,
                       "example.org");
        if (!has_values())
            (void)snprintf(config->record_file, sizeof config->record_file, "%s/%u.keys", folder,
                           identity);
        if (!has_values())
            (void)snprintf(config->place.key_identifier_file,
                           sizeof config->place.key_identifier_file, "%s/%u", folder, identity);
        else
            (void)snprintf(config->place.key_identifier_value,
                           sizeof config->place.key_identifier_value, "server %u", identity);
    }
    for (unsigned i = SERVERS; i-- > 0;)
        identify(&world.servers[i]);
    if (world.sharing == COPIES)
        copy_identity();
    if (world.sharing == ONE_FILE || world.sharing == COPIES)
        world.servers[1].scope = world.servers[0].scope;
}

static void run(enum sharing sharing, uint64_t seed)
{
    clear_disks();
    memset(&world, 0, sizeof world);
    world.random = seed;
    world.sharing = sharing;
    world.meanwhile = some_steps;
    world.seconds = 1000;
    /* by the clock a copy tells the original's later keys from its own earlier ones */
    world.moody = chance() % 2 == 0 && sharing != COPIES;
    world.patient = sharing == COPIES || chance() % 2 == 0;
    world.roomy = sharing == COPIES || (world.patient && chance() % 8 == 0);
    ids[0] = "x509-CA-A";
    ids[1] = chance() % 2 == 0 ? "x509-CA-B" : "JWT-Signer-A";
    populate();
    for (unsigned i = 0; i < STEPS && world.violation[0] == '\0'; i++) {
        keep_or_restore();
        lose_object();
        some_steps(&world.servers[chance() % SERVERS], 8);
    }
    if (!is_shared() && !world.servers[0].moved && !world.servers[1].moved && world.rivalries > 0 &&
        world.set_back == 0)
        violated(world.servers, "takes its own key for a rival's", NULL);
    world.calm = true;
    for (unsigned i = 0; i < SERVERS; i++)
        if (world.servers[i].keymanager)
            end(&world.servers[i]);
    for (unsigned i = 0; i < SERVERS && !is_shared() && world.set_back == 0; i++) {
        check_tidy(&world.servers[i]);
        if (take_turns())
            break;
    }
    for (unsigned i = 0; i < SERVERS; i++)
        if (world.servers[i].keymanager)
            end(&world.servers[i]);
}

static void hold(enum sharing sharing)
{
    const char *only = getenv("UNIT_MODEL_SEED");
    const char *many = getenv("UNIT_MODEL_HISTORIES");
    unsigned long count = many ? strtoul(many, NULL, 10) : HISTORIES;
    struct timespec now;
    uint64_t first = 1;
    unsigned long made = 0;
    unsigned long rivalries = 0;
    unsigned long refusals = 0;
    unsigned long acceptances = 0;

    (void)timespec_get(&now, TIME_UTC);
    if (only)
        first = strtoull(only, NULL, 10);
    else if (many)
        first = (uint64_t)now.tv_sec * 1000003 + (uint64_t)now.tv_nsec;
    telling = only != NULL;
    for (uint64_t i = 0; i < (only ? 1 : count); i++) {
        run(sharing, first + i);
        made += world.made;
        rivalries += world.rivalries;
        refusals += world.refusals;
        acceptances += world.acceptances;
        if (world.violation[0] != '\0')
            fail_msg("%s (UNIT_MODEL_SEED=%llu)", world.violation, (unsigned long long)(first + i));
    }
    assert_true(sharing < COPIES || sharing == OWN_VALUES || sharing == ONE_PLACE ||
                rivalries > 0 || only);
    assert_true(has_values() || only || (refusals > 0 && acceptances > 0));
    print_message("%lu histories from seed %llu, %lu keys made, %lu starts refused, %lu losses "
                  "accepted\n",
                  only ? 1 : count, (unsigned long long)first, made, refusals, acceptances);
}

static void servers_with_identity_files_of_their_own(void **state)
{
    (void)state;
    hold(OWN_FILES);
}

static void one_server_started_again_and_again(void **state)
{
    (void)state;
    hold(ONE_FILE);
}

static void servers_that_are_copies_of_each_other(void **state)
{
    (void)state;
    hold(COPIES);
}

static void servers_with_identity_values_of_their_own(void **state)
{
    (void)state;
    hold(OWN_VALUES);
}

static void one_server_with_an_identity_value_started_again_and_again(void **state)
{
    (void)state;
    hold(ONE_PLACE);
}

static void servers_that_share_an_identity_value_by_mistake(void **state)
{
    (void)state;
    hold(ONE_VALUE);
}

/* In memory if there is a place: each history makes its files anew, and a busy disk took longer
 * to keep them than the histories to play. */
static int make_folder(void **state)
{
    (void)state;
    (void)snprintf(folder, sizeof folder, "%s/unit_model.XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    char path[96];

    (void)state;
    for (unsigned i = 0; i < SERVERS; i++) {
        (void)snprintf(path, sizeof path, "%s/%u", folder, i);
        (void)unlink(path);
        forget_place(i);
    }
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(servers_with_identity_files_of_their_own),
        cmocka_unit_test(one_server_started_again_and_again),
        cmocka_unit_test(servers_that_are_copies_of_each_other),
        cmocka_unit_test(servers_with_identity_values_of_their_own),
        cmocka_unit_test(one_server_with_an_identity_value_started_again_and_again),
        cmocka_unit_test(servers_that_share_an_identity_value_by_mistake),
    };

    return cmocka_run_group_tests_name("model", tests, make_folder, remove_folder);
}
