/* The world of unit/model.c: a token, a supervisor for each of two servers, and time.
 *
 * This is a stand-in: it replaces supervisor.h, scribe.h, log.h, identity_place(),
 * clock_gettime(), time() and pthread_cond_timedwait(). Nothing here runs by itself: there is one
 * thread, and time passes when the model says so. A disk may lose what was to be written down, for
 * a while or, if the server ends meanwhile, for good.
 *
 *   1. clear the world; set the seed, sharing, seconds, meanwhile and ids; fill in servers[].config
 *   2. set server.loading and call keymanager_open(): it gets the supervisor of that server
 *   3. execute() or drain() what the servers ask the token for
 *   4. world.violation is empty if nothing happened that must not
 *
 * chance() decides all that is uncertain, so that a seed gives the same history again. */
#ifndef TESTS_MODEL_WORLD_H
#define TESTS_MODEL_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plugin/keys/keymanager.h"
#include "plugin/keys/record.h"
#include "plugin/worker/supervisor.h"

enum { DAY_S = 86400 };
enum { SERVERS = 2, IDS = 2, OBJECTS = 1024, QUEUE = 64, STEPS = 250 };
#ifdef __SANITIZE_THREAD__ /* there is one thread */
enum { HISTORIES = 100 };
#elif defined __SANITIZE_ADDRESS__ /* they take three times as long there */
enum { HISTORIES = 500 };
#else
enum { HISTORIES = 1500 };
#endif

enum sharing {
    OWN_FILES,  /* each server has its own key_identifier_file */
    ONE_FILE,   /* the same server, started where the other one ended */
    COPIES,     /* copies of one identity file: a cloned host, a restored disk, record and all */
    OWN_VALUES, /* key_identifier_value, different */
    ONE_PLACE,  /* the same value on one host, where the second is refused while the first runs */
    ONE_VALUE,  /* the same on two hosts: two servers that should not share it */
    SHARINGS,
};

extern const char *ids[IDS]; /* key ids; the model's */

struct object {
    bool there;
    bool restored;        /* it had been gone, or was given up as lost */
    int64_t served;       /* when it was known to be served; 0 = never */
    enum hsm_state state; /* HALF, COMPLETE or UNFIT */
    unsigned hidden;      /* from so many searches yet */
    bool in_halves;       /* which find one half of it meanwhile */
    unsigned number;
    int64_t made;
    const struct server *maker;
    unsigned life; /* of the maker */
    struct hsm_key_name name;
    struct label label;
};

struct pending {
    struct hsm_request request;
    struct supervisor_request how;
};

/* What SPIRE knows of its keys when it starts again; object numbers, 0 = none. */
struct journal {
    unsigned needed[IDS];
};

/* Keys that a start was refused for: object numbers, 0 = none. "" = there was no refusal. */
struct loss {
    char code[RECORD_CODE + 1];
    unsigned lost[IDS];
};

struct server {
    struct keymanager *keymanager; /* NULL: not running */
    struct supervisor_options options;
    struct config config;
    struct label_scope scope;
    struct journal *journal;
    struct pending queue[QUEUE];
    unsigned waiting;
    unsigned dies_in; /* steps of the start under way; 0 = lives */
    bool loading;
    bool dead; /* nothing it does reaches the token */
    bool asked[IDS];
    bool retired;
    bool copied;              /* it has not run since; what is newer may be its own, too */
    bool hurried;             /* its latest start had no time left */
    bool told;                /* that one said that it goes on without lost keys */
    struct loss refused;      /* for the operator to see to */
    struct loss accepted;     /* his accept_loss, which stays in the configuration */
    bool moved;               /* to where it cannot tell its earlier keys from others' */
    unsigned life;            /* starts so far */
    unsigned proven[OBJECTS]; /* by object number: 1 = whole, 2 = not, of this start */
    bool seen[OBJECTS];
};

/* A record as it is on a disk. */
struct disk {
    bool there;
    struct record record;
};

extern struct world {
    uint64_t random; /* the seed, at first */
    enum sharing sharing;
    struct object objects[OBJECTS];
    unsigned made;
    struct object backup[OBJECTS];
    struct server servers[SERVERS];
    struct journal journals[SERVERS];
    struct disk disks[SERVERS];
    struct disk kept[SERVERS]; /* backups of them */
    unsigned lost;             /* writes that were not on the disk in time */
    /* while the other server starts: this one does at most so much */
    void (*meanwhile)(struct server *server, unsigned most);
    struct server *starting; /* whose start goes on just now */
    unsigned opening;        /* the server whose identity is read just now */
    int64_t seconds;
    int64_t skew; /* of the calendar's clock */
    bool moody;   /* and that clock goes back */
    bool calm;    /* nothing fails any more */
    bool patient; /* what is superseded goes after a day */
    bool roomy;   /* and no sooner, however many of them there are */
    unsigned refusals;
    unsigned acceptances;
    unsigned rivalries;
    unsigned set_back; /* so often was the clock */
    char violation[320];
} world;

extern char folder[64]; /* of the identity files; the model's */
extern bool telling;    /* the history, line by line */

/* ---- chance ---- */

uint64_t chance(void);
bool one_in(unsigned n); /* never when world.calm */

/* ---- what is said ---- */

/* Tells a step of the history. `object` may be NULL in both. */
void tell(const struct server *server, const char *what, const struct object *object);

/* Something that must not happen: the first one is kept in world.violation. */
void violated(const struct server *server, const char *what, const struct object *object);

/* ---- servers ---- */

unsigned index_of(const struct server *server);

/* Of two servers on one host one runs at a time, as with a file. */
bool take_turns(void);
bool has_values(void); /* key_identifier_value, not a file */
bool is_shared(void);  /* two servers have one identity, and know nothing of each other */

/* The disk of the second server becomes a copy of the first one's. */
void copy_disk(void);

/* A backup of a disk is made; and comes back, if there is one of this scope. */
void keep_disk(unsigned i);
bool restore_disk(unsigned i, const struct label_scope *scope);

/* The keys that no start may do without, by the record on the server's disk: object numbers, 0 =
 * none. `in_use` may be NULL. */
void find_needed(const struct server *server, unsigned numbers[IDS], bool in_use[IDS]);

/* The keys in use that were missing when their id was made anew, by the same record. */
void find_displaced(const struct server *server, bool displaced[OBJECTS]);

/* Is this the object that the server signs with? */
bool serves(const struct server *server, const struct object *object);

/* ---- the token ---- */

/* The object of that name as it is, whatever a search would show; or NULL. */
struct object *lookup(const struct hsm_key_name *name);

/* Nothing was ever written down. */
void clear_disks(void);

/* What a server has asked for is done and answered: one request, or all in turn. */
void execute(struct server *server, const struct pending *pending);
void drain(struct server *server);

#endif
